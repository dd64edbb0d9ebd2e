"""The whole flow, small: what it leaves behind, run again, and killed in every stage."""

from __future__ import annotations

import html
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.folder import read_complete
from wizard_jax.evaluate.statistics.shares import Proportion, difference
from wizard_jax.evaluate.tasks.simulated_world import BANDS
from wizard_jax.quickstart import ARMS, Configs, commands

TINY = {
    "evolve": "include 'evolve/quickstart.gin'\nseeds.count = 40\n",
    "train": """
        include 'train/quickstart.gin'
        model.d_model = 32
        model.n_layers = 1
        model.scan_unroll = 1
        model.d_ff = 64
        model.n_heads = 2
        model.n_kv_heads = 1
        model.head_dim = 16
        optimizer.warmup_steps = 4
        steps = 40
        checkpoint_every = 20
        """,
    "eval": "include 'eval/simulated_world.gin'\ntask.per_band = 4\nmax_tokens = 16\n",
}
FLOW = """
import sys
from pathlib import Path
from wizard_jax.cli import main
from wizard_jax.quickstart import Configs, quickstart
evolve, train, evaluation = sys.argv[1:]
sys.exit(quickstart(Path("run"), run=main, configs=Configs(evolve=evolve, train=train, eval=evaluation)))
"""
STAGES = ("evolve", "tokenizer", "train", "export", "eval", "report")


@dataclass(frozen=True)
class Ended:
    """How a flow ended: its exit code, what it printed, and when it began each of its commands."""

    code: int
    lines: Sequence[str]
    began: Sequence[tuple[str, float]]
    """(verb, seconds since the start)"""
    seconds: float

    def duration(self, verb: str) -> tuple[float, float]:
        """Seconds since the start between which the commands of a verb ran."""
        starts = [number for number, (name, _) in enumerate(self.began) if name == verb]
        after = starts[-1] + 1
        return self.began[starts[0]][1], self.began[after][1] if after < len(self.began) else self.seconds


def environment() -> dict[str, str]:
    """A user's: without the eight devices that tests pretend to have."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def flow(folder: Path, *, kill: tuple[str, float] | None = None) -> Ended:
    """Runs the flow in `folder`, in a process that is killed so many seconds into the first command of a verb."""
    files = []
    for name, text in TINY.items():
        files.append(folder / f"{name}.gin")
        files[-1].write_text("\n".join(line.strip() for line in text.splitlines()))
    lines: list[str] = []
    began: list[tuple[str, float]] = []
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", FLOW, *map(str, files)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        killer = threading.Timer(kill[1] if kill else 0.0, process.kill)
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("$ wizard "):
                verb = line.split()[2]
                if kill and kill[0] == verb and not any(name == verb for name, _ in began):
                    killer.start()
                began.append((verb, time.monotonic() - start))
        killer.cancel()
    return Ended(process.returncode, lines, began, time.monotonic() - start)


def results(run: Path) -> dict[str, bytes]:
    """Everything that a run came to, without what tells how long it took and how often it was begun."""
    found = {}
    for pattern in ("evolved/dataset/*", "evolved/rejected.jsonl", "tokenizer.model", "runs/evolved/hf/*"):
        found |= {str(file.relative_to(run)): file.read_bytes() for file in run.glob(pattern)}
    for name, _, _ in ARMS:
        for file in ("answers.jsonl", "results.json"):
            found[f"{name}/{file}"] = (run / "runs" / name / "eval" / file).read_bytes()
        lines = (run / "runs" / name / "metrics.jsonl").read_text().splitlines()
        found[f"{name}/metrics"] = "\n".join(line.partition(', "timing"')[0] for line in lines).encode()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Ended:
    """A flow that nothing interrupts."""
    ended = flow(folder)
    assert ended.code == 0, "\n".join(ended.lines)
    return ended


def test_it_prints_each_command_and_ends_with_the_table_and_the_page(whole: Ended, folder: Path) -> None:
    verbs = [verb for verb, _ in whole.began]
    assert verbs == [command[0] for command in commands(Path("run"), configs=Configs())]
    assert set(verbs) == set(STAGES)
    page = folder / "run" / "report.html"
    assert whole.lines[-1] == f"Report: {page}"
    text = page.read_text()
    assert text.endswith("</html>\n")
    for _, label, _ in ARMS:
        row = [line for line in whole.lines if label in line and line.startswith("│")][-1]  # behind each model's own
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert [cell.count("[") for cell in cells] == [0, 1, 1, 1, 1, 0], "an interval for each number of steps"
        assert cells[-1] == "4"
        assert html.escape(label) in text
        assert all(f">{cell}</td>" in text for cell in cells[1:])


def test_both_arms_train_for_as_many_steps_on_as_many_tokens(whole: Ended, folder: Path) -> None:
    del whole
    seeds, evolved = (read_complete(folder / "run" / "runs" / name) for name in ("seeds", "evolved"))
    assert seeds["steps"] == evolved["steps"] == 40
    assert seeds["trained_tokens"] == pytest.approx(evolved["trained_tokens"], rel=0.01)
    assert seeds["packing"]["conversations"] < evolved["packing"]["conversations"], "they train on other data"
    assert seeds["last_loss"] < seeds["first_loss"]
    assert evolved["last_loss"] < evolved["first_loss"]


def test_run_again_it_does_nothing_new(whole: Ended, folder: Path) -> None:
    def files() -> dict[Path, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in found}

    before = files()
    again = flow(folder)
    assert again.code == 0
    assert [verb for verb, _ in again.began] == [verb for verb, _ in whole.began]
    progress = [line for line in again.lines if line.split(" ")[0] in STAGES]
    assert not progress, "a stage that shows progress does work"
    after = files()
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path]] == []


def killed(folder: Path, *, whole: Ended, kills: int) -> Iterator[Ended]:
    """Flows that are killed, each at a random moment of a stage, stage after stage."""
    rng = random.Random(kills)
    for verb in STAGES:
        start, end = whole.duration(verb)
        for _ in range(kills):
            yield flow(folder, kill=(verb, rng.uniform(0, end - start)))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 6])
def test_killed_in_every_stage_it_comes_to_the_same_results(
    kills: int, whole: Ended, folder: Path, tmp_path: Path
) -> None:
    ended = list(killed(tmp_path, whole=whole, kills=kills))
    assert sum(one.code == -9 for one in ended) >= len(ended) / 2, [one.lines[-3:] for one in ended]
    last = flow(tmp_path)
    assert last.code == 0, "\n".join(last.lines)
    assert results(tmp_path / "run") == results(folder / "run")
    for page in ("report.html", "evolved/report.html"):
        assert (tmp_path / "run" / page).read_text().endswith("</html>\n")


@pytest.mark.slow
def test_as_shipped_evolution_shows_on_tasks_of_two_and_three_steps(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wizard_jax", "quickstart", "--out", str(tmp_path / "run")]
    subprocess.run(command, env=environment(), check=True)

    def shares(name: str) -> dict[str, Proportion]:
        results = json.loads((tmp_path / "run" / "runs" / name / "eval" / "results.json").read_text())
        return {band: Proportion(**told["exact match"]) for band, told in results["models"][name]["bands"].items()}

    evolved, seeds = shares("evolved"), shares("seeds")
    assert evolved[BANDS[0]].share > 0.5
    for band in BANDS[1:3]:
        low, _ = difference(evolved[band], seeds[band])
        assert low > 0, f"{band}: {evolved[band]} against {seeds[band]}"
