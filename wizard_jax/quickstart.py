"""`wizard quickstart`: the whole flow as the commands that a user would type, each printed before it runs.

Every command goes on where it stopped, so running the quickstart again after a kill does too.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ARMS = (
    ("initial", "nothing (initial weights)", ("steps=0",)),
    ("seeds", "seeds only (round 0)", ("data.selection.rounds_to=0",)),
    ("evolved", "seeds + evolved rounds", ()),
)
"""Folder, label and settings of each arm."""

TOKENIZER = ("--chat-format", "wizardlm_7b", "--vocab-size", "512", "--digits", "whole")


@dataclass(frozen=True, kw_only=True)
class Configs:
    """The files that say how much of everything there is."""

    evolve: str = "configs/evolve/quickstart.gin"
    train: str = "configs/train/quickstart.gin"
    eval: str = "configs/eval/simulated_world.gin"


def commands(out: Path, *, configs: Configs) -> list[list[str]]:
    """The command lines of the flow, without the leading `wizard`."""
    evolved, tokenizer, runs = out / "evolved", out / "tokenizer.model", out / "runs"
    data = [f"data.dataset={evolved}", f"tokenizer={tokenizer}", f"pack_cache={out / 'packed'}"]
    flow: list[list[str]] = [["evolve", configs.evolve, "--out", str(evolved)]]
    flow.append(["tokenizer", str(evolved), *TOKENIZER, "--out", str(tokenizer)])
    for name, _, settings in ARMS:
        flow.append(["train", configs.train, "--out", str(runs / name), *data, *settings])
    flow.append(["export", str(runs / "evolved")])
    for name, label, _ in ARMS:
        model = [f"models.{name}=@Local", f"models.{name}.path={runs / name}", f"models.{name}.label={label}"]
        held_out = f"task.held_out_from=({json.dumps(str(evolved))},)"
        flow.append(["eval", configs.eval, "--out", str(runs / name / "eval"), *model, held_out])
    flow.append(["report", *(str(runs / name / "eval") for name, _, _ in ARMS), "--out", str(out / "report.html")])
    return flow


def quickstart(out: Path, *, run: Callable[[Sequence[str]], int], configs: Configs = Configs()) -> int:
    """Runs the flow into `out`; returns the exit code of the first command that does not end well, else 0."""
    began = time.monotonic()
    for command in commands(out, configs=configs):
        print(f"\n$ wizard {shlex.join(command)}", flush=True)
        code = run(command)
        if code:
            return code
    minutes = (time.monotonic() - began) / 60
    places = {"data": out / "evolved", "runs": out / "runs", "Hugging Face folder": out / "runs/evolved/hf"}
    print(f"\nDone in {minutes:.1f} minutes. " + "; ".join(f"{name}: {place}" for name, place in places.items()))
    print(f"Report: {os.path.abspath(out / 'report.html')}")
    return 0
