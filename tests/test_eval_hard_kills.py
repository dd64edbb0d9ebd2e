"""`wizard eval`, killed at random moments: nothing that was answered or judged is lost or asked for again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from run_files import Left
from served import serving
from test_hard_kills import kill_once
from tiny_flow import Flow
from wizard_children import Parent, parent_of_wizards

from configs.folder import read_complete
from configs.loader import dump
from data_gen.config import Faults, OpenAICompatible, Price, Simulated
from data_gen.measure.asking import keyed_number
from wizard_jax.evaluate.config import EvalConfig, Gates, Judge, SimulatedWorld
from wizard_jax.evaluate.evaluate import evaluate
from wizard_jax.progress import nobody

CONCURRENCY, KILLS = 8, 20  # of each model: there are two at a time
FREE = Price(input=0.0, output=0.0)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    (tmp_path / "wizards").mkdir()
    with parent_of_wizards(tmp_path / "wizards", module="wizard_jax.evaluate.evaluate") as parent:
        yield parent


def test_20_hard_kills_lose_no_answer_and_no_verdict_and_ask_for_none_again(
    flow: Flow, tmp_path: Path, parent: Parent
) -> None:
    with serving(latency_seconds=0.02, latency_spread=0.7) as served:

        def at_server(model: str) -> OpenAICompatible:
            return OpenAICompatible(model=model, base_url=served.server.base_url, price=FREE)

        config = EvalConfig(
            task=SimulatedWorld(per_band=30, held_out_from=(str(flow.evolved),)),
            models={"right": at_server("teacher"), "refuses": Simulated(faults=Faults(refusal=1.0))},
            judges={"judge": Judge(llm=at_server("judge"))},
            baseline="refuses",
            gates=Gates(pairs=40),
            concurrency=CONCURRENCY,
        )
        whole = evaluate(config, tmp_path / "whole", progress=nobody)
        came = served.asked.came
        requests = came.total()
        assert requests == len(came) >= 400
        came.clear()
        served.asked.answered.clear()
        out, settings = tmp_path / "out", tmp_path / "config.gin"
        settings.write_text(dump(replace(config)))
        draws = random.Random(KILLS)
        moments = [0, *sorted(draws.choices(range(int(requests * 0.8)), k=KILLS))]
        command = ["eval", settings, "--out", out]
        before = Left(frozenset(), 0, 0)
        for earlier, moment in pairwise(moments):
            before = kill_once(
                lambda: parent.start(command),
                served,
                out,
                more=moment - earlier,
                before=before,
                draws=draws,
                drawn_from=keyed_number,
            )
        code, output = parent.run(command)
    assert code == 0, output
    assert len(came) == requests, "every request of the whole evaluation came, and no other"
    assert 0 < came.total() - requests <= 2 * CONCURRENCY * KILLS
    for file in ("answers.jsonl", "verdicts.jsonl", "grades.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert read_complete(out)["comparisons"] == whole["comparisons"]
