"""What is trained on and what generation starts from are one text, in every format and with any tokenizer."""

import io
import json
import pathlib

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.records import Turn
from wizard_jax.chat import (
    CHAT_FORMATS,
    ChatError,
    ChatFormat,
    encode_conversation,
    encode_prompt,
    get_format,
    segments,
)
from wizard_jax.tokenizer import Tokenizer, train_tokenizer

CORPUS = [
    "A chat between a curious user and an assistant. USER: Hi there ASSISTANT: Hello you!",
    "Below is an instruction.\n\n### Instruction:\nSort: 3 2\n\n### Response:\n2 3",
] * 20
PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [" ", "\n", ":", " x", "\nx", "Response:\n", "</s>", "ASSISTANT:", "", "▁▁", "é"]
)
formats = pytest.mark.parametrize("chat_format", CHAT_FORMATS.values(), ids=CHAT_FORMATS)


def train_whole_lines(folder: pathlib.Path, kind: str) -> Tokenizer:
    """A tokenizer whose pieces may hold spaces and newlines, so that they can span a prompt's end."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ASSISTANT: Hello", "Response:\nyes", "x ASSISTANT: x", ":\n\nx"] * 30),
        model_writer=model,
        model_type=kind,
        vocab_size=420 if kind == "bpe" else 320,
        hard_vocab_limit=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / f"{kind}.model").write_bytes(model.getvalue())
    return Tokenizer(folder / f"{kind}.model")


@pytest.fixture(scope="module", params=["like LLaMA", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "like LLaMA":
        return train_tokenizer(CORPUS, folder / "tokenizer.model", vocab_size=400)
    return train_whole_lines(folder, request.param)


def turns(*contents: str) -> list[Turn]:
    return [Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]


def test_the_texts_are_the_published_ones() -> None:
    two = turns("Hi", "Hello!", "Bye", "See you.")
    assert segments(two, chat_format=get_format("vicuna")) == [
        f"{PREAMBLE} USER: Hi ASSISTANT: Hello!",
        "USER: Bye ASSISTANT: See you.",
    ]
    assert segments(two, chat_format=get_format("alpaca")) == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi\n\n### Response:\nHello!",
        "### Instruction:\nBye\n\n### Response:\nSee you.",
    ]
    assert segments(two, chat_format=get_format("wizardlm_7b")) == [
        "Hi\n\n### Response:\nHello!",
        "Bye\n\n### Response:\nSee you.",
    ]


@formats
@settings(max_examples=100, deadline=None)
@given(contents=st.lists(text, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_every_prompt_is_a_prefix_of_what_is_trained_on(
    tokenizer: Tokenizer, chat_format: ChatFormat, contents: list[str]
) -> None:
    whole = encode_conversation(turns(*contents), chat_format=chat_format, tokenizer=tokenizer)
    end = 0
    for index in range(0, len(contents), 2):
        prompt = encode_prompt(turns(*contents[: index + 1]), chat_format=chat_format, tokenizer=tokenizer)
        assert prompt.tolist() == whole.tokens[: len(prompt)].tolist()
        # Between the prompt and the EOS of its answer all is trained, between that EOS and the next prompt nothing.
        assert not whole.trained[end : len(prompt)].any()
        end = len(prompt) + whole.tokens[len(prompt) :].tolist().index(tokenizer.eos_id) + 1
        assert (whole.trained[len(prompt) : end] == bool(contents[index + 1].strip())).all()
    assert end == len(whole.tokens)
    assert whole.tokens.tolist().count(tokenizer.bos_id) == 1
    assert whole.tokens.tolist().count(tokenizer.eos_id) == len(contents) // 2


@formats
@settings(max_examples=100, deadline=None)
@given(question=text, answer=text)
def test_the_ids_spell_the_text(tokenizer: Tokenizer, chat_format: ChatFormat, question: str, answer: str) -> None:
    whole = encode_conversation(turns(question, answer), chat_format=chat_format, tokenizer=tokenizer)
    (expected,) = segments(turns(question, answer), chat_format=chat_format)
    assert tokenizer.decode(whole.tokens.tolist()) == expected.replace("▁", " ")


def test_a_piece_that_would_span_the_prompts_end_is_cut(tmp_path: pathlib.Path) -> None:
    tokenizer = train_whole_lines(tmp_path, "bpe")
    alpaca = get_format("alpaca")
    (text,) = segments(turns("x", "yes"), chat_format=alpaca)
    assert "\nyes" in tokenizer.piece(tokenizer.encode(text)[-1])
    whole = encode_conversation(turns("x", "yes"), chat_format=alpaca, tokenizer=tokenizer)
    prompt = encode_prompt(turns("x"), chat_format=alpaca, tokenizer=tokenizer)
    assert tokenizer.decode(prompt.tolist()).endswith("### Response:\n")
    assert tokenizer.decode(whole.tokens[whole.trained].tolist()) == "yes"


def test_only_answers_and_their_eos_are_trained(tmp_path: pathlib.Path) -> None:
    tokenizer = train_tokenizer(CORPUS, tmp_path / "tokenizer.model", vocab_size=400)
    whole = encode_conversation(
        turns("Hi", "Hello you!", "Sort", "2 3"), chat_format=get_format("vicuna"), tokenizer=tokenizer
    )
    assert whole.tokens.dtype == np.int32
    assert whole.trained.dtype == np.bool_
    spoken = [tokenizer.piece(int(token)) for token in whole.tokens[whole.trained]]
    assert "".join(spoken) == "▁Hello▁you!</s>▁2▁3</s>"


def test_an_answer_that_says_nothing_is_not_trained(tokenizer: Tokenizer) -> None:
    whole = encode_conversation(turns("Hi", " \n"), chat_format=get_format("vicuna"), tokenizer=tokenizer)
    assert not whole.trained.any()


def test_a_system_turn_replaces_the_preamble_of_vicuna() -> None:
    spoken = [Turn("system", "You are terse."), *turns("Hi", "Yo")]
    assert segments(spoken, chat_format=get_format("vicuna")) == ["You are terse. USER: Hi ASSISTANT: Yo"]


@pytest.mark.parametrize("name", ["alpaca", "wizardlm_7b"])
def test_a_system_turn_is_refused_where_it_has_no_place(tokenizer: Tokenizer, name: str) -> None:
    spoken = [Turn("system", "You are terse."), *turns("Hi", "Yo")]
    with pytest.raises(ChatError, match=f"the {name} format has no place for a system turn: use vicuna"):
        encode_conversation(spoken, chat_format=get_format(name), tokenizer=tokenizer)


def test_turns_that_do_not_alternate_are_refused(tokenizer: Tokenizer) -> None:
    vicuna = get_format("vicuna")
    for spoken, message in [
        ([], "no user turn"),
        ([Turn("system", "s")], "no user turn"),
        ([Turn("assistant", "a")], "turn 0 is the assistant's where the user's is due"),
        ([Turn("user", "a"), Turn("user", "b")], "turn 1 is the user's where the assistant's is due"),
        ([Turn("user", "a"), Turn("system", "b")], "turn 1 is the system's"),
        (turns("a", "b", "c"), "ends with a user turn"),
    ]:
        with pytest.raises(ChatError, match=message):
            encode_conversation(spoken, chat_format=vicuna, tokenizer=tokenizer)
    with pytest.raises(ChatError, match="nothing to answer"):
        encode_prompt(turns("a", "b"), chat_format=vicuna, tokenizer=tokenizer)


def test_an_unknown_format_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ChatError, match="'vicunia': did you mean vicuna"):
        get_format("vicunia")
    with pytest.raises(ChatError, match="There are vicuna, alpaca, wizardlm_7b"):
        get_format("chatml")


@formats
def test_hugging_face_renders_and_tokenizes_the_same(tmp_path: pathlib.Path, chat_format: ChatFormat) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(CORPUS, tmp_path / "tokenizer.model", vocab_size=400)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    config["chat_template"] = chat_format.template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    spoken = turns('Hi "there" it\'s\n{{ x }}', "Hello\\n", "Sort: 3 2 é", "2 3")
    if chat_format.system == "replaces_preamble":
        spoken = [Turn("system", "Be 'nice'.\n"), *spoken]
    messages = [{"role": turn.role, "content": turn.content} for turn in spoken]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert text == "<s>" + "".join(part + "</s>" for part in segments(spoken, chat_format=chat_format))
    whole = encode_conversation(spoken, chat_format=chat_format, tokenizer=tokenizer)
    assert theirs.apply_chat_template(messages, return_dict=False) == whole.tokens.tolist()
    prompt = encode_prompt(spoken[:-1], chat_format=chat_format, tokenizer=tokenizer)
    ids = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert ids == prompt.tolist()


def test_templates_refuse_what_the_formats_refuse() -> None:
    jinja2 = pytest.importorskip("jinja2")

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment()
    for name in ("alpaca", "vicuna"):
        template = environment.from_string(get_format(name).template)
        messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
        with pytest.raises(ValueError, match="Turns must go"):
            template.render(messages=messages, bos_token="", eos_token="", raise_exception=refuse)
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ValueError, match="no place for a system turn"):
        environment.from_string(get_format("alpaca").template).render(
            messages=messages, bos_token="", eos_token="", raise_exception=refuse
        )
