"""The flow at its smallest, made once a session by the commands that a user would type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wizard_jax.cli import main

FAULTS = ("llm.faults.unchanged=0.1", "llm.faults.refusal=0.1", "llm.faults.empty=0.1")
TINY = ("model.vocab_size=400", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.n_kv_heads=1")
TINY += ("model.head_dim=8", "model.d_ff=32", "model.scan_unroll=1", "model.max_positions=256")


@dataclass(frozen=True)
class Flow:
    """Finished folders: read them, or work on a copy."""

    folder: Path

    @property
    def evolved(self) -> Path:
        return self.folder / "evolved"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.model"

    @property
    def run(self) -> Path:
        """Of two steps, with a checkpoint of each."""
        return self.folder / "run"

    def evolve_command(self, out: Path, *settings: str) -> list[str]:
        """20 seeds of the simulated world, two rounds, some faults."""
        small = ("seeds.count=20", "rounds=2", *FAULTS)
        return ["evolve", "configs/evolve/quickstart.gin", "--out", str(out), *small, *settings]

    def train_command(self, out: Path, *settings: str) -> list[str]:
        data = (f"data.dataset={self.evolved}", f"tokenizer={self.tokenizer}", f"pack_cache={self.folder / 'packed'}")
        steps = ("batch=@RowsPerStep", "batch.rows=8", "steps=2", "checkpoint_every=1", "optimizer.warmup_steps=0")
        given = _last((*TINY, *data, *steps, *settings))
        return ["train", "configs/train/quickstart.gin", "--out", str(out), *given]

    def eval_command(self, out: Path, *settings: str) -> list[str]:
        model = ("models.tiny=@Local", f"models.tiny.path={self.run}", "models.tiny.rows=8")
        asked = (f"task.held_out_from=({str(self.evolved)!r},)", "task.per_band=2", "max_tokens=4")
        given = _last((*model, *asked, *settings))
        return ["eval", "configs/eval/simulated_world.gin", "--out", str(out), *given]

    def tokenizer_command(self, out: Path) -> list[str]:
        asked = ["--chat-format", "wizardlm_7b", "--vocab-size", "400", "--digits", "whole"]
        return ["tokenizer", str(self.evolved), *asked, "--out", str(out)]


def _last(settings: tuple[str, ...]) -> list[str]:
    """The last of the settings of each path, as the command line takes a path once."""
    return list({setting.partition("=")[0]: setting for setting in settings}.values())


def make_flow(folder: Path) -> Flow:
    flow = Flow(folder)
    for command in (
        flow.evolve_command(flow.evolved),
        flow.tokenizer_command(flow.tokenizer),
        flow.train_command(flow.run),
    ):
        assert main(command) == 0, command
    return flow
