"""A run that trains an adapter saves the adapter alone, goes on elsewhere, and leaves a model like any other run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny_flow import Flow

from configs.errors import UserError
from configs.folder import load_config, read_complete
from configs.loader import load
from wizard_jax.cli import main
from wizard_jax.convert.importing import load_hf_params
from wizard_jax.model import decoder
from wizard_jax.model.lora import count_adapter, freeze_all, with_adapter
from wizard_jax.model.quantise import quantise
from wizard_jax.runs import open_model
from wizard_jax.train.config import TrainConfig
from wizard_jax.train.source import restore_adapter
from wizard_jax.train.watching.metrics import read_metrics

STEPS = 4


@pytest.fixture(scope="module")
def hf_folder(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source") / "hf"
    assert main(["export", str(flow.run), "--dtype", "float32", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def base(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "imported"
    assert main(["import", str(hf_folder), "--out", str(out)]) == 0
    return out


Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def command(flow: Flow, base: Path) -> Command:
    """The command that trains an adapter of `base` into a folder, with settings."""

    def told(out: Path, *settings: str) -> list[str]:
        start = ("init=@FromCheckpoint", f"init.path={base}", f"steps={STEPS}", "optimizer.schedule=constant")
        start += ("optimizer.final_lr_fraction=0.0",)
        adapter = ("adapter=@LoRA", "adapter.rank=2", "adapter.alpha=4.0", "adapter.base=nf4")
        return flow.train_command(out, *start, *adapter, "optimizer.peak_lr=0.02", *settings)

    return told


@pytest.fixture(scope="module")
def run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "adapted"
    assert main(command(out)) == 0
    return out


def unfinished(run: Path, copy: Path) -> Path:
    """The folder as a kill leaves it before the last two checkpoints were saved."""
    shutil.copytree(run, copy)
    (copy / "complete.json").unlink()
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    (copy / "checkpoints" / f"{STEPS}.json").unlink()
    return copy


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "timing"} for line in read_metrics(run)]


def halves(run: Path) -> Any:
    config = load_config(TrainConfig, run)
    assert config.adapter is not None
    return jax.device_get(restore_adapter(run, model=config.model, adapter=config.adapter).trees["params"])


def some_logits(params: decoder.Params, config: TrainConfig) -> jax.Array:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 400, (2, 24)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    hidden = decoder.hidden_states(
        params, tokens=tokens, positions=positions, segment_ids=jnp.ones_like(tokens), config=config.model
    )
    return decoder.logits(params, hidden, config=config.model)


def test_a_checkpoint_holds_the_adapter_and_nothing_of_the_base(run: Path) -> None:
    trees = ocp.checkpointables_metadata(run / "checkpoints" / str(STEPS)).metadata
    assert {name for name in trees if not name.startswith("_")} == {"params", "opt_state", "guard"}
    saved = trees["params"]
    arrays = jax.tree_util.tree_leaves_with_path(saved)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in arrays}
    assert names == {f"layers/{name}/{half}" for name in "q k v o gate up down".split() for half in "ab"}
    config, summary = load_config(TrainConfig, run), read_complete(run)
    assert config.adapter is not None
    count = count_adapter(config.model, adapter=config.adapter)
    assert sum(math.prod(leaf.shape) for _, leaf in arrays) == count
    moments = [leaf.shape for leaf in jax.tree.leaves(trees["opt_state"]) if leaf.shape]
    assert sum(map(math.prod, moments)) == 2 * count
    assert summary["adapter_parameters"] < summary["parameters"]


def test_it_goes_on_over_another_mesh(run: Path, command: Command, tmp_path: Path) -> None:
    copy = unfinished(run, tmp_path / "run")
    assert main(command(copy, "mesh.fsdp=4", "mesh.tensor=2")) == 0
    for found, expected in zip(untimed(copy), untimed(run), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_opened_it_is_base_and_update_in_one(run: Path, base: Path) -> None:
    config, before = load_config(TrainConfig, run), open_model(base).params
    assert config.adapter is not None
    kept = freeze_all(before, model=config.model, adapter=config.adapter)
    expected = some_logits(with_adapter(kept, halves(run), adapter=config.adapter), config)
    opened = open_model(run)
    assert (opened.step, opened.chat_format) == (STEPS, config.data.chat_format)
    assert {leaf.dtype for leaf in jax.tree.leaves(opened.params)} == {jnp.dtype("float32")}
    assert np.abs(expected - some_logits(before, config)).max() > 0.01, "training must matter"
    np.testing.assert_allclose(some_logits(opened.params, config), expected, atol=2e-5)


def test_exported_it_is_a_model_that_can_be_imported_again(run: Path, tmp_path: Path) -> None:
    config, opened = load_config(TrainConfig, run), open_model(run)
    hf, again = tmp_path / "hf", tmp_path / "again"
    assert main(["export", str(run), "--dtype", "float32", "--out", str(hf)]) == 0
    assert "adapter.rank = 2" in (hf / "README.md").read_text()
    jax.tree.map(np.testing.assert_array_equal, load_hf_params(hf, config.model), opened.params)
    assert main(["import", str(hf), "--out", str(again)]) == 0
    jax.tree.map(np.testing.assert_array_equal, open_model(again).params, opened.params)


def test_exported_for_peft_it_names_the_folder_that_the_base_was_imported_from(
    run: Path, hf_folder: Path, tmp_path: Path
) -> None:
    assert main(["export", str(run), "--format", "peft", "--dtype", "float32", "--out", str(tmp_path / "peft")]) == 0
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(hf_folder)
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "kept in nf4" in card
    named = ["export", str(run), "--format", "peft", "--base-model", "org/name", "--out", str(tmp_path / "named")]
    assert main(named) == 0
    told = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "org/name"


def test_it_is_evaluated_as_any_model(run: Path, flow: Flow, tmp_path: Path) -> None:
    assert main(flow.eval_command(tmp_path / "eval", f"models.tiny.path={run}")) == 0


def test_another_base_is_refused(
    flow: Flow, base: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, moved)
    assert main(command(out, f"init.path={moved}")) == 0
    assert main(["export", str(flow.run), "--step", "1", "--dtype", "float32", "--out", str(tmp_path / "hf1")]) == 0
    assert main(["import", str(tmp_path / "hf1"), "--out", str(tmp_path / "other")]) == 0
    for name in ("model.safetensors", "weights.json"):
        shutil.copy(tmp_path / "other" / name, moved / name)
    with pytest.raises(UserError, match=r"other weights .* it was imported again since"):
        open_model(out)
    begun = unfinished(out, tmp_path / "begun")
    assert main(command(begun, f"init.path={moved}")) == 2
    assert "it was imported again since" in capsys.readouterr().err


def test_a_base_that_is_damaged_is_refused_by_the_name_of_its_file(
    base: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    file = moved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(command(tmp_path / "run", f"init.path={moved}")) == 2
    assert f"{file} has other bytes than were imported (CRC-32C); put the file back" in capsys.readouterr().err
    with pytest.raises(UserError, match="has other bytes than were imported"):
        open_model(moved)
    file.unlink()
    assert main(command(tmp_path / "run", f"init.path={moved}")) == 2
    assert f"{file} is missing" in capsys.readouterr().err


def test_weights_are_not_taken_from_an_adapter(
    run: Path, flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = flow.train_command(tmp_path / "next", "init=@FromCheckpoint", f"init.path={run}")
    assert main(told) == 2
    assert f"holds an adapter, not a model: write both in one by `wizard export {run}" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_an_adapter_of_random_weights_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = [word for word in command(tmp_path / "run", "init=@RandomInit") if not word.startswith("init.path")]
    assert main(random) == 2
    assert "set init=@FromCheckpoint" in capsys.readouterr().err


def test_only_an_adapter_is_exported_for_peft(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(flow.run), "--format", "peft", "--out", str(tmp_path / "peft")]) == 2
    assert "not a run with an adapter" in capsys.readouterr().err
    assert main(["export", str(flow.run), "--base-model", "x", "--out", str(tmp_path / "hf")]) == 2
    assert "goes with --format peft" in capsys.readouterr().err


def test_a_base_in_few_bits_without_qwix_names_the_extra(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "qwix" else object())
    assert main(command(tmp_path / "run")) == 2
    assert "pip install 'wizard-jax[qlora]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="qlora"):
        quantise("q", jnp.ones((1, 8, 2, 64)), axes=("embed", "heads", "head_dim"), bits="nf4")


def test_targets_are_written_as_a_tuple_in_a_config(command: Command, tmp_path: Path) -> None:
    words = command(tmp_path, "adapter.targets=('q', 'v')")
    config = load(TrainConfig, [words[1]], words[4:])
    assert config.adapter is not None
    assert config.adapter.targets == ("q", "v")
