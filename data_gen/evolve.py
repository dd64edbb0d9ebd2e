"""One lineage through its rounds: rewrite, eliminate, answer, and start the next round from what survived.

Pure but for the `ChatModel` it is given: every random choice draws from a key made of (seed, lineage, round,
purpose), so a lineage comes out the same whatever else runs beside it. Evol-Instruct: WizardLM (arXiv
2304.12244), section 3.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from data_gen import eliminate, world
from data_gen.config import EvolveConfig, Simulated
from data_gen.eliminate import Reason
from data_gen.llm import simulated
from data_gen.llm.chat import Ambiguous, ChatModel, ChatRequest, Message, NotSent, Permanent, RequestKey
from data_gen.operations import OPERATIONS, Operation, equal_prompt
from data_gen.records import Record, Rejected, Turn

Purpose = Literal["evolve", "judge", "answer"]


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


async def evolve_lineage(seed: Record, *, model: ChatModel, config: EvolveConfig) -> Lineage:
    """Answers a seed and rewrites it `config.rounds` times.

    A candidate that fails is dropped, and the instruction goes into the next round unchanged, with a newly drawn
    operation. A seed whose answer is dropped brings no record, but its instruction still evolves, for nothing
    was wrong with it; the `parent` of its first rewrite is then found among the rejected.

    Raises:
      Permanent: with scope "run", when no other request would succeed either.
    """
    current = replace(seed, steps=world.count_steps(seed.instruction))
    outcomes: list[Record | Rejected] = []
    if config.answer_seeds == "keep" and seed.answer:
        outcomes.append(current)
    else:
        current = replace(current, turns=(*seed.context, Turn("user", seed.instruction)))
        outcomes.append(await _answered(current, model=model, config=config))
    for round_ in range(1, config.rounds + 1):
        outcome = await _evolved(current, round_=round_, model=model, config=config)
        outcomes.append(outcome)
        if isinstance(outcome, Record):
            current = outcome
    return Lineage(
        records=tuple(outcome for outcome in outcomes if isinstance(outcome, Record)),
        rejected=tuple(outcome for outcome in outcomes if isinstance(outcome, Rejected)),
    )


def drawn_operation(config: EvolveConfig, *, lineage: str, round_: int) -> Operation:
    """The operation that rewrites a lineage in a round: each of `config.operations` with equal probability."""
    draw = random.Random(_keyed_number(config.seed, lineage, round_, "operation"))
    return OPERATIONS[draw.choice(config.operations)]


def _keyed_number(seed: int, lineage: str, round_: int, purpose: str) -> int:
    key = json.dumps([seed, lineage, round_, purpose, 0])  # without the 0, all draws would be others than those of 0.1
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


async def _evolved(parent: Record, *, round_: int, model: ChatModel, config: EvolveConfig) -> Record | Rejected:
    """One round: the parent's instruction rewritten and answered, or why not."""
    operation = drawn_operation(config, lineage=parent.lineage, round_=round_)
    ask = _Asking(parent.lineage, round_, model, config)
    # Earlier turns are sent along, for a follow-up ("now make it shorter") means nothing without them.
    heard = await ask("evolve", operation.prompt(parent.instruction), context=parent.context)
    candidate = operation.parse(heard.text)
    reason = heard.reason or _fault_in_rewrite(candidate, parent=parent.instruction, rules=config.eliminate)
    if reason is None and "no_gain" in config.eliminate:
        verdict = await ask("judge", equal_prompt(parent.instruction, candidate))
        reason = verdict.reason or eliminate.no_gain(verdict.text)
        if reason and reason.rule != "no_gain":
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
    )
    return await _answered(record, model=model, config=config)


async def _answered(record: Record, *, model: ChatModel, config: EvolveConfig) -> Record | Rejected:
    """The record, which ends with its instruction, with the model's answer to it; or why there is none."""
    ask = _Asking(record.lineage, record.round, model, config)
    heard = await ask("answer", record.instruction, context=record.context)
    answer = heard.text.strip()
    reason = heard.reason or _fault_in_answer(answer, rules=config.eliminate)
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


def _fault_in_rewrite(candidate: str, *, parent: str, rules: Sequence[str]) -> Reason | None:
    """What can be seen without asking the judge."""
    if not candidate:
        return Reason("empty_instruction", "the reply holds no instruction")
    found = (
        eliminate.refused_rewrite(candidate, parent=parent),
        eliminate.copied_prompt(candidate, parent=parent),
        eliminate.identical(candidate, parent=parent),
    )
    return next((reason for reason in found if reason and reason.rule in rules), None)


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
    config: EvolveConfig

    async def __call__(self, purpose: Purpose, prompt: str, *, context: Sequence[Turn] = ()) -> _Heard:
        config = self.config
        request = ChatRequest(
            key=RequestKey(self.lineage, self.round_, purpose),
            model=simulated.NAME if isinstance(config.llm, Simulated) else config.llm.model,
            messages=(*(Message(turn.role, turn.content) for turn in context), Message("user", prompt)),
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            # 31 bits: the largest seed that every provider takes.
            seed=_keyed_number(config.seed, self.lineage, self.round_, purpose) % 2**31,
        )
        try:
            reply = await self.model.complete(request)
        except Permanent as error:
            if error.scope == "run":
                raise
            return _Heard("", reason=Reason("gave_up" if error.scope == "unclear" else "refused_request", str(error)))
        except (NotSent, Ambiguous) as error:
            return _Heard("", reason=Reason("gave_up", f"after {config.max_attempts} attempts: {error}"))
        match reply.finish_reason:
            case "stop" if not _is_unicode(reply.text):
                reason = Reason("unreadable_reply", "the text holds half of a surrogate pair")
                return _Heard("", reply.model, reason)
            case "stop":
                return _Heard(reply.text, reply.model)
            case "length":
                reason = Reason("truncated", f"cut off at max_tokens = {config.max_tokens}")
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
