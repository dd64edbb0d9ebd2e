"""Several models in one run: by weight for rewriting, another to answer, another to judge."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from test_evolve import SEED, Scripted, reply
from test_generate import CONFIG as BASE
from test_generate import files, quiet, serving

from configs.errors import UserError
from data_gen import shards
from data_gen.config import Faults, Gemini, Measure, Mixture, OpenAICompatible, Pilot, Price, SimulatedSeeds
from data_gen.evolve import drawn_model, evolve_lineage
from data_gen.generate import generate
from data_gen.llm.chat import ChatReply, ChatRequest
from data_gen.llm.server import SimulatedServer

FREE = Price(input=0.0, output=0.0)
CONFIG = replace(BASE, seeds=SimulatedSeeds(count=8), rounds=2, measure=Measure(diversity_sample=0))
MIXTURE = Mixture(models=("small", "middle", "large"), weights=(5.0, 3.0, 2.0))


def openai(server: SimulatedServer, model: str = "simulated-llm") -> OpenAICompatible:
    return OpenAICompatible(model=model, base_url=server.base_url, price=FREE)


def purposes(out: Path) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
        return Counter(dict(journal.execute("SELECT purpose, count(*) FROM outcomes GROUP BY purpose").fetchall()))


def test_each_model_of_a_mixture_is_drawn_by_its_weight_whatever_else_is_drawn() -> None:
    config = replace(CONFIG, llm=OpenAICompatible(model="small"), mixture=MIXTURE)
    drawn = Counter(
        drawn_model(config, lineage=f"{lineage:06d}", round_=round_) for lineage in range(500) for round_ in range(1, 5)
    )
    for model, share in {"small": 0.5, "middle": 0.3, "large": 0.2}.items():
        deviation = (share * (1 - share) / 2000) ** 0.5
        assert abs(drawn[model] / 2000 - share) < 4 * deviation
    for other_seed in range(1, 9):
        if drawn_model(replace(config, seed=other_seed), lineage="000001", round_=1) != "small":
            break
    else:
        pytest.fail("the seed of the run has no part in it")


def test_a_record_names_the_version_that_wrote_its_instruction_and_the_one_that_answered() -> None:
    class Versions(Scripted):
        """Reports a dated version of whatever it is asked for."""

        async def complete(self, request: ChatRequest) -> ChatReply:
            said = await super().complete(request)
            return reply(said.text, model=f"{request.model}-2026-11")

    config = replace(
        CONFIG,
        llm=OpenAICompatible(model="small"),
        mixture=MIXTURE,
        answerer=OpenAICompatible(model="teacher"),
        judge=OpenAICompatible(model="judge"),
        eliminate=("no_gain",),
        rounds=8,
    )
    model = Versions()
    lineage = asyncio.run(evolve_lineage(SEED, model=model, config=config))
    assert not lineage.rejected
    assert {record.model for record in lineage.records} == {"teacher-2026-11"}
    for record in lineage.records[1:]:
        assert record.evolver == f"{drawn_model(config, lineage=record.lineage, round_=record.round)}-2026-11"
    assert lineage.records[0].evolver == ""
    assert len({record.evolver for record in lineage.records[1:]}) > 1
    assert {request.model for request in model.asked if request.key.purpose == "judge"} == {"judge"}


def test_each_purpose_reaches_its_own_server(tmp_path: Path) -> None:
    with serving(Faults()) as rewrites, serving(Faults()) as answers, serving(Faults()) as judges:
        config = replace(
            CONFIG,
            llm=openai(rewrites),
            answerer=openai(answers),
            judge=openai(judges),
            stop="lineage",
            pilot=Pilot(margin=-100.0),
        )
        summary = generate(config, tmp_path / "out", progress=quiet)
    asked = purposes(tmp_path / "out")
    assert rewrites.full_replies == asked["evolve"] == 16
    assert answers.full_replies == asked["answer"]
    assert judges.full_replies == asked["judge"] + asked["difficulty"]
    assert summary["asked"] == sum(server.requests for server in (rewrites, answers, judges))


def test_one_server_for_all_and_one_for_each_make_the_same_records(tmp_path: Path) -> None:
    with serving(Faults(refusal=0.1)) as one, serving(Faults(refusal=0.1)) as other:
        generate(replace(CONFIG, llm=openai(one)), tmp_path / "one", progress=quiet)
        several = replace(CONFIG, llm=openai(one), answerer=openai(other), judge=openai(other))
        generate(several, tmp_path / "several", progress=quiet)
    assert other.requests > 0
    assert files(tmp_path / "one") == files(tmp_path / "several")


def test_a_mixture_goes_to_the_server_that_rewrites(tmp_path: Path) -> None:
    with serving(Faults()) as server, serving(Faults()) as judges:
        config = replace(CONFIG, llm=openai(server, "small"), judge=openai(judges), mixture=MIXTURE)
        generate(config, tmp_path / "out", progress=quiet)
        assert server.requests > 16
        assert judges.requests == purposes(tmp_path / "out")["judge"]
    records = list(shards.read_dataset(tmp_path / "out"))
    assert {record.evolver for record in records if record.round} == {"simulated-llm"}, "as the server names itself"


def test_gemini_s_client_evolves_the_same_records_as_openai_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not-a-key")
    faults = Faults(unchanged=0.1, refusal=0.1, truncated=0.05)
    with serving(faults) as server:
        generate(replace(CONFIG, llm=openai(server)), tmp_path / "openai", progress=quiet)
        base_url = server.base_url.removesuffix("/v1")
        llm = Gemini(model="simulated-llm", platform="ai_studio", base_url=base_url, price=FREE)
        summary = generate(replace(CONFIG, llm=llm), tmp_path / "gemini", progress=quiet)
        both = replace(CONFIG, llm=openai(server), judge=llm)
        generate(both, tmp_path / "both", progress=quiet)
    assert summary["records"] > 0
    assert files(tmp_path / "gemini") == files(tmp_path / "openai") == files(tmp_path / "both")
    journal = (tmp_path / "gemini" / "journal.sqlite").read_bytes()
    assert b"not-a-key" not in journal


def test_a_judge_that_can_not_be_used_for_the_measures_is_a_mistake_to_mend_and_costs_nothing_again(
    tmp_path: Path,
) -> None:
    measured = replace(CONFIG, eliminate=("refusal",), measure=Measure(diversity_sample=0, difficulty_lineages=2))
    with serving(Faults()) as server:
        nowhere = replace(openai(server), base_url=server.base_url.replace("/v1", "/v7"))
        with pytest.raises(UserError, match="the model can not be used"):
            generate(replace(measured, llm=openai(server), judge=nowhere), tmp_path / "out", progress=quiet)
        evolved = server.full_replies
        summary = generate(
            replace(measured, llm=openai(server), judge=openai(server)), tmp_path / "out", progress=quiet
        )
        asked = purposes(tmp_path / "out")
        assert server.full_replies == evolved + asked["difficulty"] + asked["rank"]
    assert asked["rank"] == 2
    assert summary["asked"] == asked["difficulty"] + asked["rank"]
