"""`wizard evolve` in batch jobs against `wizard simulate-llm`, whose jobs fail as its flags say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.folder import read_complete
from wizard_jax.cli import main

CONFIG = """
seeds = @SimulatedSeeds
seeds.count = 12
rounds = 1
llm = @OpenAICompatible
llm.model = 'simulated-llm'
llm.price = @Price
llm.price.input = 1.0
llm.price.output = 2.0
"""


@contextmanager
def simulated(*flags: str) -> Iterator[str]:
    """The base URL of a server with these flags."""
    command = [sys.executable, "-m", "wizard_jax", "simulate-llm", "--port", "0", "--latency-seconds", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+/v1", server.stdout.readline())
        assert address is not None
        yield address[0]
    finally:
        server.terminate()
        server.communicate(timeout=10)


def evolved(folder: Path, *settings: str) -> dict[str, Any]:
    config = folder.with_suffix(".gin")
    config.write_text(CONFIG)
    assert main(["evolve", str(config), "--out", str(folder), *settings]) == 0
    return read_complete(folder)


def test_jobs_that_fail_as_the_flags_say_bring_the_records_of_an_online_run(tmp_path: Path) -> None:
    flags = (
        *("--batch-looks", "2", "--batch-missing", "0.2", "--batch-duplicated", "0.2", "--batch-broken-downloads", "1"),
        *("--batch-creates", "503 before", "--batch-creates", "503 after"),
        *("--batch-endings", "cut short", "--batch-endings", "complete"),
    )
    with simulated(*flags) as base_url:
        online = evolved(tmp_path / "online", f"llm.base_url={base_url}")
        in_jobs = ("llm.batch=@OpenAIBatch", "llm.batch.poll_seconds=0.05")
        batch = evolved(tmp_path / "jobs", f"llm.base_url={base_url}", *in_jobs)
    assert batch["dataset_sha256"] == online["dataset_sha256"]
    assert (online["possibly_paid_twice"], batch["possibly_paid_twice"] > 0) == (0, True)


@pytest.mark.parametrize(
    "flags", [("--batch-missing", "1.5"), ("--batch-missing", "0.6", "--batch-swapped", "0.6")], ids=str
)
def test_shares_of_a_job_that_are_none_are_refused(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate-llm", "--port", "0", *flags]) == 2
    assert "shares of a job's lines" in capsys.readouterr().err
