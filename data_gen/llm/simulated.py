"""The simulated model: offline, free, repeatable, and honest about being a simulation.

It reads the same prompts as a hosted model. Tasks of the simulated world (`data_gen/world.py`) it rewrites and
answers exactly; any other text it rewrites in the shape of the operation and answers with a marked placeholder.
At configured rates it misbehaves as hosted models do.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from data_gen import operations, world
from data_gen.config import Faults, Simulated
from data_gen.llm.chat import ChatReply, ChatRequest

NAME = "simulated-llm"
PLACEHOLDER = f"[placeholder answer of {NAME}]"

ContentFault = Literal["unchanged", "refusal", "copied_prompt", "empty", "truncated", "filtered"]


@dataclass(frozen=True)
class Effect:
    """What an operation does to a task of the simulated world."""

    adds: Literal["a step", "no step"]
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


EFFECTS = MappingProxyType(
    {
        "add_constraints": Effect("a step", "a step that keeps only some items", _adding("filter")),
        "deepening": Effect("a step", "a step that changes the order", _adding("order")),
        "increase_reasoning_steps": Effect("a step", "a step that computes new items", _adding("value")),
        "concretizing": Effect("no step", "names where the list comes from", _concrete_opener),
        "complicate_input": Effect("no step", "writes the input as JSON, CSV or XML", _other_form),
        "in_breadth": Effect("no step", "a new task with as many steps", _new_task),
    }
)
"""Which operations make a task of the simulated world harder (difficulty is its number of steps)."""

_GENERIC = MappingProxyType(
    {
        "add_constraints": "Keep the answer under one hundred words and name at least two sources for it.",
        "deepening": "Explain also why this holds, and what would change if the main assumption were false.",
        "concretizing": "Take as the concrete case a small bakery in a harbour town during its first winter.",
        "increase_reasoning_steps": "Work it out in numbered steps, and check each step against the one before it.",
        "complicate_input": 'Use this input as well:\n{"season": "winter", "visitors": [12, 7, 31], "open": true}',
        "in_breadth": "Compose a similar piece for readers who restore old clocks, with as much detail as before.",
    }
)


class SimulatedChatModel:
    """A `ChatModel` in this process. The reply is a function of the messages and the request's seed alone."""

    def __init__(self, config: Simulated) -> None:
        self._faults = config.faults

    async def complete(self, request: ChatRequest) -> ChatReply:
        prompt = "\n\n".join(message.content for message in request.messages)
        rng = _random(prompt, request.seed)
        asked = operations.recognise(request.messages[-1].content)
        fault = _drawn_fault(self._faults, rng)
        if asked is None:
            text = _answer(request.messages[-1].content, fault)
        elif asked.kind == "equal":
            text = "Equal" if _same_task(asked.instruction, asked.other) else "Not Equal"
        else:
            text = _rewrite(asked.instruction, asked.name, fault, rng)
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
            input_tokens=len(prompt.split()),
            output_tokens=len(text.split()),
        )


def _random(prompt: str, seed: int) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {prompt}".encode("utf-8", "surrogatepass")).digest())


def _drawn_fault(faults: Faults, rng: random.Random) -> ContentFault | None:
    kinds: tuple[ContentFault, ...] = (
        "unchanged",
        "refusal",
        "copied_prompt",
        "empty",
        "truncated",
        "filtered",
    )
    draw = rng.random()
    for kind in kinds:
        draw -= getattr(faults, kind)
        if draw < 0:
            return kind
    return None


def _rewrite(instruction: str, operation: str, fault: ContentFault | None, rng: random.Random) -> str:
    if fault == "unchanged":
        return f"Please {instruction}"
    task = world.parse(instruction)
    if task is not None:
        harder = EFFECTS[operation].rewrite(task, rng)
        rewritten = world.render(harder) if harder else instruction
    else:
        addition = _GENERIC[operation]
        rewritten = addition if operation == "in_breadth" else f"{instruction}\n{addition}"
        if operation == "in_breadth":
            rewritten += f" Begin from this subject: {' '.join(instruction.split()[:8])}"
    return f"The rewritten prompt is: {rewritten}" if fault == "copied_prompt" else rewritten


def _answer(instruction: str, fault: ContentFault | None) -> str:
    if fault == "refusal":
        return "Sorry, but I can not help with that request."
    task = world.parse(instruction)
    if task is not None:
        return world.answer(task)
    return f"{PLACEHOLDER} It answers only tasks of its own small world; this one has {len(instruction.split())} words."


def _same_task(first: str, second: str) -> bool:
    """Whether two instructions ask the same: equal words, politeness aside."""

    def words(text: str) -> list[str]:
        return text.lower().removeprefix("please ").split()

    return words(first) == words(second)
