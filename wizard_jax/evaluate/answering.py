"""Answers of every model to every item: journalled before they are used, and never asked for twice.

Hosted models are asked side by side; a model of this project is opened when its turn comes, and closed before the next.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from configs.interrupt import StopFlag
from data_gen.evolve import model_name
from data_gen.llm.chat import (
    Ambiguous,
    BudgetSpent,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    RequestKey,
)
from data_gen.llm.journal import Journal
from data_gen.llm.stack import Stack
from data_gen.measure.asking import keyed_number
from data_gen.side_by_side import LOST_IN_A_ROW, RunError, all_done
from wizard_jax.evaluate.config import EvalConfig, Local, Participant
from wizard_jax.evaluate.items import Answer, Item
from wizard_jax.evaluate.local_chat import fingerprint, speaking
from wizard_jax.runs import OpenedModel

T = TypeVar("T")

_PER_PLACE = 2  # open items per request in flight: while one waits for the disk, another is ready
_MOST_OPEN = 2048


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A participant that can be asked: `name` is what requests call its model."""

    chat: ChatModel
    name: str
    at_once: int
    """So many items are under way at the same time."""
    opened: OpenedModel | None = None
    """Of a model of this project, without its weights."""


@dataclass
class Asking:
    """What an evaluation asks through: one journal, one budget, one way to stop."""

    config: EvalConfig
    journal: Journal
    stack: Stack
    stop: StopFlag

    @contextlib.asynccontextmanager
    async def open(self, participant: Participant, *, role: str) -> AsyncIterator[Asked]:
        """`role` is where it stands in the config, such as models.gemini."""
        if isinstance(participant, Local):
            async with speaking(participant, name=participant.path) as (chat, opened):
                journalled = self.journal.wrap(_Heeding(chat))
                at_once = _PER_PLACE * participant.rows
                yield Asked(chat=journalled, name=fingerprint(participant), at_once=at_once, opened=opened)
        else:
            at_once = min(_PER_PLACE * self.config.concurrency, _MOST_OPEN)
            yield Asked(chat=_Heeding(self.stack.models[role]), name=model_name(participant), at_once=at_once)

    async def each(self, pieces: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]], *, at_once: int) -> None:
        """Works on every piece, so many at once.

        Raises BudgetSpent, when what was in flight has come home; else as `all_done`.
        """
        waiting = iter(pieces)
        spent: list[BudgetSpent] = []

        async def worker() -> None:
            for piece in waiting:
                try:
                    await work(piece)
                except BudgetSpent as error:
                    spent.append(error)
                if spent:
                    return

        await all_done([worker() for _ in range(at_once)], stop=self.stop)
        if spent:
            raise spent[0]


@dataclass
class _Heeding:
    """A `ChatModel` that stops the run when nobody is there: many requests in a row gave up, with no reply between."""

    inner: ChatModel
    lost: int = field(default=0, init=False)

    async def complete(self, request: ChatRequest) -> ChatReply:
        try:
            reply = await self.inner.complete(request)
        except (NotSent, Ambiguous, Permanent) as error:
            if isinstance(error, Permanent) and error.scope != "unclear":
                raise
            self.lost += 1
            if self.lost >= LOST_IN_A_ROW:
                text = f"{self.lost} requests in a row were given up without an answer, the last one for: {error}"
                raise Permanent(text, scope="run") from error
            raise
        self.lost = 0
        return reply


GIVEN_UP = "given up: "
"""What the problem of an answer begins with that another start may bring."""


async def answers_of(
    items: Sequence[Item], *, asked: Mapping[str, Asked], asking: Asking, tell: Callable[[Answer], None]
) -> dict[str, dict[str, tuple[Answer, ...]]]:
    """What models say to each item, by model and item, as many answers as there are samples.

    What was given up is tried once more when all others are done.

    Raises as `Asking.each` does, and:
      RunError: every item of a model was given up, so there is nobody to evaluate.
    """
    found: dict[tuple[str, str, int], Answer] = {}

    async def one(piece: tuple[str, Item, int]) -> None:
        model, item, sample = piece
        answer = await _answer(item, sample, model=model, asked=asked[model], config=asking.config)
        if (model, item.id, sample) not in found:
            tell(answer)
        found[model, item.id, sample] = answer

    at_once = max((one.at_once for one in asked.values()), default=1)
    samples = range(asking.config.samples)
    pieces = list(itertools.product(asked, items, samples))
    await asking.each(pieces, one, at_once=at_once)
    again = [(model, item, n) for model, item, n in pieces if found[model, item.id, n].problem.startswith(GIVEN_UP)]
    await asking.each(again, one, at_once=at_once)
    for model in asked:
        problems = [found[model, item.id, n].problem for item in items for n in samples]
        if all(problem.startswith(GIVEN_UP) for problem in problems):
            raise RunError(
                f"every answer of models.{model} was {problems[-1]}. What was answered so far is saved: mend this and "
                "start the same command again"
            )
    return {model: {item.id: tuple(found[model, item.id, n] for n in samples) for item in items} for model in asked}


async def _answer(item: Item, sample: int, *, model: str, asked: Asked, config: EvalConfig) -> Answer:
    said: list[ChatReply] = []
    messages: list[Message] = []
    problem = ""
    # The first of several is the only one of one: asked once more with more samples, it comes from the journal.
    asker = f"{model}#{sample}" if sample else model
    for number, turn in enumerate(item.turns):
        messages.append(Message("user", turn))
        key = RequestKey(lineage=f"{asker}\n{item.id}", round=number, purpose="answer")
        request = ChatRequest(
            key=key,
            model=asked.name,
            messages=tuple(messages),
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=keyed_number(config.seed, key.lineage, key.round, key.purpose) % 2**31,
        )
        try:
            reply = await asked.chat.complete(request)
        except Permanent as error:
            if error.scope == "run":
                raise
            problem = f"refused for good: {error}"
            break
        except (NotSent, Ambiguous) as error:
            problem = f"{GIVEN_UP}{error}"
            break
        if reply.finish_reason in ("filtered", "unreadable"):
            problem = f"no text came: {reply.finish_reason}"
            break
        said.append(reply)
        messages.append(Message("assistant", reply.text))
    return Answer(
        item=item.id,
        model=model,
        texts=tuple(reply.text for reply in said),
        finish_reasons=tuple(reply.finish_reason for reply in said),
        problem=problem,
        sample=sample,
    )


def hosted(participants: Mapping[str, Participant]) -> dict[str, Any]:
    """Those that are asked over HTTP, or simulated, by role."""
    return {role: one for role, one in participants.items() if not isinstance(one, Local)}


def together(participants: Mapping[str, Participant]) -> list[list[str]]:
    """Hosted models all at once, and then each of this project's alone, for it takes memory."""
    remote = [name for name, one in participants.items() if not isinstance(one, Local)]
    own = [[name] for name, one in participants.items() if isinstance(one, Local)]
    return [remote, *own] if remote else own
