"""A file of prompts answered into a file of answers, row for row, which goes on where it stopped.

    prompts.jsonl   {"prompt": "Sort the list."}  or  {"messages": [{"role": "user", "content": "Sort the list."}]}
    answers.jsonl   the same row with "answer" and "ended" (stop, length), or with "not_answered": why

Beside the answers stands what made them (`answers.jsonl.made_by.json`), so that no two models' answers mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import naming, replacing, write_atomically
from configs.interrupt import stop_flag
from data_gen.records import Turn
from wizard_jax.generate.engine import Ask, Engine, Tokens, bucket
from wizard_jax.generate.sampler import continued
from wizard_jax.generate.sampling import Sampling
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.text import TextStream
from wizard_jax.progress import Progress

FORMAT = 1
MADE_BY = ".made_by.json"
OURS = ("answer", "ended", "not_answered")
_ROLES = ("system", "user", "assistant")


class PromptError(UserError):
    """A file of prompts that can not be read, or one of answers that something else made."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of the rows of a file of answers."""

    answered: int
    cut: int
    """By max_new_tokens; among the answered."""
    not_answered: int


def answer_file(
    speaker: Speaker,
    prompts: Path,
    out: Path,
    *,
    sampling: Sampling,
    stop: Sequence[str] = (),
    rows: int,
    made_by: Mapping[str, Any],
    progress: Progress,
) -> Counts:
    """Answers what `out` lacks, `rows` at a time; each is written as soon as all before it are.

    `made_by` says what model this is. Raises:
      PromptError: rows that are no prompts (all of them are looked at first), or answers of something else in `out`.
      Interrupted: told to stop; what is written is whole.
    """
    given, digest = _read(prompts)
    told = {"format": FORMAT, **made_by, "sampling": asdict(sampling), "stop": list(stop), "prompts_sha256": digest}
    done = _begun(out, given, told)
    asks, refused = _asks(speaker, given, sampling, first=done)
    with stop_flag() as flag, naming(out), out.open("a", encoding="utf-8") as stream:
        flag.raise_if_set()
        ready: dict[int, dict[str, Any]] = {number: {"not_answered": why} for number, why in refused.items()}
        progress(done, len(given), {})
        for ended in _answers(speaker, asks, rows=rows):
            for number, tokens, why in ended:
                ready[number] = _answer(speaker, tokens, why, stop=stop)
            before = done
            while done in ready:
                stream.write(_line({**given[done], **ready.pop(done)}))
                done += 1
            stream.flush()
            if done > before:
                progress(done, len(given), {})
            flag.raise_if_set()
    return _count(out)


def _answers(speaker: Speaker, asks: Mapping[int, Ask], *, rows: int) -> Iterator[list[tuple[int, Tokens, str]]]:
    """`continued`, by the rows' numbers in the file; begins with nothing, for rows that are refused."""
    yield []
    if not asks:
        return
    longest = max(len(ask.prompt) + ask.sampling.max_new_tokens for ask in asks.values())
    engine = Engine(
        speaker.params,
        config=speaker.config,
        rows=rows,
        length=bucket(longest, most=speaker.config.max_positions),
    )
    numbers = list(asks)
    for ended in continued(engine, iter(asks.values())):
        yield [(numbers[index], tokens, why) for index, tokens, why in ended]


def _asks(
    speaker: Speaker, given: Sequence[Mapping[str, Any]], sampling: Sampling, *, first: int
) -> tuple[dict[int, Ask], dict[int, str]]:
    """What is asked from row `first` on, and why a row is not."""
    asks, refused = {}, {}
    most = speaker.config.max_positions
    for number in range(first, len(given)):
        try:
            prompt = speaker.prompt_of_turns(_turns(given[number]))
        except UserError as error:
            if speaker.chat_format is None:
                raise
            refused[number] = str(error)
            continue
        if len(prompt) + sampling.max_new_tokens > most:
            refused[number] = (
                f"the prompt has {len(prompt)} tokens; with max_new_tokens = {sampling.max_new_tokens} it would pass "
                f"the model's {most} positions"
            )
            continue
        asks[number] = Ask(prompt=prompt, sampling=sampling, place=number, ends=speaker.ends)
    return asks, refused


