"""Rows of public instruction data sets -> conversations; which data set a row is from is told by its keys.

{"instruction": "Sort these.", "input": "3 1 2", "output": "1 2 3"}
    ->  user: "Sort these.\\n3 1 2"   assistant: "1 2 3"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_gen.readers.conversations import Conversation, RowError, conversation, role_of, shown, text_of
from data_gen.readers.oasst import from_export
from data_gen.records import Turn

SCHEMAS = """\
  Alpaca         {"instruction", "input", "output"}; so are WizardLM 70k and evol-codealpaca
  self-instruct  {"instruction", "instances": [{"input", "output"}, ...]}: a seed for each instance
  Dolly          {"instruction", "context", "response"}
  ShareGPT       {"conversations": [{"from", "value"}, ...]}; so are Vicuna, WizardLM V2 and SlimOrca
  messages       {"messages": [{"role", "content"}, ...]}; so is ultrachat_200k
  UltraChat      {"data": ["question", "answer", "question", ...]}
  OpenAssistant  {"message_tree_id", "message_id", "parent_id", "role", "text", "rank"}, one per message, or
                 {"message_tree_id", "prompt": {"role", "text", "replies": [...]}}: the best reply is followed
  OpenOrca       {"system_prompt", "question", "response"}
  FLAN           {"inputs", "targets"}
  Super-NaturalInstructions  {"Definition": [...], "Instances": [{"input", "output": [...]}, ...]}
  plain          {"instruction" or "prompt" or "question" or "query"}, if wanted with "input" or "context", with
                 "system_prompt" or "system", and an answer as "output" or "response" or "answer" or "completion\""""

UNKNOWN_SCHEMA = "unknown schema"

_INSTRUCTION_KEYS = ("instruction", "prompt", "question", "query", "inputs")
_INPUT_KEYS = ("input", "context")
_ANSWER_KEYS = ("output", "response", "answer", "completion", "targets")
_SYSTEM_KEYS = ("system_prompt", "system")
_SHOWN = 10

Reader = Callable[[Mapping[str, Any]], Iterator[Conversation]]


def conversations_of(row: Any) -> Iterator[Conversation]:
    """What one row holds: a conversation, or as many as it has instances; faults are among them, not raised."""
    try:
        if not isinstance(row, dict):
            raise RowError(f"not a JSON object but {type(row).__name__}")
        for one in _reader_of(row)(row):
            yield _unicode(one)
    except RowError as fault:
        yield Conversation(fault=str(fault))


def language_of(row: Any) -> str | None:
    """The language that a row, or the first message of its tree, says it is in."""
    if not isinstance(row, dict):
        return None
    found = row.get("lang")
    if found is None and isinstance(row.get("prompt"), dict):
        found = row["prompt"].get("lang")
    return found if isinstance(found, str) else None


def may_repeat(row: Any) -> bool:
    """Whether the row is of a data set that has every row twice: WizardLM V2 as uploaded again.

    Of no other is a repeated row left out: who repeats a seed may want it evolved twice.
    """
    return isinstance(row, dict) and {"idx", "conversations"} <= row.keys()


def _reader_of(row: Mapping[str, Any]) -> Reader:
    # A table has every column in every row: a key counts as there when it holds something.
    filled = {key for key, value in row.items() if value is not None}
    for there in (filled, row.keys()):
        for keys, reader in _READERS:
            if keys <= there:
                return reader
    names = [*map(shown, list(row)[:_SHOWN]), *["..."] * (len(row) > _SHOWN)]
    seen = ", ".join(names) or "(none)"
    raise RowError(f"{UNKNOWN_SCHEMA}, with the keys {seen}")


def _unicode(one: Conversation) -> Conversation:
    try:
        for turn in one.turns:
            turn.content.encode()
    except UnicodeEncodeError:
        return Conversation(fault="text that is not Unicode (half of a surrogate pair)")
    return one


