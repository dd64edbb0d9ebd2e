"""Ids and masks of every format are those of transformers' tokenizers with the published templates."""

from __future__ import annotations

import json
import pathlib
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import sentencepiece
from chat_references import TAKES_SYSTEM, TEMPLATES
from chat_tokenizers import like_llama, like_llama3, like_qwen, name_ends
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_gen.records import Turn
from wizard_jax.chat import CHAT_FORMATS, encode_conversation, encode_prompt, get_format, segments
from wizard_jax.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing, not of what is tested
    import transformers

Messages = list[dict[str, str]]


class SlowLlama:
    """LLaMA's tokenizer as its own code and transformers 4's slow one are: SentencePiece between special tokens."""

    def __init__(self, file: pathlib.Path, templates: Any) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self.templates = templates

    def apply_chat_template(self, messages: Messages, **settings: Any) -> list[int]:
        text = self.templates.apply_chat_template(messages, tokenize=False, **settings)
        special = {"<s>": 1, "</s>": 2}
        parts = [part for part in re.split("(</?s>)", text) if part]
        return [token for part in parts for token in ([special[part]] if part in special else self.pieces.encode(part))]


@dataclass(frozen=True)
class Pair:
    """The same tokenizer here and in transformers."""

    ours: Tokenizer
    theirs: Any

    def their_ids(self, messages: Messages, *, name: str, prompt: bool = False) -> list[int]:
        ids = self.theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=prompt, return_dict=False
        )
        return [int(token) for token in ids]

    def their_mask(self, messages: Messages, *, name: str) -> list[int]:
        """By `{% generation %}` and the characters that each token comes from."""
        found = self.theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], return_dict=True, return_assistant_tokens_mask=True
        )
        return [int(one) for one in found["assistant_masks"]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """tokenizer.model read as a LlamaTokenizer; Llama 3's tokenizer.json; the former saved as tokenizer.json."""
    spm = tmp_path_factory.mktemp("sentencepiece")
    like_llama(spm)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    (spm / "tokenizer_config.json").write_text(json.dumps(config))
    llama3 = tmp_path_factory.mktemp("llama3")
    like_llama3(llama3)
    name_ends(llama3, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    found = {
        "sentencepiece": Pair(Tokenizer(spm / "tokenizer.model"), transformers.AutoTokenizer.from_pretrained(spm)),
        "llama3": Pair(Tokenizer(llama3 / "tokenizer.json"), transformers.AutoTokenizer.from_pretrained(llama3)),
    }
    qwen = tmp_path_factory.mktemp("qwen")
    like_qwen(qwen)
    found["qwen"] = Pair(Tokenizer(qwen / "tokenizer.json"), transformers.AutoTokenizer.from_pretrained(qwen))
    spm_pair = found["sentencepiece"]
    found["slow"] = Pair(spm_pair.ours, SlowLlama(spm / "tokenizer.model", spm_pair.theirs))
    for name, loading in RESAVED.items():
        folder = tmp_path_factory.mktemp(name)
        loaded = transformers.AutoTokenizer.from_pretrained(spm, **loading)
        loaded.save_pretrained(folder)
        assert not (folder / "tokenizer.model").exists()
        found[name] = Pair(Tokenizer(folder / "tokenizer.json"), loaded)
    return found


RESAVED: dict[str, dict[str, bool]] = {
    "legacy": {"legacy": True},
    "not legacy": {"legacy": False},
    "no prefix space": {"add_prefix_space": False},
}
"""How transformers may have loaded a SentencePiece tokenizer before it saved it."""

SPM_FORMATS = [name for name, chat_format in CHAT_FORMATS.items() if not chat_format.special_tokens]
CASES = [
    *[(kind, name) for kind in ("slow", "sentencepiece") for name in SPM_FORMATS],
    *[("llama3", name) for name in (*SPM_FORMATS, "llama3")],
    ("qwen", "chatml"),
    *[(kind, name) for kind in RESAVED for name in ("vicuna", "llama2_chat")],
]


SAMPLES = ("Hi", " Hi", "Hi ", "\nHi\n", "  \n", "", "\t", "USER: x ASSISTANT: y", "[/INST]", "<<SYS>>", "a\r\nb", "'s")
SAMPLES += (
    "é日本🙂",
    "1234",
    "::",
    ")",
    "\n\n### Response:",
    "x\u2028",
    "\u00a0x\u00a0",
    "\u0085",
    "\x1cx",
    "don't STOP",
)
# transformers takes special tokens from what somebody says, which test_chat.py has never happen here.
SLY = re.compile(r"</?s>|<unk>|<\|")
words = st.sampled_from(SAMPLES) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=20
).filter(lambda text: not SLY.search(text))
conversations = st.lists(words, min_size=2, max_size=6).map(lambda said: said[: len(said) // 2 * 2])
systems = st.none() | words


def turns_of(said: list[str], system: str | None, *, name: str) -> list[Turn]:
    turns = [Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(said)]
    return [Turn("system", system), *turns] if system is not None and name in TAKES_SYSTEM else turns


def as_messages(turns: list[Turn]) -> Messages:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def expected(pair: Pair, turns: list[Turn], *, name: str) -> tuple[list[int], list[bool]] | None:
    """Ids and mask by prefix differences; None where a token of theirs spans the end of a prompt."""
    messages = as_messages(turns)
    ids = pair.their_ids(messages, name=name)
    mask = [False] * len(ids)
    for end in range(len(messages)):
        if messages[end]["role"] != "assistant":
            continue
        prompt = pair.their_ids(messages[:end], name=name, prompt=True)
        whole = pair.their_ids(messages[: end + 1], name=name)
        if ids[: len(prompt)] != prompt or ids[: len(whole)] != whole:
            return None
        mask[len(prompt) : len(whole)] = [bool(messages[end]["content"].strip())] * (len(whole) - len(prompt))
    return ids, mask


def check(pair: Pair, turns: list[Turn], *, name: str) -> bool:
    """Compares, and says whether theirs had one tokenization to compare with."""
    chat_format = get_format(name)
    whole = encode_conversation(turns, chat_format=chat_format, tokenizer=pair.ours)
    for end, turn in enumerate(turns):
        if turn.role == "user":
            prompt = encode_prompt(turns[: end + 1], chat_format=chat_format, tokenizer=pair.ours)
            assert prompt.tolist() == whole.tokens[: len(prompt)].tolist()
    first = next(end for end, turn in enumerate(turns) if turn.role == "user")
    prompt = encode_prompt(turns[: first + 1], chat_format=chat_format, tokenizer=pair.ours)
    assert prompt.tolist() == pair.their_ids(as_messages(turns[: first + 1]), name=name, prompt=True)
    reference = expected(pair, turns, name=name)
    if reference is None:
        return False
    assert (whole.tokens.tolist(), whole.trained.tolist()) == reference
    return True


@pytest.mark.parametrize(("kind", "name"), CASES)
@settings(max_examples=60, deadline=None)
@given(said=conversations, system=systems)
@example(said=["Hi", "Hello you!"], system=None)
@example(said=["Hi", "Hello you!", "Sort: 3 2", "2 3"], system="Be kind.")
@example(said=["  Hi\n", "\n Hello  "], system="\n Be kind. ")
@example(said=["", " "], system="")
def test_ids_and_masks_are_those_of_transformers(
    pairs: dict[str, Pair], kind: str, name: str, said: list[str], system: str | None
) -> None:
    turns = turns_of(said, system, name=name)
    if kind == "sentencepiece":
        # Where a text begins with a space, transformers 5 adds none of its own; LLaMA's code and "slow" do.
        assume(not any(text.startswith(" ") for text in segments(turns, chat_format=get_format(name))))
    check(pairs[kind], turns, name=name)


@pytest.mark.parametrize("name", CHAT_FORMATS)
@settings(max_examples=60, deadline=None)
@given(said=conversations, system=systems)
def test_the_template_of_an_export_writes_what_the_published_one_does(
    pairs: dict[str, Pair], name: str, said: list[str], system: str | None
) -> None:
    messages = as_messages(turns_of(said, system, name=name))
    for given_turns, prompt in [(messages, False), (messages[:-1], True)]:
        texts = [
            pairs["llama3"].theirs.apply_chat_template(
                given_turns, chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
            for template in (get_format(name).template, TEMPLATES[name])
        ]
        assert texts[0] == texts[1]


SPOKEN = ["Hi {{ x }}", "Hello 'you'!\\n", "Sort: 3 2 é 日本", "2 3 🙂"]


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] != "slow"])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_masks_are_those_of_the_templates_generation_blocks(
    pairs: dict[str, Pair], kind: str, name: str, system: str | None
) -> None:
    turns, pair = turns_of(SPOKEN, system, name=name), pairs[kind]
    assert check(pair, turns, name=name)
    whole = encode_conversation(turns, chat_format=get_format(name), tokenizer=pair.ours)
    assert whole.trained.tolist() == [bool(one) for one in pair.their_mask(as_messages(turns), name=name)]


def test_where_a_piece_of_theirs_spans_the_prompts_end_ours_is_what_is_prompted_with(pairs: dict[str, Pair]) -> None:
    """ ":)" is one word of Llama 3's, so Alpaca's text as one string is not what generation starts from."""
    pair, turns = pairs["llama3"], turns_of(["Hi", ") Hello"], None, name="alpaca")
    assert not check(pair, turns, name="alpaca")
    whole = encode_conversation(turns, chat_format=get_format("alpaca"), tokenizer=pair.ours)
    assert pair.ours.decode(whole.tokens[whole.trained].tolist()) == ") Hello"


@pytest.mark.parametrize("name", ["vicuna", "llama2_chat"])
def test_without_legacy_transformers_puts_no_space_after_special_tokens(pairs: dict[str, Pair], name: str) -> None:
    """The published models were trained with it, so SentencePiece files are read with it."""
    turns = turns_of(SPOKEN, None, name=name)
    ids = {
        kind: encode_conversation(turns, chat_format=get_format(name), tokenizer=pairs[kind].ours).tokens.tolist()
        for kind in ("sentencepiece", "legacy", "not legacy", "no prefix space")
    }
    assert ids["sentencepiece"] == ids["legacy"] != ids["not legacy"] == ids["no prefix space"]
    pieces = [pairs["sentencepiece"].ours.piece(token) for token in ids["sentencepiece"]]
    ends = [place for place, piece in enumerate(pieces[:-1]) if piece in ("<s>", "</s>") and pieces[place + 1] != "<s>"]
    assert all(pieces[place + 1].startswith("▁") for place in ends)


def test_meta_llama_2s_own_recipe_gives_the_same_ids(pairs: dict[str, Pair]) -> None:
    """llama/generation.py: each exchange encoded by itself, with BOS and EOS."""
    pieces = pairs["slow"].theirs.pieces
    exchanges = ["[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello! ", "[INST] Bye [/INST] See you. "]
    expected_ids = [token for text in exchanges for token in (1, *pieces.encode(text), 2)]
    turns = turns_of(["Hi", "Hello!", "Bye", "See you."], "Be kind.", name="llama2_chat")
    found = encode_conversation(turns, chat_format=get_format("llama2_chat"), tokenizer=pairs["slow"].ours)
    assert found.tokens.tolist() == expected_ids


def test_fastchats_recipe_gives_the_same_ids_and_mask(pairs: dict[str, Pair]) -> None:
    """fastchat/train/train.py: a turn's length by tokenizing it alone, an answer's from "ASSISTANT: " less two ids."""
    pieces = pairs["slow"].theirs.pieces
    rounds = [
        (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT: ",
            "Hello!",
        ),
        ("USER: Sort: 3 2 ASSISTANT: ", "2 3"),
    ]
    ids, mask = [1], [False]
    for given_text, answer in rounds:
        turn = pieces.encode(given_text + answer)
        untrained = 1 + len(pieces.encode(given_text)) - 2
        ids += [*turn, 2]
        mask += [place >= untrained for place in range(len(turn) + 1)]
    turns = turns_of(["Hi", "Hello!", "Sort: 3 2", "2 3"], None, name="vicuna")
    found = encode_conversation(turns, chat_format=get_format("vicuna"), tokenizer=pairs["slow"].ours)
    assert (found.tokens.tolist(), found.trained.tolist()) == (ids, mask)
