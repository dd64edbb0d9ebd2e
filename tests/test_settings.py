"""Every combination of settings that no run could use is refused, in a sentence, before anything is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from data_gen.answer import answer
from data_gen.config import (
    AnswerConfig,
    EvolveConfig,
    Faults,
    Gemini,
    Measure,
    Mixture,
    OpenAIBatch,
    OpenAICompatible,
    Pilot,
    Price,
    Shard,
    Simulated,
    SimulatedSeeds,
)
from data_gen.generate import generate, preview
from data_gen.settings import check, check_answer, check_count

FREE = Price(input=0.0, output=0.0)
HOSTED = OpenAICompatible(model="m", price=FREE)
JOBS = OpenAICompatible(model="m", price=FREE, batch=OpenAIBatch())
CONFIG = EvolveConfig(seeds=SimulatedSeeds(count=24), llm=Simulated())
NAN, INFINITE = float("nan"), float("inf")


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"operations": ()}, r"operations is empty"),
    ({"operations": ("deepning",)}, r"no operation 'deepning'; did you mean 'deepening'\?"),
    ({"operations": ("xyz",)}, r"no operation 'xyz'; there are add_constraints"),
    ({"operations": ("deepening", "deepening")}, r"named twice"),
    ({"rounds": -1}, r"rounds = -1"),
    ({"open_lineages": -1}, r"open_lineages = -1"),
    ({"concurrency": 0}, r"concurrency = 0"),
    ({"max_attempts": 0}, r"max_attempts = 0"),
    ({"max_tokens": 0}, r"max_tokens = 0"),
    ({"temperature": -0.1}, r"temperature = -0\.1"),
    ({"temperature": NAN}, r"temperature = nan"),
    ({"temperature": INFINITE}, r"temperature = inf"),
    ({"top_p": 0.0}, r"top_p = 0\.0"),
    ({"top_p": 1.1}, r"top_p = 1\.1"),
    ({"requests_per_minute": 0.0}, r"requests_per_minute = 0\.0"),
    ({"tokens_per_minute": NAN}, r"tokens_per_minute = nan"),
    ({"tokens_per_minute": INFINITE}, r"tokens_per_minute = inf"),
    ({"name": "My-Data"}, r"name = 'My-Data'"),
    ({"records_per_shard": 0}, r"records_per_shard = 0"),
    ({"choice": "bandit", "pilot": Pilot(floor=0.0)}, r"pilot\.floor = 0\.0"),
    ({"choice": "bandit", "pilot": Pilot(floor=0.2)}, r"pilot\.floor = 0\.2: above 0, and at most 0\.1667"),
    ({"choice": "bandit", "pilot": Pilot(floor=NAN)}, r"pilot\.floor = nan"),
    ({"choice": "bandit", "pilot": Pilot(lineages=0)}, r"pilot\.lineages = 0"),
    ({"stop": "run", "pilot": Pilot(margin=NAN)}, r"pilot\.margin = nan"),
    ({"pilot": Pilot(lineages=3)}, r"pilot\.lineages has no effect: set choice = 'bandit' or stop = 'run'"),
    ({"pilot": Pilot(floor=0.1)}, r"pilot\.floor has no effect: set choice = 'bandit'"),
    ({"pilot": Pilot(margin=0.1)}, r"pilot\.margin has no effect: set stop = 'lineage' or stop = 'run'"),
    ({"choice": "bandit", "pilot": Pilot(margin=0.1)}, r"pilot\.margin has no effect"),
    ({"stop": "lineage", "pilot": Pilot(lineages=3)}, r"pilot\.lineages has no effect"),
    ({"choice": "bandit", "shard": Shard(index=0, count=2)}, r"shard: each part would learn from a pilot of its own"),
    ({"stop": "run", "shard": Shard(index=1, count=2)}, r"shard: each part would learn"),
    ({"measure": Measure(difficulty_lineages=-1)}, r"measure\.difficulty_lineages = -1"),
    ({"measure": Measure(diversity_sample=-1)}, r"measure\.diversity_sample = -1"),
    ({"measure": Measure(duplicate_threshold=0.0)}, r"measure\.duplicate_threshold = 0\.0"),
    ({"measure": Measure(contamination_similarity=1.5)}, r"measure\.contamination_similarity = 1\.5"),
    ({"measure": Measure(contamination_ngram=0)}, r"measure\.contamination_ngram = 0"),
    ({"measure": Measure(contamination="drop")}, r"measure\.contamination_files is empty"),
    ({"measure": Measure(contamination_files=("no/such/file.jsonl",))}, r"no/such/file\.jsonl"),
    ({"llm": Simulated(faults=Faults(rate_limited=0.1))}, r"llm\.faults\.rate_limited has no effect"),
    ({"answerer": Simulated(faults=Faults(dropped=0.1))}, r"answerer\.faults\.dropped has no effect"),
    ({"judge": Simulated(faults=Faults(malformed=0.1))}, r"judge\.faults\.malformed has no effect"),
    ({"judge": Simulated(judges="first")}, r"judge\.judges is for the judges of wizard eval"),
    ({"llm": Simulated(faults=Faults(misjudged=0.1))}, r"llm\.faults\.misjudged is for the judges of wizard eval"),
    ({"llm": replace(HOSTED, timeout_seconds=0.0)}, r"llm\.timeout_seconds = 0\.0"),
    ({"llm": replace(HOSTED, timeout_seconds=NAN)}, r"llm\.timeout_seconds = nan"),
    ({"judge": Gemini(model="m", timeout_seconds=-1.0)}, r"judge\.timeout_seconds = -1\.0"),
    ({"mixture": Mixture(models=("a",), weights=(1.0,))}, r"mixture has no effect on the simulated model"),
    ({"llm": replace(JOBS, batch=OpenAIBatch(max_requests=0))}, r"llm\.batch\.max_requests = 0"),
    ({"llm": replace(JOBS, batch=OpenAIBatch(max_bytes=0))}, r"llm\.batch\.max_bytes = 0"),
    ({"llm": replace(JOBS, batch=OpenAIBatch(max_wait_seconds=NAN))}, r"llm\.batch\.max_wait_seconds = nan"),
    ({"llm": replace(JOBS, batch=OpenAIBatch(poll_seconds=0.0))}, r"llm\.batch\.poll_seconds = 0\.0"),
    ({"llm": JOBS, "requests_per_minute": 60.0}, r"requests_per_minute has no effect: every request goes out in a"),
    ({"llm": JOBS, "tokens_per_minute": 60.0}, r"tokens_per_minute has no effect"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_no_run_could_use_is_refused_and_nothing_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, **changes)
    with pytest.raises(UserError, match=message):
        generate(config, tmp_path / "out", progress=quiet)
    with pytest.raises(UserError, match=message):
        preview(config, tmp_path / "out", 1, progress=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 0},
        {"choice": "bandit", "pilot": Pilot(lineages=3, floor=1 / 6)},
        {"stop": "run", "pilot": Pilot(lineages=3, margin=-1.0)},
        {"stop": "lineage", "pilot": Pilot(margin=0.5), "shard": Shard(index=0, count=2)},
        {"llm": HOSTED, "mixture": Mixture(models=("a", "b"), weights=(1.0, 2.0))},
        {"llm": JOBS, "judge": HOSTED, "requests_per_minute": 60.0},
        {"measure": Measure(difficulty_lineages=10)},
    ],
)
def test_what_a_run_can_use_is_not_refused(changes: dict[str, Any]) -> None:
    check(replace(CONFIG, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "length"}, r"style = 'length', words = 0: 'length' needs words"),
        ({"words": 50}, r"style = 'plain', words = 50"),
        ({"rounds": (0, -1)}, r"rounds = \(0, -1\)"),
        ({"max_tokens": 0}, r"max_tokens = 0"),
        ({"name": "My-Data"}, r"name = 'My-Data'"),
        ({"llm": Simulated(judges="first")}, r"llm\.judges is for the judges of wizard eval"),
        ({"llm": Simulated(faults=Faults(misjudged=0.1))}, r"llm\.faults\.misjudged is for the judges of wizard eval"),
        ({"llm": replace(HOSTED, timeout_seconds=0.0)}, r"llm\.timeout_seconds = 0\.0"),
        ({"llm": JOBS, "tokens_per_minute": 60.0}, r"tokens_per_minute has no effect"),
        ({"measure": Measure(diversity_sample=-1)}, r"measure\.diversity_sample = -1"),
        ({"measure": Measure(difficulty_lineages=5)}, r"measure\.difficulty_lineages .* need a judge"),
        ({"llm": Simulated(faults=Faults(slow=0.1))}, r"llm\.faults\.slow has no effect"),
    ],
)
def test_what_can_not_be_answered_so_is_refused_and_nothing_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = replace(AnswerConfig(dataset=str(tmp_path), llm=Simulated()), **changes)
    with pytest.raises(UserError, match=message):
        answer(config, tmp_path / "out", progress=quiet)
    assert not (tmp_path / "out").exists()


def test_styles_with_and_without_words_are_taken() -> None:
    check_answer(AnswerConfig(dataset="d", llm=Simulated(), style="length", words=80))
    check_answer(AnswerConfig(dataset="d", llm=Simulated(), style="brief", rounds=(0, 2)))


def test_a_pilot_needs_seeds_after_it_and_a_shard_needs_one_of_its_own() -> None:
    bandit = replace(CONFIG, choice="bandit", pilot=Pilot(lineages=10))
    check_count(bandit, seeds=11)
    with pytest.raises(UserError, match=r"pilot.lineages = 10, and there are 10 seeds"):
        check_count(bandit, seeds=10)
    check_count(replace(CONFIG, shard=Shard(index=3, count=4)), seeds=100)
    with pytest.raises(UserError, match=r"of 5 seeds none falls to part \d"):
        check_count(replace(CONFIG, shard=Shard(index=0, count=6)), seeds=5)
