"""A folder is of the seeds that it was begun with, unfinished and finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.folder import read_complete
from data_gen.config import EvolveConfig, SeedFile, Simulated
from data_gen.generate import generate

TWO = '{"prompt": "Name a prime."}\n{"prompt": "Name a river."}\n'
CHANGED = TWO.replace("river", "lake")
GROWN = TWO + '{"prompt": "Name a lake."}\n'
SHRUNK = TWO.splitlines()[0]


def quiet(done: int, total: int, facts: Mapping[str, int | str]) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def config(tmp_path: Path) -> EvolveConfig:
    """Two seeds, evolved into out/."""
    (tmp_path / "seeds.jsonl").write_text(TWO)
    config = EvolveConfig(seeds=SeedFile(path=str(tmp_path / "seeds.jsonl")), llm=Simulated(), rounds=1)
    generate(config, tmp_path / "out", progress=quiet)
    return config


@pytest.mark.parametrize(
    ("seeds", "message"),
    [(CHANGED, "seed 2 has changed"), (SHRUNK, "seed 2 has changed or is gone"), (GROWN, "changed, added or removed")],
)
def test_a_run_does_not_go_on_with_other_seeds(seeds: str, message: str, config: EvolveConfig, tmp_path: Path) -> None:
    (tmp_path / "out" / "complete.json").unlink()
    (tmp_path / "seeds.jsonl").write_text(seeds)
    with pytest.raises(UserError, match=message):
        generate(config, tmp_path / "out", progress=quiet)
    (tmp_path / "seeds.jsonl").write_text(TWO)
    assert generate(config, tmp_path / "out", progress=quiet)["seeds"] == 2


@pytest.mark.parametrize("seeds", [CHANGED, SHRUNK, GROWN])
def test_a_finished_folder_is_not_taken_for_one_of_other_seeds(
    seeds: str, config: EvolveConfig, tmp_path: Path
) -> None:
    (tmp_path / "seeds.jsonl").write_text(seeds)
    with pytest.raises(UserError, match="changed, added or removed"):
        generate(config, tmp_path / "out", progress=quiet)


def test_a_finished_folder_needs_its_seeds_no_more_and_names_them(config: EvolveConfig, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").unlink()
    summary = generate(config, tmp_path / "out", progress=quiet)
    assert summary == read_complete(tmp_path / "out")
    assert (tmp_path / "out" / "seeds.sha256").read_text().split() == [summary["seeds_sha256"]]
