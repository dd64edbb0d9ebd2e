"""The chat formats: one table, which both renders text here and writes the Jinja template of an exported model.

    name         system turn               what ends an answer   where it comes from
    vicuna       replaces the preamble     EOS                   FastChat, vicuna_v1.1
    wizardlm     as vicuna                 EOS                   WizardLM 13B, 30B and 70B
    wizardlm_7b  refused                   EOS                   WizardLM 7B
    alpaca       refused                   EOS                   Stanford Alpaca, WizardCoder, WizardMath
    llama2_chat  inside the first turn     EOS                   LLaMA-2-Chat
    llama3       a turn of its own         <|eot_id|>            Llama 3 Instruct
    chatml       a turn of its own         <|im_end|>            Qwen 2.5 and 3, without BOS

Where codes differ from one another, the code that trained the published models decides:

 - After a special token a SentencePiece tokenizer puts a space before the text ("</s>USER" is </s>, "▁USER"), as
   LLaMA's own code and the slow tokenizer of transformers do that FastChat and WizardLM were trained with. It is what
   transformers calls `legacy`. Without it the pieces after every special token are others.
 - FastChat finds the answers in the ids by tokenizing each turn again and taking two ids off, and leaves out a whole
   conversation where that does not add up. Here the same ids are trained (the answer from its leading space on, and
   the EOS), and always, also where an answer begins with a space or a newline.
 - LLaMA-2's answers end in a space before EOS, in Meta's code and in its template; no other format's do.
 - LLaMA-2 and Llama 3 strip the spaces and newlines around every turn, the others keep them.
 - Qwen 2.5 puts a system turn of its own where there is none, Qwen 3 does not, and nor does `chatml`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from configs.errors import UserError

Role = Literal["system", "user", "assistant"]


class ChatError(UserError):
    """A conversation or a format's name that cannot be rendered."""


@dataclass(frozen=True)
class Special:
    """A special token: 'bos' and 'eos' are the tokenizer's own, others are named as they are written."""

    token: str


@dataclass(frozen=True)
class Slot:
    """The place of what somebody says."""

    role: Role


@dataclass(frozen=True)
class Stripped:
    """Text without the spaces and newlines around it."""

    parts: tuple[str | Slot, ...]


Part = str | Special | Slot | Stripped
Parts = tuple[Part, ...]
Piece = str | Special
"""What is left of parts when the turns are filled in."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A conversation is `first`, `ask`, `answer`, then `later`, `ask`, `answer` for each further exchange."""

    name: str
    first: Parts
    """The first user turn, with what stands before it."""
    first_with_system: Parts | None
    """The same where there is a system turn; None: it has no place."""
    later: Parts
    """Any other user turn."""
    ask: Parts
    """Ends what generation starts from."""
    answer: Parts
    """What the model writes; the last part is the special token that ends it."""

    @property
    def end(self) -> Special:
        """The special token that ends an answer."""
        end = self.answer[-1]
        assert isinstance(end, Special), self.name
        return end

    @functools.cached_property  # asked for with every conversation
    def special_tokens(self) -> tuple[str, ...]:
        """Those that a tokenizer needs beside BOS and EOS."""
        return tuple(name for name in self._named if name not in ("bos", "eos"))

    @property
    def has_bos(self) -> bool:
        return "bos" in self._named

    @functools.cached_property
    def _named(self) -> tuple[str, ...]:
        lines = (self.first, self.first_with_system or (), self.later, self.ask, self.answer)
        return tuple(dict.fromkeys(part.token for line in lines for part in line if isinstance(part, Special)))

    @property
    def template(self) -> str:
        """The same lines as a Jinja chat template, as Hugging Face tokenizers carry it."""
        refuse = f"The {self.name} format has no place for a system turn."
        if self.first_with_system is None:
            with_system = f"{{{{- raise_exception({json.dumps(refuse)}) -}}}}"
        else:
            with_system = _jinja(self.first_with_system)
        return (
            f"{{#- {self.name} -#}}"  # tells apart formats of the same text
            "{%- set has_system = messages[0]['role'] == 'system' -%}"
            "{%- set turns = messages[1:] if has_system else messages -%}"
            "{%- for turn in turns -%}"
            "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
            "{{- raise_exception('Turns must go user, assistant, user, ...') -}}"
            "{%- elif turn['role'] == 'user' -%}"
            f"{{%- if loop.first and has_system -%}}{with_system}"
            f"{{%- elif loop.first -%}}{_jinja(self.first)}"
            f"{{%- else -%}}{_jinja(self.later)}{{%- endif -%}}"
            f"{{%- if add_generation_prompt or not loop.last -%}}{_jinja(self.ask)}{{%- endif -%}}"
            f"{{%- else -%}}{_jinja(self.answer)}{{%- endif -%}}"
            "{%- endfor -%}"
        )


def fill(parts: Parts, **said: str) -> list[Piece]:
    """Parts with the turns filled in by role: texts, none beside another, and special tokens."""
    pieces: list[Piece] = []
    for part in parts:
        piece = part if isinstance(part, Special) else _text(part, said)
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _text(part: str | Slot | Stripped, said: Mapping[str, str]) -> str:
    match part:
        case str():
            return part
        case Slot(role):
            return said[role]
        case Stripped(parts):
            return "".join(_text(inner, said) for inner in parts).strip()


