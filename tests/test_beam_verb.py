"""`wizard evolve-beam` on the command line."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_generate import CONTENT_FAULTS, FREE, files, quiet, replies, serving

from configs.loader import dump
from data_gen.config import EvolveConfig, Measure, OpenAICompatible, Simulated, SimulatedSeeds
from data_gen.generate import generate
from wizard_jax.cli import main
from wizard_jax.doctor import extra_for

CONFIG = EvolveConfig(
    seeds=SimulatedSeeds(count=16), llm=Simulated(faults=CONTENT_FAULTS), measure=Measure(diversity_sample=0)
)


def command(config: EvolveConfig, folder: Path, *more: str) -> list[str]:
    (folder / "config.gin").write_text(dump(config))
    places = ["--out", str(folder / "out"), "--work", str(folder / "work")]
    return ["evolve-beam", str(folder / "config.gin"), *places, "--shards", "2", *more]


def test_the_verb_makes_what_wizard_evolve_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(replace(CONFIG, rounds=1), tmp_path / "whole", progress=quiet)
    assert main(command(CONFIG, tmp_path, "rounds=1")) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "shards 2/2" in said.out
    assert f"records in {tmp_path}/out/dataset" in said.out
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_where_beam_is_not_installed_its_extra_is_named() -> None:
    assert extra_for(ImportError(name="apache_beam.options")) == "beam"


def test_a_runner_that_is_not_there_is_the_user_s_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(CONFIG, tmp_path, "--beam=--runner=NoSuchRunner")) == 2
    assert "Beam's options --runner=NoSuchRunner" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command(CONFIG, tmp_path), "--work", "gs://bucket/work"])
    assert "is not local" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_terminated_pipelines_go_on_and_pay_for_at_most_what_was_in_flight(tmp_path: Path) -> None:
    with serving(CONTENT_FAULTS, latency_seconds=0.05) as server:
        llm = OpenAICompatible(model="simulated-llm", base_url=server.base_url, price=FREE)
        config = replace(CONFIG, llm=llm, concurrency=4)
        threads = ("--beam=--direct_num_workers=2", "--beam=--direct_running_mode=multi_threading")
        words = [sys.executable, "-m", "wizard_jax", *command(config, tmp_path, *threads)]
        lost = 0
        for signal_, requests in ((signal.SIGKILL, 40), (signal.SIGKILL, 90), (signal.SIGTERM, 130)):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            while server.requests < requests and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal_)
            _, told = process.communicate()
            time.sleep(0.5)  # what was in flight reaches the server
            if signal_ == signal.SIGTERM:
                assert (process.returncode, told) == (42, told)
                assert "stopped as told" in told
            else:
                lost += 2 * config.concurrency
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), "Beam's own noise is not shown"
        journals = [file.parent for file in (tmp_path / "work").glob("*/journal.sqlite")]
        assert sum(map(replies, journals)) <= server.requests <= sum(map(replies, journals)) + lost
        for journal in journals:
            with contextlib.closing(sqlite3.connect(journal / "journal.sqlite")) as db:
                assert db.execute("SELECT count(*) FROM in_flight").fetchone() == (0,)
    generate(replace(CONFIG), tmp_path / "whole", progress=quiet)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