# --- one instruction


def _from_plain(row: Mapping[str, Any]) -> Iterator[Conversation]:
    key = next(
        (key for key in _INSTRUCTION_KEYS if row.get(key) is not None),
        next((key for key in _INSTRUCTION_KEYS if key in row), "instruction"),
    )
    instruction = text_of(row, key)
    if not instruction:
        raise RowError(f"the instruction is empty (key {key!r})")
    if given := _first(row, _INPUT_KEYS):
        instruction = f"{instruction}\n{given}"
    system, answer = _first(row, _SYSTEM_KEYS), _first(row, _ANSWER_KEYS)
    turns = (Turn("system", system), Turn("user", instruction), Turn("assistant", answer))
    yield Conversation(tuple(turn for turn in turns if turn.content))


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((text for key in keys if (text := text_of(row, key))), "")


def _from_instances(row: Mapping[str, Any]) -> Iterator[Conversation]:
    instances = _objects(row, "instances")
    for instance in instances or [{}]:
        yield from _each(_from_plain, {"instruction": row.get("instruction"), **instance})


def _from_task(row: Mapping[str, Any]) -> Iterator[Conversation]:
    """A task of Super-NaturalInstructions: its definition above the input of each instance."""
    definition = row["Definition"]
    if isinstance(definition, str):
        definition = [definition]
    if not isinstance(definition, list) or not all(isinstance(one, str) for one in definition):
        raise RowError("'Definition' is not a list of texts")
    for instance in _objects(row, "Instances"):
        outputs = instance.get("output")
        answer = next((one for one in outputs if one), "") if isinstance(outputs, list) else outputs
        plain = {"instruction": "\n".join(definition), "input": instance.get("input"), "output": answer}
        yield from _each(_from_plain, plain)


def _each(reader: Reader, row: Mapping[str, Any]) -> Iterator[Conversation]:
    """One of the several that a row holds: its fault is not that of the others."""
    try:
        yield from reader(row)
    except RowError as fault:
        yield Conversation(fault=str(fault))


# --- conversations


_NAMES_IN_TURNS = (("from", "value"), ("role", "content"))


def _from_turns(key: str, who: str, said: str) -> Reader:
    """Reads the turns under `key`, which name the speaker under `who` and the text under `said`.

    Either list is also found in the wild with the names of the other.
    """

    def turn_of(turn: Mapping[str, Any]) -> Turn:
        speaker, text = next((names for names in _NAMES_IN_TURNS if turn.get(names[0]) is not None), (who, said))
        return Turn(role_of(turn.get(speaker), key=speaker), text_of(turn, text))

    def read(row: Mapping[str, Any]) -> Iterator[Conversation]:
        turns = [turn_of(turn) for turn in _objects(row, key)]
        if turns and turns[0].role != "system" and (system := _first(row, _SYSTEM_KEYS)):
            turns.insert(0, Turn("system", system))
        yield conversation(turns)

    return read


def _from_alternating(row: Mapping[str, Any]) -> Iterator[Conversation]:
    texts = row["data"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("'data' is not a list of texts")
    yield conversation([Turn("assistant" if n % 2 else "user", text.strip()) for n, text in enumerate(texts)])


def _objects(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = row[key]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise RowError(f"{key!r} is not a list of objects")
    return found


_READERS: tuple[tuple[frozenset[str], Reader], ...] = (
    (frozenset({"message_tree_id", "prompt"}), from_export),
    (frozenset({"conversations"}), _from_turns("conversations", "from", "value")),
    (frozenset({"messages"}), _from_turns("messages", "role", "content")),
    (frozenset({"Definition", "Instances"}), _from_task),
    (frozenset({"instances"}), _from_instances),
    *((frozenset({key}), _from_plain) for key in _INSTRUCTION_KEYS),
    (frozenset({"data"}), _from_alternating),
)
"""Of a row that has all keys of several, the first reads it."""
