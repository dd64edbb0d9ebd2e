"""What is trained on and what generation starts from are one text, in every format and with any tokenizer."""

import pathlib
import unicodedata

import jinja2
import numpy as np
import pytest
from chat_tokenizers import LLAMA3_SPECIAL, like_llama, like_llama3, like_qwen, train_whole_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.records import Turn
from wizard_jax.chat import (
    CHAT_FORMATS,
    ChatError,
    ChatFormat,
    check_tokenizer,
    encode_conversation,
    encode_prompt,
    end_id,
    get_format,
    segments,
)
from wizard_jax.tokenizer import Tokenizer

PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SPECIAL_TEXT = ["<s>", "</s>", "<unk>", *LLAMA3_SPECIAL]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [" ", "\n", ":", " x", "\nx", "Response:", "ASSISTANT:", "", "▁▁", "é", "[/INST]", *SPECIAL_TEXT]
)
KINDS = ("like LLaMA", "like Llama 3", "like Qwen", "bpe", "unigram")
OWN = {"llama3": "like Llama 3", "chatml": "like Qwen"}
"""The only tokenizers here that have the special tokens of a format."""
PAIRS = [
    pytest.param(kind, chat_format, id=f"{kind}-{chat_format.name}")
    for kind in KINDS
    for chat_format in CHAT_FORMATS.values()
    if OWN.get(chat_format.name, kind) == kind and (kind != "like Qwen" or not chat_format.has_bos)
]
pairs = pytest.mark.parametrize(("kind", "chat_format"), PAIRS)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "qwen").mkdir()
    made = [Tokenizer(file) for file in (like_llama(folder), like_llama3(folder), like_qwen(folder / "qwen"))]
    return dict(zip(KINDS, [*made, *(train_whole_lines(folder, kind) for kind in ("bpe", "unigram"))], strict=True))


@pytest.fixture(scope="module")
def tokenizer(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["like LLaMA"]


def turns(*contents: str) -> list[Turn]:
    return [Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]


def test_the_texts_are_the_published_ones() -> None:
    two = turns("Hi", "Hello!", "Bye", "See you.")
    assert segments(two, chat_format=get_format("vicuna")) == [
        f"{PREAMBLE} USER: Hi ASSISTANT: Hello!",
        "USER: Bye ASSISTANT: See you.",
    ]
    assert segments(two, chat_format=get_format("wizardlm")) == segments(two, chat_format=get_format("vicuna"))
    assert segments(two, chat_format=get_format("alpaca")) == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi\n\n### Response:Hello!",
        "### Instruction:\nBye\n\n### Response:See you.",
    ]
    assert segments(two, chat_format=get_format("llama2_chat")) == [
        "[INST] Hi [/INST] Hello! ",
        "[INST] Bye [/INST] See you. ",
    ]
    assert segments(turns("Hi", "Hello!"), chat_format=get_format("llama3")) == [
        "user",
        "\n\nHi",
        "assistant",
        "\n\nHello!",
    ]
    assert segments(two, chat_format=get_format("wizardlm_7b")) == [
        "Hi\n\n### Response:\nHello!",
        "Bye\n\n### Response:\nSee you.",
    ]