def _jinja(parts: Parts) -> str:
    """An expression statement that writes `parts`; the turn at hand is `turn`."""
    return f"{{{{- {' + '.join(_expressions(parts)) or repr('')} -}}}}"


def _expressions(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        match part:
            case str():
                yield json.dumps(part)
            case Special("bos" | "eos" as own):
                yield f"{own}_token"
            case Special(token):
                yield json.dumps(token)
            case Slot("system"):
                yield "messages[0]['content']"
            case Slot():
                yield "turn['content']"
            case Stripped(inner):
                yield f"({' + '.join(_expressions(inner))})|trim"


BOS, EOS = Special("bos"), Special("eos")
SYSTEM, USER, ANSWER = Slot("system"), Slot("user"), Slot("assistant")

# lm-sys/FastChat, fastchat/conversation.py (vicuna_v1.1) and fastchat/train/train.py.
_VICUNA_PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_VICUNA = ChatFormat(
    name="vicuna",
    first=(BOS, f"{_VICUNA_PREAMBLE} USER: ", USER),
    first_with_system=(BOS, SYSTEM, " USER: ", USER),
    later=("USER: ", USER),
    ask=(" ASSISTANT:",),
    answer=(" ", ANSWER, EOS),
)

# nlpxucan/WizardLM, training/src/train_freeform_multiturn.py and README.md (13B, 30B, 70B): vicuna_v1.1.
_WIZARDLM = dataclasses.replace(_VICUNA, name="wizardlm")

# nlpxucan/WizardLM, WizardLM/src/inference_wizardlm.py; its train_freeform.py has no newline after "Response:".
_WIZARDLM_7B = ChatFormat(
    name="wizardlm_7b",
    first=(BOS, USER),
    first_with_system=None,
    later=(USER,),
    ask=("\n\n### Response:\n",),
    answer=(ANSWER, EOS),
)

# tatsu-lab/stanford_alpaca, train.py (PROMPT_DICT, prompt_no_input); it has single turns, the later ones are ours.
_ALPACA = ChatFormat(
    name="alpaca",
    first=(
        BOS,
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n",
        USER,
    ),
    first_with_system=None,
    later=("### Instruction:\n", USER),
    ask=("\n\n### Response:",),
    answer=(ANSWER, EOS),
)

# meta-llama/llama, llama/generation.py (chat_completion): BOS and EOS around every exchange, no default system turn.
_LLAMA2_CHAT = ChatFormat(
    name="llama2_chat",
    first=(BOS, "[INST] ", Stripped((USER,)), " [/INST]"),
    first_with_system=(BOS, "[INST] ", Stripped(("<<SYS>>\n", SYSTEM, "\n<</SYS>>\n\n", USER)), " [/INST]"),
    later=(BOS, "[INST] ", Stripped((USER,)), " [/INST]"),
    ask=(),
    answer=(" ", Stripped((ANSWER,)), " ", EOS),
)


def _llama3_header(role: Role) -> Parts:
    return (Special("<|start_header_id|>"), role, Special("<|end_header_id|>"), "\n\n")


def _llama3_turn(slot: Slot) -> Parts:
    return (*_llama3_header(slot.role), Stripped((slot,)), Special("<|eot_id|>"))


# meta-llama/llama3, llama/tokenizer.py (ChatFormat); Llama 3.1 and later put a system turn with dates before it.
_LLAMA3 = ChatFormat(
    name="llama3",
    first=(BOS, *_llama3_turn(USER)),
    first_with_system=(BOS, *_llama3_turn(SYSTEM), *_llama3_turn(USER)),
    later=_llama3_turn(USER),
    ask=_llama3_header("assistant"),
    answer=(Stripped((ANSWER,)), Special("<|eot_id|>")),
)


def _chatml_turn(slot: Slot) -> Parts:
    return (Special("<|im_start|>"), f"{slot.role}\n", slot, Special("<|im_end|>"), "\n")


# Qwen/Qwen3-8B, tokenizer_config.json; the newline after an answer belongs to the turn that follows it.
_CHATML = ChatFormat(
    name="chatml",
    first=_chatml_turn(USER),
    first_with_system=(*_chatml_turn(SYSTEM), *_chatml_turn(USER)),
    later=("\n", *_chatml_turn(USER)),
    ask=(Special("<|im_start|>"), "assistant\n"),
    answer=(ANSWER, Special("<|im_end|>")),
)

CHAT_FORMATS: Mapping[str, ChatFormat] = MappingProxyType(
    {one.name: one for one in (_VICUNA, _WIZARDLM, _WIZARDLM_7B, _ALPACA, _LLAMA2_CHAT, _LLAMA3, _CHATML)}
)


def get_format(name: str) -> ChatFormat:
    """Raises ChatError: there is no such format; names the nearest."""
    if name in CHAT_FORMATS:
        return CHAT_FORMATS[name]
    near = difflib.get_close_matches(name.lower(), CHAT_FORMATS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ChatError(f"unknown chat format {name!r}: {hint}There are {', '.join(CHAT_FORMATS)}.")