def _answer(speaker: Speaker, tokens: Tokens, why: str, *, stop: Sequence[str]) -> dict[str, Any]:
    stream = TextStream(speaker.tokenizer, stop=stop)
    text = stream.push(tokens) + stream.finish()
    return {"answer": text, "ended": "stop" if stream.stopped else why}


def _turns(row: Mapping[str, Any]) -> list[Turn]:
    if "prompt" in row:
        return [Turn("user", row["prompt"])]
    return [Turn(message["role"], message["content"]) for message in row["messages"]]


def _read(file: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows, and the SHA-256 of the file. Raises PromptError, which names the first rows that are none."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PromptError(f"{file}: {error.strerror}; --prompts takes a file of one JSON object a line") from None
    rows, wrong = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        row, problem = _row(line)
        if problem:
            wrong.append(f"line {number}: {problem}")
        rows.append(row)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise PromptError(f"{file}: {'; '.join(wrong[:5])}{more}")
    if not rows:
        raise PromptError(f'{file} holds no prompts: write one a line, as in {{"prompt": "Sort the list."}}')
    return rows, hashlib.sha256(data).hexdigest()


def _row(line: bytes) -> tuple[dict[str, Any], str]:
    """A row, and what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "no JSON"
    try:
        _line(row).encode()
    except UnicodeEncodeError:
        return {}, "half of a surrogate pair, which no file can hold"
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        return {}, 'no object with either "prompt" or "messages"'
    taken = [name for name in OURS if name in row]
    if taken:
        return {}, f'has a field "{taken[0]}", which an answer would overwrite: rename it'
    if "prompt" in row:
        return row, "" if isinstance(row["prompt"], str) else '"prompt" is no text'
    messages = row["messages"]
    are_messages = isinstance(messages, list) and all(
        isinstance(one, dict) and one.get("role") in _ROLES and isinstance(one.get("content"), str) for one in messages
    )
    return row, "" if are_messages else f'"messages" is no list of {{"role": {" | ".join(_ROLES)}, "content": text}}'


def _begun(out: Path, given: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> int:
    """How many rows `out` has, once it is made or is seen to be of the same making; a line that was cut is removed."""
    mark = out.with_name(out.name + MADE_BY)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, json.dumps(told, indent=1) + "\n")
        return 0
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise PromptError(
            f"{out} is there, and {mark.name} beside it does not say what made it: choose another --out"
        ) from None
    changed = [name for name in {**found, **told} if found.get(name) != told.get(name)]
    if changed:
        lines = "".join(f"\n  {name}: {found.get(name)} -> {told.get(name)}" for name in changed)
        raise PromptError(
            f"{out} was made otherwise (there -> now):{lines}\nChoose another --out, or give what it was made with"
        )
    whole = out.read_bytes().split(b"\n")[:-1]
    for number, (line, row) in enumerate(zip(whole, given, strict=False)):
        kept = _stored(line)
        if _line({name: value for name, value in kept.items() if name not in OURS}) != _line(row):  # NaN is not NaN
            raise PromptError(f"{out}: line {number + 1} is not the answer to its prompt: choose another --out")
    if out.stat().st_size > sum(len(line) + 1 for line in whole):
        with replacing(out) as file:
            file.writelines(line.decode() + "\n" for line in whole)
    return len(whole)


def _stored(line: bytes) -> dict[str, Any]:
    """Of a line that holds none: {}."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}


def _count(out: Path) -> Counts:
    rows = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    return Counts(
        answered=sum("answer" in row for row in rows),
        cut=sum(row.get("ended") == "length" for row in rows),
        not_answered=sum("not_answered" in row for row in rows),
    )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
