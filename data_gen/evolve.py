"""One lineage through its rounds: rewrite, eliminate, answer, and start the next round from what survived.

Pure but for the `ChatModel` it is given: every random choice draws from a key made of (seed, lineage, round,
purpose), so a lineage comes out the same whatever else runs beside it. Evol-Instruct: WizardLM (arXiv
2304.12244), section 3.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

from data_gen import eliminate, input_formats, world
from data_gen.choice import Plan, draw, lineage_stops
from data_gen.config import EvolveConfig, Provider, Simulated
from data_gen.eliminate import Reason
from data_gen.llm import simulated
from data_gen.llm.chat import (
    Ambiguous,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    NotSent,
    Permanent,
    Purpose,
    RequestKey,
)
from data_gen.measure import asking
from data_gen.measure.asking import Judge
from data_gen.measure.difficulty import score
from data_gen.operations import OPERATIONS, Operation, equal_prompt
from data_gen.records import PROPENSITY_DIGITS, Record, Rejected, Turn


@dataclass(frozen=True)
class Lineage:
    """What became of one seed: its records in the order of rounds, and every candidate that was dropped."""

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]

    def to_json(self) -> str:
        return json.dumps(self, default=vars, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        records = (
            {**record, "turns": tuple(Turn(**turn) for turn in record["turns"]), "flags": tuple(record["flags"])}
            for record in data["records"]
        )
        return cls(
            records=tuple(Record(**record) for record in records),
            rejected=tuple(Rejected(**rejected) for rejected in data["rejected"]),
        )

    @classmethod
    def of(cls, outcomes: Sequence[Record | Rejected]) -> Self:
        """A lineage of what its rounds came to."""
        return cls(
            records=tuple(outcome for outcome in outcomes if isinstance(outcome, Record)),
            rejected=tuple(outcome for outcome in outcomes if isinstance(outcome, Rejected)),
        )


async def evolve_lineage(seed: Record, *, model: ChatModel, config: EvolveConfig, plan: Plan | None = None) -> Lineage:
    """What all rounds of a seed come to; see `rounds_of`."""
    return Lineage.of([outcome async for outcome in rounds_of(seed, model=model, config=config, plan=plan)])


async def rounds_of(
    seed: Record, *, model: ChatModel, config: EvolveConfig, plan: Plan | None = None
) -> AsyncGenerator[Record | Rejected, None]:
    """Answers a seed and rewrites it in every round of the plan (without one: uniform choice in `config.rounds`).

    A candidate that fails is dropped, and the instruction goes into the next round unchanged, with a newly drawn
    operation. A seed whose answer is dropped brings no record, but its instruction still evolves, for nothing
    was wrong with it; the `parent` of its first rewrite is then found among the rejected.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    plan = plan or Plan.uniform(config.operations, config.rounds)
    current = replace(seed, steps=world.count_steps(seed.instruction))
    if config.answer_seeds == "keep" and seed.answer:
        yield current
    else:
        current = replace(current, turns=(*seed.context, Turn("user", seed.instruction)))
        yield await answered(current, current.instruction, by=answerer_of(config), model=model, sampling=config)
    judge = judge_of(config, model)
    difficulty: float | None = None  # of the current instruction, where it was measured
    for round_ in range(1, plan.rounds + 1):
        outcome = await _evolved(current, round_=round_, model=model, config=config, plan=plan)
        yield outcome
        if isinstance(outcome, Rejected):
            continue
        if config.stop == "lineage" and round_ < plan.rounds:
            before = (await score(current, judge=judge))[0] if difficulty is None else difficulty
            difficulty = (await score(outcome, judge=judge))[0]
            gain = None if before is None or difficulty is None else difficulty - before
            if lineage_stops(gain, margin=config.pilot.margin):
                return
        current = outcome


