"""Judges for tests: simulated ones that prefer as they are told, and one that says what a script has for a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from data_gen.config import Faults, Simulated
from data_gen.judging.wording import Question, recognise
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest
from data_gen.llm.simulated import SimulatedChatModel
from data_gen.measure.asking import Judge, together
from wizard_jax.evaluate.judging.calibration import Calibration, KnownTruth, calibrate, joined
from wizard_jax.evaluate.judging.judge import Panelist

NO_FAULTS = Faults()


class Scripted:
    """A `ChatModel` that says what `says` has for a question and the number of the attempt; it keeps the requests."""

    def __init__(self, says: Callable[[Question, int], str | Exception | ChatReply]) -> None:
        self.asked: list[ChatRequest] = []
        self._says = says

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        question = recognise(request.messages[-1].content)
        assert question is not None, "not a judge's prompt"
        said = self._says(question, request.key.round)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, ChatReply) else ChatReply(text=said, finish_reason="stop", model="scripted")


def panelist(model: ChatModel, *, name: str = "judge", seed: int = 0) -> Panelist:
    return Panelist(name=name, llm=Judge(model=model, name="any", seed=seed))


def simulated(
    judges: Literal["well", "first", "longer"] = "well", *, faults: Faults = NO_FAULTS, name: str = ""
) -> Panelist:
    return panelist(SimulatedChatModel(Simulated(judges=judges, faults=faults)), name=name or judges)


def calibrated(
    known: KnownTruth, *, judge: Panelist, asks: Literal["pairwise", "graded", "both"] = "both"
) -> Calibration:
    """What a judge says of all pairs."""

    async def all_pairs() -> Calibration:
        return joined(await together([calibrate(pair, judge=judge, asks=asks) for pair in known.pairs]))

    return asyncio.run(all_pairs())