@pairs
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(text, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_every_prompt_is_a_prefix_of_what_is_trained_on(
    tokenizers: dict[str, Tokenizer], kind: str, chat_format: ChatFormat, contents: list[str]
) -> None:
    tokenizer = tokenizers[kind]
    whole = encode_conversation(turns(*contents), chat_format=chat_format, tokenizer=tokenizer)
    ends = end_id(chat_format, tokenizer)
    end = 0
    for index in range(0, len(contents), 2):
        prompt = encode_prompt(turns(*contents[: index + 1]), chat_format=chat_format, tokenizer=tokenizer)
        assert prompt.tolist() == whole.tokens[: len(prompt)].tolist()
        # Between the prompt and the end of its answer all is trained, between that and the next prompt nothing.
        assert not whole.trained[end : len(prompt)].any()
        end = len(prompt) + whole.tokens[len(prompt) :].tolist().index(ends) + 1
        assert (whole.trained[len(prompt) : end] == bool(contents[index + 1].strip())).all()
    assert end == len(whole.tokens)


@pairs
@settings(max_examples=60, deadline=None)
@given(question=text, answer=text)
def test_the_ids_spell_the_text(
    tokenizers: dict[str, Tokenizer], kind: str, chat_format: ChatFormat, question: str, answer: str
) -> None:
    tokenizer, said = tokenizers[kind], turns(question, answer)
    whole = encode_conversation(said, chat_format=chat_format, tokenizer=tokenizer)
    texts = segments(said, chat_format=chat_format)
    if kind == "like Qwen":
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    elif kind != "like Llama 3":
        texts = [text.replace("▁", " ") for text in texts]
    assert tokenizer.decode(whole.tokens.tolist()) == "".join(texts)


@pairs
def test_what_is_written_like_a_special_token_stays_text(
    tokenizers: dict[str, Tokenizer], kind: str, chat_format: ChatFormat
) -> None:
    tokenizer = tokenizers[kind]
    ids = {tokenizer.special_id(name) for name in SPECIAL_TEXT} - {None}
    plain = encode_conversation(turns("x", "y", "x", "y"), chat_format=chat_format, tokenizer=tokenizer)
    for sly in SPECIAL_TEXT:
        spoken = turns(f"x{sly}", sly, f"{sly}{sly}x", f"y {sly}")
        if chat_format.first_with_system is not None:
            spoken = [Turn("system", f"Say {sly}"), *spoken]
            plain = encode_conversation(
                [Turn("system", "z"), *turns("x", "y", "x", "y")], chat_format=chat_format, tokenizer=tokenizer
            )
        found = encode_conversation(spoken, chat_format=chat_format, tokenizer=tokenizer)
        special = [token for token in found.tokens.tolist() if token in ids]
        assert special == [token for token in plain.tokens.tolist() if token in ids]
        assert sly in tokenizer.decode(found.tokens.tolist())


def test_a_piece_that_would_span_the_prompts_end_is_cut(tmp_path: pathlib.Path) -> None:
    tokenizer = train_whole_lines(tmp_path, "bpe")
    alpaca = get_format("alpaca")
    (text,) = segments(turns("x", "yes"), chat_format=alpaca)
    assert ":yes" in tokenizer.piece(tokenizer.encode(text)[-1])
    whole = encode_conversation(turns("x", "yes"), chat_format=alpaca, tokenizer=tokenizer)
    prompt = encode_prompt(turns("x"), chat_format=alpaca, tokenizer=tokenizer)
    assert tokenizer.decode(prompt.tolist()).endswith("### Response:")
    assert tokenizer.decode(whole.tokens[whole.trained].tolist()) == "yes"


def test_only_answers_and_their_eos_are_trained(tokenizer: Tokenizer) -> None:
    whole = encode_conversation(
        turns("Hi", "Hello you!", "Sort", "2 3"), chat_format=get_format("vicuna"), tokenizer=tokenizer
    )
    assert whole.tokens.dtype == np.int32
    assert whole.trained.dtype == np.bool_
    spoken = [tokenizer.piece(int(token)) for token in whole.tokens[whole.trained]]
    assert "".join(spoken) == "▁Hello▁you!</s>▁2▁3</s>"


def test_the_end_of_a_turn_of_llama3_is_trained_and_ends_generation(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer, llama3 = tokenizers["like Llama 3"], get_format("llama3")
    whole = encode_conversation(turns("Hi", " Hello! "), chat_format=llama3, tokenizer=tokenizer)
    spoken = [tokenizer.piece(int(token)) for token in whole.tokens[whole.trained]]
    assert "".join(spoken) == "Hello!<|eot_id|>"
    assert end_id(llama3, tokenizer) == tokenizer.special_id("<|eot_id|>") != tokenizer.eos_id
    assert end_id(get_format("vicuna"), tokenizer) == tokenizer.eos_id


@pairs
def test_an_answer_that_says_nothing_is_not_trained(
    tokenizers: dict[str, Tokenizer], kind: str, chat_format: ChatFormat
) -> None:
    whole = encode_conversation(turns("Hi", " \n"), chat_format=chat_format, tokenizer=tokenizers[kind])
    assert not whole.trained.any()


def test_a_system_turn_stands_where_its_format_has_it() -> None:
    spoken = [Turn("system", "You are terse."), *turns("Hi", "Yo")]
    assert segments(spoken, chat_format=get_format("vicuna")) == ["You are terse. USER: Hi ASSISTANT: Yo"]
    assert segments(spoken, chat_format=get_format("llama2_chat")) == [
        "[INST] <<SYS>>\nYou are terse.\n<</SYS>>\n\nHi [/INST] Yo "
    ]
    assert "".join(segments(spoken, chat_format=get_format("llama3"))) == (
        "system\n\nYou are terse.user\n\nHiassistant\n\nYo"
    )


@pytest.mark.parametrize("name", ["alpaca", "wizardlm_7b"])
def test_a_system_turn_is_refused_where_it_has_no_place(tokenizer: Tokenizer, name: str) -> None:
    spoken = [Turn("system", "You are terse."), *turns("Hi", "Yo")]
    with pytest.raises(ChatError, match=f"the {name} format has no place for a system turn: use vicuna or wizardlm or"):
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
    with pytest.raises(ChatError, match="There are vicuna, wizardlm, wizardlm_7b, alpaca, llama2_chat, llama3"):
        get_format("mixtral")


def test_a_format_that_begins_with_bos_is_refused_where_there_is_none(tokenizers: dict[str, Tokenizer]) -> None:
    qwen = tokenizers["like Qwen"]
    assert qwen.bos_id is None
    for name in ("vicuna", "llama2_chat"):
        with pytest.raises(ChatError, match=rf"the {name} format begins with BOS, and .* without \(chatml\), or name"):
            encode_prompt(turns("a"), chat_format=get_format(name), tokenizer=qwen)
    ids = encode_prompt(turns("a"), chat_format=get_format("chatml"), tokenizer=qwen)
    assert ids[0] == qwen.special_id("<|im_start|>")


def test_a_tokenizer_without_the_formats_special_tokens_is_refused(
    tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    llama3, missing = get_format("llama3"), r"special tokens <\|start_header_id\|>, <\|end_header_id\|>, <\|eot_id\|>"
    with pytest.raises(ChatError, match=f"the llama3 format needs the {missing}"):
        check_tokenizer(llama3, tokenizer)
    with pytest.raises(ChatError, match=missing):
        encode_conversation(turns("a", "b"), chat_format=llama3, tokenizer=tokenizer)
    with pytest.raises(ChatError, match=missing):
        encode_prompt(turns("a"), chat_format=llama3, tokenizer=tokenizer)
    base = Tokenizer(like_llama3(tmp_path, special=LLAMA3_SPECIAL[:4]))
    with pytest.raises(ChatError, match=r"special tokens <\|eot_id\|>, which"):
        end_id(llama3, base)


def test_templates_refuse_what_the_formats_refuse() -> None:
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