class Sampling(Protocol):
    """How replies are asked for and which of them are dropped: what `EvolveConfig` and `AnswerConfig` share."""

    @property
    def seed(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def eliminate(self) -> tuple[str, ...]: ...


def judge_of(config: EvolveConfig, model: ChatModel) -> Judge:
    """Whoever scores difficulty in this run."""
    name = model_name(config.judge or config.llm)
    return Judge(model=model, name=name, seed=config.seed, max_tokens=config.max_tokens)


def answerer_of(config: EvolveConfig) -> str:
    """The name of the model that answers in this run."""
    return model_name(config.answerer or config.llm)


def model_name(provider: Provider) -> str:
    """What a provider's server calls its model."""
    return simulated.NAME if isinstance(provider, Simulated) else provider.model


def drawn_operation(plan: Plan, *, seed: int, source: str, lineage: str, round_: int) -> tuple[Operation, float]:
    """The operation that rewrites a lineage in a round, and the probability with which it was drawn."""
    rng = random.Random(keyed_number(seed, lineage, round_, "operation"))
    name, propensity = draw(plan, source=source, round_=round_, rng=rng)
    return OPERATIONS[name], round(propensity, PROPENSITY_DIGITS)


def drawn_model(config: EvolveConfig, *, lineage: str, round_: int) -> str:
    """The model that rewrites a lineage in a round: each of the mixture by its weight."""
    if config.mixture is None:
        return model_name(config.llm)
    rng = random.Random(keyed_number(config.seed, lineage, round_, "model"))
    return rng.choices(config.mixture.models, config.mixture.weights)[0]


def keyed_number(seed: int, lineage: str, round_: int, purpose: str) -> int:
    """What every random choice of a lineage draws from."""
    # Without the 0, all draws would be others than those of version 0.1.
    return asking.keyed_number(seed, lineage, round_, purpose, 0)


async def _evolved(
    parent: Record, *, round_: int, model: ChatModel, config: EvolveConfig, plan: Plan
) -> Record | Rejected:
    """One round: the parent's instruction rewritten and answered, or why not."""
    operation, propensity = drawn_operation(
        plan, seed=config.seed, source=parent.source, lineage=parent.lineage, round_=round_
    )
    ask = _Asking(parent.lineage, round_, model, config)
    rewriter = drawn_model(config, lineage=parent.lineage, round_=round_)
    # Earlier turns are sent along, for a follow-up ("now make it shorter") means nothing without them.
    heard = await ask("evolve", operation.prompt(parent.instruction), to=rewriter, context=parent.context)
    candidate = operation.parse(heard.text)
    reason = heard.reason or _fault_in_rewrite(candidate, parent=parent.instruction, by=operation, config=config)
    if reason is None and operation.judged_by in config.eliminate:
        verdict = await ask(
            "judge", equal_prompt(parent.instruction, candidate), to=model_name(config.judge or config.llm)
        )
        reason = verdict.reason or _judged(verdict.text, by=operation)
        if reason and reason.rule not in ("no_gain", "changed_meaning"):
            reason = reason._replace(evidence=f"rule 1's judge: {reason.evidence}")
    if reason is not None:
        return Rejected(parent.lineage, round_, operation.name, *reason, instruction=candidate, source=parent.source)
    record = replace(
        parent,
        id=f"{parent.lineage}/{round_}",
        turns=(*parent.context, Turn("user", candidate)),
        parent=parent.id,
        round=round_,
        depth=parent.depth + (operation.kind == "depth"),
        operation=operation.name,
        steps=world.count_steps(candidate),
        evolver=heard.model,
        propensity=propensity,
        words_added=input_formats.words_added(candidate, parent=parent.instruction),
    )
    return await answered(record, candidate, by=answerer_of(config), model=model, sampling=config)


async def answered(record: Record, prompt: str, *, by: str, model: ChatModel, sampling: Sampling) -> Record | Rejected:
    """The record, which ends with its instruction, with the answer that the model named gives to the prompt.

    Where the answer is dropped: why. The prompt is the instruction, or one that says in what style to answer it.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    ask = _Asking(record.lineage, record.round, model, sampling)
    heard = await ask("answer", prompt, to=by, context=record.context)
    answer = heard.text.strip()
    reason = heard.reason or _fault_in_answer(answer, rules=sampling.eliminate)
    if reason is None:
        return replace(record, turns=(*record.turns, Turn("assistant", answer)), model=heard.model)
    return Rejected(
        record.lineage,
        record.round,
        record.operation,
        *reason,
        instruction=record.instruction,
        answer=answer,
        source=record.source,
    )


def _judged(verdict: str, *, by: Operation) -> Reason | None:
    """Rule 1: an operation changes what is asked, but for one that is there to leave it as it is."""
    return eliminate.changed_meaning(verdict) if by.judged_by == "changed_meaning" else eliminate.no_gain(verdict)


def _fault_in_rewrite(candidate: str, *, parent: str, by: Operation, config: EvolveConfig) -> Reason | None:
    """What can be seen without asking the judge."""
    if not candidate:
        return Reason("empty_instruction", "the reply holds no instruction")
    found = [
        eliminate.refused_rewrite(candidate, parent=parent),
        eliminate.copied_prompt(candidate, parent=parent),
        eliminate.identical(candidate, parent=parent),
    ]
    if by.name == "complicate_input" and "invalid_input" in config.eliminate:
        found.append(input_formats.check_added_input(candidate, parent=parent))
    if by.kind == "depth" and "word_count" in config.eliminate:
        found.append(eliminate.word_count(input_formats.words_added(candidate, parent=parent)))
    return next((reason for reason in found if reason and reason.rule in config.eliminate), None)


def _fault_in_answer(answer: str, *, rules: Sequence[str]) -> Reason | None:
    if not answer:  # with every rule off too: an answer that is not there trains nothing
        return Reason("empty_answer", "the reply is empty")
    found = (eliminate.refusal(answer), eliminate.empty_answer(answer))
    return next((reason for reason in found if reason and reason.rule in rules), None)


class _Heard(NamedTuple):
    """A reply's text and the model that wrote it; with a reason where the reply can not be used."""

    text: str
    model: str = ""
    reason: Reason | None = None


@dataclass(frozen=True)
class _Asking:
    """Sends the requests of one lineage in one round."""

    lineage: str
    round_: int
    model: ChatModel
    sampling: Sampling

    async def __call__(self, purpose: Purpose, prompt: str, *, to: str, context: Sequence[Turn] = ()) -> _Heard:
        sampling = self.sampling
        request = ChatRequest(
            key=RequestKey(self.lineage, self.round_, purpose),
            model=to,
            messages=(*(Message(turn.role, turn.content) for turn in context), Message("user", prompt)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            # 31 bits: the largest seed that every provider takes.
            seed=keyed_number(sampling.seed, self.lineage, self.round_, purpose) % 2**31,
        )
        try:
            reply = await self.model.complete(request)
        except Permanent as error:
            if error.scope == "run":
                raise
            return _Heard("", reason=Reason("gave_up" if error.scope == "unclear" else "refused_request", str(error)))
        except (NotSent, Ambiguous) as error:
            return _Heard("", reason=Reason("gave_up", f"after {sampling.max_attempts} attempts: {error}"))
        return self._heard(reply)

    def _heard(self, reply: ChatReply) -> _Heard:
        match reply.finish_reason:
            case "stop" if not _is_unicode(reply.text):
                reason = Reason("unreadable_reply", "the text holds half of a surrogate pair")
                return _Heard("", reply.model, reason)
            case "stop":
                return _Heard(reply.text, reply.model)
            case "length":
                reason = Reason("truncated", f"cut off at max_tokens = {self.sampling.max_tokens}")
            case "filtered":
                reason = Reason("refused_request", "the provider withheld the reply")
            case "unreadable":
                reason = Reason("unreadable_reply", "the provider's success held no text")
        return _Heard(reply.text if _is_unicode(reply.text) else "", reply.model, reason)


def _is_unicode(text: str) -> bool:
    """Whether the text can be written to a file; JSON's escapes let half a character through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
