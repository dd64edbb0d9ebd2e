"""A whole run: seeds -> lineages -> journal -> shards, with progress, and going on where it stopped.

    out/config.gin  journal.sqlite  seeds.sha256  dataset/  rejected.jsonl  report.html  complete.json (last)

Each lineage is a task of its own, so nothing waits for the end of a round, and a bounded number is open at once.
What a lineage came to is committed to the journal; the shards are then written from the journal in the order of the
seeds, so the same journal gives the same bytes. Memory holds the seeds and the open lineages, never all records.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from configs.errors import UserError
from configs.folder import open_stage, read_complete, replacing, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen import shards, sources
from data_gen.config import WIRE_FAULTS, EvolveConfig, Gemini, OpenAICompatible, Simulated, SimulatedSeeds
from data_gen.evolve import Lineage, evolve_lineage
from data_gen.llm import simulated
from data_gen.llm.chat import Ambiguous, ChatModel, ChatReply, ChatRequest, NotSent, Permanent
from data_gen.llm.journal import Journal
from data_gen.llm.openai import OpenAIChat
from data_gen.llm.pacing import Pacing
from data_gen.operations import OPERATIONS
from data_gen.records import Record
from data_gen.report import write_report
from data_gen.tally import Tally

DATASET = "dataset"
REJECTED = "rejected.jsonl"
JOURNAL = "journal.sqlite"
SEEDS = "seeds.sha256"

LOST_IN_A_ROW = 20
"""So many requests that gave up one after another, with no reply between, mean that nobody is there."""

_OPEN_PER_PLACE = 2  # open lineages per request in flight: while one waits for the disk, another is ready to send
_POLL_SECONDS = 0.05  # how soon a signal is heeded


class GenerateError(UserError):
    """A run can not begin or go on; what was answered so far is in its journal."""


class Progress(Protocol):
    def __call__(self, done: int, total: int, facts: Mapping[str, int | str]) -> None:
        """`done` of `total` lineages are finished; `facts` are counts worth showing beside that."""
        ...


def generate(config: EvolveConfig, out: Path, *, progress: Progress) -> dict[str, Any]:
    """Evolves all seeds into `out`/dataset and returns the summary, which `out`/complete.json holds too.

    Started again on the same folder it goes on; on a finished one it only returns the summary, for which the seeds
    need not be there any more. Must be called in the main thread, which gets the signals.

    Raises:
      UserError: bad settings or seeds, no key, a folder of another run or of other seeds, a model that will not
        answer, or not one record that survived.
      Interrupted: SIGTERM or Ctrl-C came. Requests in flight were given time to come home.
    """
    check(config)
    if (out / "complete.json").exists():
        with open_stage(out, config, stage="evolve"):
            if isinstance(config.seeds, SimulatedSeeds) or Path(config.seeds.path).exists():
                _check_seeds(out, _digest(sources.load_seeds(config.seeds)))
            return read_complete(out)
    seeds = sources.load_seeds(config.seeds)
    llm = config.llm
    assert not isinstance(llm, Gemini)
    answerer = OpenAIChat(llm) if isinstance(llm, OpenAICompatible) else simulated.SimulatedChatModel(llm)
    with open_stage(out, config, stage="evolve") as folder:
        with stop_flag() as stop:
            summary = asyncio.run(_Run(config, seeds, progress, stop).through(out, answerer))
        write_report(out, summary)
        folder.complete(summary)
    return summary


def check(config: EvolveConfig) -> None:
    """Raises UserError for settings that no run could use."""
    if not config.operations:
        raise GenerateError(f"operations is empty: name at least one of {', '.join(OPERATIONS)}")
    for name in config.operations:
        if name not in OPERATIONS:
            near = difflib.get_close_matches(name, OPERATIONS, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(OPERATIONS)}"
            raise GenerateError(f"operations: there is no operation {name!r}; {meant}")
    if len(set(config.operations)) < len(config.operations):
        raise GenerateError("operations: one is named twice; they are chosen from with equal probability")
    shards.check_layout(name=config.name, records_per_shard=config.records_per_shard)
    at_least = {
        "rounds": 0,
        "max_tokens": 1,
        "concurrency": 1,
        "max_attempts": 1,
        "temperature": 0,
    }
    for name, least in at_least.items():
        if not getattr(config, name) >= least:
            raise GenerateError(f"{name} = {getattr(config, name)}: it must be at least {least}")
    if math.isinf(config.temperature):
        raise GenerateError(f"temperature = {config.temperature}: it must be finite")
    if not 0 < config.top_p <= 1:
        raise GenerateError(f"top_p = {config.top_p}: it must be above 0 and at most 1")
    if isinstance(config.llm, OpenAICompatible) and not config.llm.timeout_seconds > 0:
        raise GenerateError(f"llm.timeout_seconds = {config.llm.timeout_seconds}: it must be above 0")
    if isinstance(config.llm, Simulated):
        for name in WIRE_FAULTS:
            if getattr(config.llm.faults, name):
                raise GenerateError(
                    f"llm.faults.{name} has no effect on the simulated model in this process: serve it with "
                    f"wizard simulate-llm {name}=..., and set llm = @OpenAICompatible"
                )


# --- the seeds


def _seed_id(seed: Record) -> str:
    """The lineage with a digest of its seed, so that a changed row is named."""
    turns = json.dumps([[turn.role, turn.content] for turn in seed.turns])
    return f"{seed.lineage} {hashlib.sha256(turns.encode()).hexdigest()[:16]}"


def _digest(seeds: Sequence[Record]) -> str:
    """SHA-256 (hex) of all seeds in their order."""
    return hashlib.sha256("\n".join(map(_seed_id, seeds)).encode()).hexdigest()


def _check_seeds(out: Path, digest: str) -> None:
    file = out / SEEDS
    if file.exists() and file.read_text(encoding="utf-8").strip() != digest:
        raise GenerateError(
            f"the seeds are not those that {out} was begun with: rows were changed, added or removed since; "
            "restore them, or evolve the new ones into another --out"
        )


# --- the lineages


@dataclass
class _Run:
    """What is held while a run is under way."""

    config: EvolveConfig
    seeds: Sequence[Record]
    progress: Progress
    stop: StopFlag
    done: int = 0
    facts: Counter[str] = field(default_factory=Counter)

    async def through(self, out: Path, answerer: OpenAIChat | simulated.SimulatedChatModel) -> dict[str, Any]:
        """From the first request, or where an earlier process stopped, to the shards; returns the summary."""
        async with contextlib.AsyncExitStack() as held:
            if isinstance(answerer, OpenAIChat):
                await held.enter_async_context(answerer)
            journal = await held.enter_async_context(Journal.open(out / JOURNAL))
            pacing = Pacing(
                journal.wrap(answerer),
                concurrency=self.config.concurrency,
                max_attempts=self.config.max_attempts,
            )
            finished, digest = self._finished(journal, out), _digest(self.seeds)
            _check_seeds(out, digest)
            write_atomically(out / SEEDS, f"{digest}\n")
            missing = [index for index in range(len(self.seeds)) if index not in finished]
            self.done = len(finished)
            self._show(journal)
            # A lineage in which a request gave up is tried once more when all others are done: what was answered
            # is in the journal, and a provider that was down for a while may be back.
            again = await self._evolve(missing, journal=journal, model=_Answering(pacing, unanswered="put off"))
            await self._evolve(again, journal=journal, model=_Answering(pacing, unanswered="drop"))
            assert self.done == len(self.seeds)
            return self._write(journal, pacing, out)

    def _finished(self, journal: Journal, out: Path) -> set[int]:
        """The lineages that an earlier process finished, after a look at whether they are still the same.

        One in which a request gave up is not: nobody answered then, and somebody may now.
        """
        finished = set()
        for saved in journal.lineages():
            self.stop.raise_if_set()
            index = saved.index
            if index >= len(self.seeds) or saved.seed_id != _seed_id(self.seeds[index]):
                raise GenerateError(
                    f"the seeds are not those that {out} was begun with: row {index + 1} has changed or is gone; "
                    "restore them, or evolve the new ones into another --out"
                )
            lineage = Lineage.from_json(saved.payload)
            if any(rejected.rule == "gave_up" for rejected in lineage.rejected):
                continue
            self.facts.update(records=len(lineage.records), rejected=len(lineage.rejected))
            finished.add(index)
        return finished

    async def _evolve(self, indices: Sequence[int], *, journal: Journal, model: ChatModel) -> list[int]:
        """Evolves the lineages named, so many at once; returns those that were put off."""
        put_off: list[int] = []
        waiting = iter(indices)

        async def work() -> None:
            for index in waiting:
                seed = self.seeds[index]
                try:
                    lineage = await evolve_lineage(seed, model=model, config=self.config)
                except _PutOff:
                    put_off.append(index)
                    continue
                await journal.save_lineage(index, seed_id=_seed_id(seed), payload=lineage.to_json())
                self.done += 1
                self.facts.update(records=len(lineage.records), rejected=len(lineage.rejected))
                self._show(journal)

        places = min(len(indices), _OPEN_PER_PLACE * self.config.concurrency)
        await self._all([asyncio.create_task(work()) for _ in range(places)])
        return sorted(put_off)

    async def _all(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Waits for all, or for the first failure or a signal; then the journal drains what is in flight."""
        running = set(workers)
        failed: BaseException | None = None
        while running and failed is None and self.stop.exit_code is None:
            ended, running = await asyncio.wait(running, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            # Each is asked for its error: asyncio prints one that nobody has seen, behind our own message.
            errors = [task.exception() for task in ended if not task.cancelled()]
            failed = next((error for error in errors if error), None)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if isinstance(failed, Permanent):
            raise GenerateError(
                f"the model can not be used: {failed}. What was answered so far is saved: "
                "mend this and start the same command again"
            ) from failed
        if failed is not None:
            raise failed
        self.stop.raise_if_set()

    def _show(self, journal: Journal) -> None:
        facts = {
            "records": self.facts["records"],
            "rejected": self.facts["rejected"],
            "asked": journal.asked,
            "from the journal": journal.cached,
            "tokens in": journal.spent.input_tokens,
            "tokens out": journal.spent.output_tokens,
        }
        self.progress(self.done, len(self.seeds), facts)

    # --- what is left behind

    def _write(self, journal: Journal, pacing: Pacing, out: Path) -> dict[str, Any]:
        tally = Tally()
        with replacing(out / REJECTED) as lines:
            for lineage in self._saved(journal):
                tally.add(lineage)
                for rejected in lineage.rejected:
                    lines.write(json.dumps(vars(rejected), ensure_ascii=False) + "\n")
        if not tally.records:
            worst = ", ".join(f"{rule} {count}" for rule, count in tally.rules.most_common(3))
            again = "; what gave up is asked anew when the same command is started again" * bool(tally.rules["gave_up"])
            raise GenerateError(
                f"not one record survived ({worst}): {out / REJECTED} says why, candidate by candidate{again}"
            )
        manifest = shards.write_dataset(
            (record for lineage in self._saved(journal) for record in lineage.records),
            out / DATASET,
            name=self.config.name,
            count=tally.records,
            records_per_shard=self.config.records_per_shard,
            description=self._description(tally),
        )
        return {
            "seeds": len(self.seeds),
            "seeds_sha256": _digest(self.seeds),
            **tally.summary(),
            "asked": journal.asked,
            "from_journal": journal.cached,
            "rate_limited": pacing.rate_limited,
            "not_sent": pacing.not_sent,
            "lost_after_sending": pacing.ambiguous,
            "possibly_paid_twice": journal.possibly_paid_twice,
            "input_tokens": journal.spent.input_tokens,
            "output_tokens": journal.spent.output_tokens,
            "dataset_sha256": manifest.sha256,
        }

    def _saved(self, journal: Journal) -> Iterator[Lineage]:
        for saved in journal.lineages():
            self.stop.raise_if_set()
            yield Lineage.from_json(saved.payload)

    def _description(self, tally: Tally) -> str:
        models = ", ".join(sorted(tally.models)) or "nobody: the seeds brought their answers"
        text = f"Evol-Instruct: {len(self.seeds)} seeds, {self.config.rounds} rounds, answered by {models}."
        if simulated.NAME in tally.models:
            text += " A simulated model of a simulated world: no evidence about natural instructions."
        return text


class _PutOff(Exception):
    """A request gave up. Its lineage stops here, for what would be paid for its later rounds depends on the answer."""


@dataclass
class _Answering:
    """A `ChatModel` that ends the run when nobody answers, instead of dropping one candidate after another.

    A single request that gave up puts its lineage off, or drops its candidate.
    """

    inner: ChatModel
    unanswered: Literal["put off", "drop"]
    lost_in_a_row: int = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        try:
            reply = await self.inner.complete(request)
        except (NotSent, Ambiguous, Permanent) as error:
            if isinstance(error, Permanent) and error.scope != "unclear":
                raise
            self.lost_in_a_row += 1
            if self.lost_in_a_row < LOST_IN_A_ROW:
                if self.unanswered == "put off":
                    raise _PutOff from error
                raise
            text = f"{LOST_IN_A_ROW} requests in a row were given up without an answer, the last one for: {error}"
            raise Permanent(text, scope="run") from error
        self.lost_in_a_row = 0
        return reply
