"""The simulated model: offline, free, repeatable, and honest about being a simulation.

It reads the same prompts as a hosted model. Tasks of the simulated world (`data_gen/world.py`) it rewrites and
answers exactly; any other text it rewrites in the shape of the operation (`simulated_text.py`) and answers with a
marked placeholder. How it judges answers and difficulty is in `simulated_judge.py`. At configured rates it misbehaves
as hosted models do.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple, cast, get_args

from data_gen import operations, world
from data_gen.config import Faults, Simulated
from data_gen.judging import wording
from data_gen.llm import simulated_judge, simulated_text
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.measure import contamination, difficulty

NAME = "simulated-llm"
PLACEHOLDER = f"[placeholder answer of {NAME}]"

ContentFault = Literal[
    "unchanged", "refusal", "copied_prompt", "empty", "truncated", "filtered", "invalid_input", "misjudged"
]


@dataclass(frozen=True)
class Effect:
    """What an operation does to a task of the simulated world."""

    adds: Literal["a step", "no step", "takes a step"]
    how: str
    rewrite: Callable[[world.Task, random.Random], world.Task | None]


def _adding(kind: str) -> Callable[[world.Task, random.Random], world.Task | None]:
    return lambda task, rng: world.with_added_step(task, rng, kind=kind)


def _other_form(task: world.Task, rng: random.Random) -> world.Task:
    return replace(task, form=rng.choice([form for form in world.FORMS[1:] if form != task.form]))


def _concrete_opener(task: world.Task, rng: random.Random) -> world.Task:
    return replace(task, opener=rng.choice([o for o in world.CONCRETE_OPENERS if o != task.opener]))


def _new_task(task: world.Task, rng: random.Random) -> world.Task:
    return replace(world.sample_task(rng, steps=len(task.steps)), form=task.form)


def _fewer_steps(task: world.Task, rng: random.Random) -> world.Task | None:
    if len(task.steps) == 1:
        others = (replace(task, items=world.sample_task(rng, steps=1).items) for _ in range(100))
        return next((other for other in others if other.items != task.items and world.is_valid(other)), None)
    options = [replace(task, steps=task.steps[:at] + task.steps[at + 1 :]) for at in range(len(task.steps))]
    valid = [option for option in options if world.is_valid(option)]
    return rng.choice(valid) if valid else None


def _other_opener(task: world.Task, rng: random.Random) -> world.Task | None:
    if task.opener not in world.PLAIN_OPENERS:  # the concrete ones do not mean the same
        return None
    return replace(task, opener=rng.choice([opener for opener in world.PLAIN_OPENERS if opener != task.opener]))


EFFECTS = MappingProxyType(
    {
        "add_constraints": Effect("a step", "a step that keeps only some items", _adding("filter")),
        "deepening": Effect("a step", "a step that changes the order", _adding("order")),
        "increase_reasoning_steps": Effect("a step", "a step that computes new items", _adding("value")),
        "concretizing": Effect("no step", "names where the list comes from", _concrete_opener),
        "complicate_input": Effect("no step", "writes the input as JSON, CSV or XML", _other_form),
        "in_breadth": Effect("no step", "a new task with as many steps", _new_task),
        "downward": Effect("takes a step", "leaves out a step; one alone gets another list", _fewer_steps),
        "paraphrase": Effect("no step", "an opener that means the same", _other_opener),
    }
)
"""Which operations make a task of the simulated world harder (difficulty is its number of steps)."""


class SimulatedChatModel:
    """A `ChatModel` in this process. The reply is a function of what is asked and the request's seed alone.

    How the asking is worded does not matter: the prompts can be improved without another word in what it writes.
    """

    def __init__(self, config: Simulated) -> None:
        self._faults = config.faults
        self._judges = config.judges

    async def complete(self, request: ChatRequest) -> ChatReply:
        *context, asked = (message.content for message in request.messages)
        task = _read(asked)
        rng = _random([context, *task], request.seed)
        fault = _drawn_fault(self._faults, rng)
        if isinstance(task, _Judging):
            text = simulated_judge.judged(task.question, judges=self._judges, fault=fault)
        else:
            text = _reply(task, fault, rng, judges=self._judges)
        finish: Literal["stop", "length", "filtered"] = "stop"
        if fault == "empty":
            text = rng.choice(("", "...", "?!"))
        elif fault == "truncated":
            text, finish = text[: len(text) // 2], "length"
        elif fault == "filtered":
            text, finish = "", "filtered"
        return ChatReply(
            text=text,
            finish_reason=finish,
            model=NAME,
            input_tokens=sum(len(message.content.split()) for message in request.messages),
            output_tokens=len(text.split()),
        )


class _Asked(NamedTuple):
    """What a prompt asks, whatever its wording."""

    kind: Literal["operation", "equal", "answer", "score", "rank", "verdict"]
    name: str
    texts: tuple[str, ...]
    words: int = 0


class _Judging(NamedTuple):
    """An answer, or two, to judge, or two instructions."""

    question: wording.Question


def _read(prompt: str) -> _Asked | _Judging:
    if (asked := operations.recognise(prompt)) is not None:
        texts = (asked.instruction, asked.other) if asked.kind == "equal" else (asked.instruction,)
        return _Asked(asked.kind, asked.name, texts, asked.words)
    if (scored := difficulty.recognise_score(prompt)) is not None:
        return _Asked("score", "", (scored,))
    if (ranked := difficulty.recognise_ranking(prompt)) is not None:
        return _Asked("rank", "", ranked)
    if (compared := contamination.recognise_verdict(prompt)) is not None:
        return _Asked("verdict", "", compared)
    if (question := wording.recognise(prompt)) is not None:
        return _Judging(question)
    return _Asked("answer", "plain", (prompt,))


def _random(key: Sequence[object], seed: int) -> random.Random:
    return random.Random(hashlib.sha256(json.dumps([seed, *key], default=vars).encode()).digest())


def _drawn_fault(faults: Faults, rng: random.Random) -> ContentFault | None:
    draw = rng.random()
    for kind in get_args(ContentFault):
        draw -= getattr(faults, kind)
        if draw < 0:
            return cast(ContentFault, kind)
    return None


def _reply(asked: _Asked, fault: ContentFault | None, rng: random.Random, *, judges: simulated_judge.Preference) -> str:
    first, *others = asked.texts
    match asked.kind:
        case "operation":
            return _rewrite(first, asked.name, fault, rng)
        case "equal":
            return "Equal" if _same_task(first, others[0]) else "Not Equal"
        case "answer":
            return _answer(first, asked.name, asked.words, fault)
        case "score":
            return str(simulated_judge.difficulty_of(first, judges=judges))
        case "rank":
            return difficulty.format_ranking(simulated_judge.difficulties_of(asked.texts, judges=judges))
        case "verdict":
            return "Same" if _same_task(first, others[0]) else "Different"


def _rewrite(instruction: str, operation: str, fault: ContentFault | None, rng: random.Random) -> str:
    if fault == "unchanged":
        return f"Please {instruction}"
    task = world.parse(instruction)
    if task is None:
        data = "invalid" if fault == "invalid_input" else "valid"
        rewritten = simulated_text.rewritten(instruction, operation=operation, rng=rng, data=data)
    elif fault == "invalid_input" and operation == "complicate_input":
        rewritten = world.render(replace(task, form="json"))[:-1]  # the list has no end
    else:
        changed = EFFECTS[operation].rewrite(task, rng)
        rewritten = world.render(changed) if changed else instruction
    return f"The rewritten prompt is: {rewritten}" if fault == "copied_prompt" else rewritten


def _answer(instruction: str, style: str, words: int, fault: ContentFault | None) -> str:
    """Tasks are answered exactly in every style: the result alone, the usual chain of lists, or a line for each step.

    Of these, "length" is the one that comes nearest; a placeholder is filled up to the words asked for.
    """
    if fault == "refusal":
        return "Sorry, but I can not help with that request."
    task = world.parse(instruction)
    if task is None:
        told = f"It answers only tasks of its own small world; this one has {len(instruction.split())} words."
        filling = ["and", "so", "on"] * (words // 3 + 1) if words else []
        held = f"{PLACEHOLDER} {told}".split(" ") + filling
        return " ".join(held[: max(words, len(PLACEHOLDER.split())) if words else len(held)])
    plain = world.answer(task)
    lines = [
        f"{world.STEPS[name].phrase}: {' '.join(items)}"
        for name, items in zip(task.steps, world.trace(task), strict=True)
    ]
    styles = {"brief": world.result(plain), "plain": plain, "detailed": "\n".join([*lines, plain])}
    if style == "length":
        return min(styles.values(), key=lambda text: abs(len(text.split()) - words))
    return styles[style]


def _same_task(first: str, second: str) -> bool:
    """Whether two instructions ask the same: equal words, politeness and the opener of a plain list aside."""

    def told(text: str) -> object:
        text = re.sub("^please ", "", simulated_text.plainly(text), flags=re.IGNORECASE)
        task = world.parse(text)
        if task and task.opener in world.PLAIN_OPENERS:
            return task.pair, task.form
        return text.lower().split()

    return told(first) == told(second)
