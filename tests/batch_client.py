"""A process that evolves lineages through batch jobs of a server, and is killed by the test that started it.

    python batch_client.py BASE_URL JOURNAL LINEAGES ROUNDS

Prints, when it gets so far, the lineages and what was counted, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from batch_provider import free

from data_gen.config import EvolveConfig, OpenAIBatch, OpenAICompatible, Simulated, SimulatedSeeds
from data_gen.evolve import evolve_lineage
from data_gen.llm.batch import BatchChat
from data_gen.llm.batch_openai import OpenAIBatchService
from data_gen.llm.chat import ChatModel
from data_gen.llm.journal import Journal
from data_gen.llm.simulated import NAME
from data_gen.llm.standstill import Standstill
from data_gen.records import Record
from data_gen.sources import load_seeds


def config_for(lineages: int, rounds: int) -> EvolveConfig:
    return EvolveConfig(seeds=SimulatedSeeds(count=lineages), llm=Simulated(), rounds=rounds)


async def evolve_all(config: EvolveConfig, *, model: ChatModel, standstill: Standstill) -> list[str]:
    async def one(seed: Record) -> str:
        with standstill.lineage():
            return (await evolve_lineage(seed, model=model, config=config)).to_json()

    return list(await asyncio.gather(*(one(seed) for seed in load_seeds(config.seeds))))


async def main(base_url: str, journal_path: Path, lineages: int, rounds: int) -> None:
    standstill = Standstill(settle_seconds=0.05)
    limits = OpenAIBatch(poll_seconds=0.02)
    async with (
        OpenAIBatchService(OpenAICompatible(model=NAME, base_url=base_url)) as service,
        Journal.open(journal_path) as journal,
        BatchChat(service, journal=journal, account=free(), standstill=standstill, limits=limits) as batch,
    ):
        model = journal.wrap(batch, saves="none")
        evolved = await evolve_all(config_for(lineages, rounds), model=model, standstill=standstill)
        print(json.dumps({"lineages": evolved, "paid_twice": journal.possibly_paid_twice}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
