"""What the judge of a `wizard evolve` said of single instructions: read again from the replies in its journal.

measures.json holds means by round; the journal of the run holds every reply that they were made of. The same requests
are made again, and answered from there alone: nothing is asked, and the folder is not changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_identity
from data_gen.config import EvolveConfig
from data_gen.evolve import judge_of
from data_gen.llm import journal_file
from data_gen.llm.chat import ChatReply, ChatRequest, NotSent
from data_gen.llm.journal import JOURNAL
from data_gen.measure.asking import together
from data_gen.measure.difficulty import judge_lineage
from data_gen.measure.measure import sample_lineages
from data_gen.shards import read_dataset


class JudgedDifficulty(NamedTuple):
    """Of one instruction; None where no reply could be read."""

    score: float | None
    """From 1 to 10, asked by itself."""
    rank: float | None
    """From 1 to 10, asked beside the other versions of its lineage."""


@dataclass(frozen=True)
class _FromJournal:
    """A `ChatModel` that says what was said before, and nothing else."""

    db: sqlite3.Connection

    async def complete(self, request: ChatRequest) -> ChatReply:
        known = journal_file.outcome(self.db, digest=request.digest)
        if known is None:
            raise NotSent("the journal holds no reply")
        return known.reply()


def read_judged(folder: str, *, dataset: str) -> Mapping[str, JudgedDifficulty]:
    """By record, of the lineages that the run's judge was shown; none where `folder` is '' and `dataset` measured none.

    Raises:
      UserError: `folder` is not of a wizard evolve, measured no difficulty, or its journal is gone.
    """
    path = Path(folder or dataset)
    problem = _problem(path)
    if problem and not folder:
        return {}
    if problem:
        raise UserError(f"judged: {folder} {problem}: name a wizard evolve with measure.difficulty_lineages, or ''")
    config = load_config(EvolveConfig, path)
    lineages = sample_lineages(read_dataset(path), count=config.measure.difficulty_lineages, seed=config.seed)
    with contextlib.closing(journal_file.read_only(path / JOURNAL)) as db:
        judge = judge_of(config, _FromJournal(db))

        async def said() -> list[tuple[tuple[float | None, float | None], ...]]:
            judged = await together([judge_lineage(lineage, judge=judge) for lineage in lineages])
            return [tuple((one.score, one.rank) for one in versions) for versions in judged]

        found = asyncio.run(said())
    return {
        record.id: JudgedDifficulty(score, rank)
        for lineage, versions in zip(lineages, found, strict=True)
        for record, (score, rank) in zip(lineage, versions, strict=True)
        if score is not None or rank is not None
    }


def _problem(path: Path) -> str:
    if not (path / IDENTITY).exists():
        return "is no stage's folder"
    if (stage := read_identity(path).stage) != "evolve":
        return f"was made by wizard {stage}"
    if not load_config(EvolveConfig, path).measure.difficulty_lineages:
        return "measured no difficulty"
    return "" if (path / JOURNAL).exists() else f"has no {JOURNAL}"
