"""A run reads top to bottom, goes on after any kill with the same figures, and refuses what can not be meant."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
from typing import Any

import jax
import numpy as np
import pytest

from configs.errors import UserError
from configs.folder import FolderError, read_complete
from configs.interrupt import Interrupted
from data_gen.records import Record, Turn
from data_gen.shards import write_dataset
from wizard_jax.data.config import ConversationsPerStep, DataConfig, DataError, RowsPerStep, TrainedTokensPerStep
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import abstract_params, count_params
from wizard_jax.model.sharding import MeshConfig
from wizard_jax.tokenizer import train_tokenizer
from wizard_jax.train.checkpoint import CheckpointError, CheckpointStore
from wizard_jax.train.config import FromCheckpoint, RandomInit, TrainConfig
from wizard_jax.train.optimizer import AdamW
from wizard_jax.train.train import train
from wizard_jax.train.watching.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60


def quiet(done: int, total: int, facts: Any) -> None:
    del done, total, facts


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a data set of 60 conversations and a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("material")
    animals = ["owl", "fox", "hen", "cat", "dog", "ant"]
    asked = [" and ".join(animals[: 1 + i % 6]) + f" number {i}" for i in range(60)]
    records = [
        Record(
            id=f"s{i}/0",
            lineage=f"s{i}",
            turns=(Turn("user", f"Say {text}."), Turn("assistant", f"{text}, as you say.")),
        )
        for i, text in enumerate(asked)
    ]
    write_dataset(records, folder / "data", name="said", count=60, records_per_shard=20, description="echoes")
    train_tokenizer([turn.content for r in records for turn in r.turns], folder / "tokenizer.model", vocab_size=320)
    return folder


@pytest.fixture(scope="module")
def config(material: pathlib.Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(vocab_size=320, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        init=RandomInit(),
        tokenizer=str(material / "tokenizer.model"),
        data=DataConfig(dataset=str(material / "data"), chat_format="wizardlm_7b", seq_len=128),
        batch=RowsPerStep(rows=8),
        optimizer=AdamW(peak_lr=0.01),
        steps=STEPS,
        checkpoint_every=20,
        log_every=3,
        pack_cache=str(material / "packed"),
    )


@pytest.fixture(scope="module")
def watched(
    config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[tuple[int, int, dict[str, Any]]]]:
    """The folder of the run that was never interrupted, and the progress that it made."""
    seen: list[tuple[int, int, dict[str, Any]]] = []
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config, out, progress=lambda done, total, facts: seen.append((done, total, dict(facts))))
    return out, seen


@pytest.fixture(scope="module")
def whole(watched: tuple[pathlib.Path, object]) -> pathlib.Path:
    return watched[0]


def untimed(folder: pathlib.Path) -> list[str]:
    """The lines of metrics.jsonl as they are, without the timing that ends each."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line.partition(', "timing"')[0] for line in lines]


def weights(folder: pathlib.Path, config: TrainConfig, *, step: int | None = None) -> Any:
    with CheckpointStore(folder / "checkpoints") as store:
        return jax.device_get(store.restore({"params": abstract_params(config.model)}, step=step).trees["params"])


def test_a_run_leaves_what_the_next_stages_need(whole: pathlib.Path, config: TrainConfig) -> None:
    lines = read_metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert (whole / "tokenizer.model").read_bytes() == pathlib.Path(config.tokenizer).read_bytes()
    assert sorted(path.name for path in (whole / "checkpoints").iterdir() if path.is_dir()) == ["40", "60"]
    assert list((whole / "tensorboard").iterdir())
    summary = read_complete(whole, stage="train")
    assert summary["steps"] == STEPS
    assert summary["parameters"] == count_params(config.model)
    assert summary["trained_tokens"] == sum(line["trained_tokens"] for line in lines)
    assert summary["tokens"] == sum(line["tokens"] for line in lines)
    assert (summary["first_loss"], summary["last_loss"]) == (lines[0]["loss"], lines[-1]["loss"])
    assert summary["packing"]["conversations"] == 60
    assert summary["tokens_per_second"] > 0


def test_a_finished_run_is_not_run_again(whole: pathlib.Path, config: TrainConfig) -> None:
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    assert train(config, whole, progress=quiet) == read_complete(whole)
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before


def test_progress_goes_up_to_all_steps(
    watched: tuple[pathlib.Path, list[tuple[int, int, dict[str, Any]]]],
) -> None:
    steps = [done for done, total, facts in watched[1] if total == STEPS and "loss" in facts]
    assert steps[0] == 1
    assert steps[-1] == STEPS
    assert steps == sorted(set(steps))


def test_told_to_stop_it_saves_and_goes_on_with_the_same_figures(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = dataclasses.replace(config, log_every=1)
    for number, exit_code, at in ((signal.SIGTERM, 42, 5), (signal.SIGINT, 130, 12)):

        def stop(done: int, total: int, facts: Any, *, number: signal.Signals = number, at: int = at) -> None:
            if total == STEPS and done == at and "loss" in facts:
                signal.raise_signal(number)

        with pytest.raises(Interrupted) as stopped:
            train(config, tmp_path / "run", progress=stop)
        assert stopped.value.exit_code == exit_code
        with pytest.raises(FolderError, match="not finished"):
            read_complete(tmp_path / "run")
        with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
            assert at < store.steps()[-1] < 20
    train(config, tmp_path / "run", progress=quiet)
    assert untimed(tmp_path / "run") == untimed(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "run", config), weights(whole, config))


def unfinished(whole: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """A copy of a run that has not come to its end."""
    shutil.copytree(whole, out)
    (out / "complete.json").unlink()
    return out


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_taken(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = unfinished(whole, tmp_path / "run")
    gone = next((out / "checkpoints" / "60" / "params").rglob("d/*"))
    gone.unlink()
    train(config, out, progress=quiet)
    assert f"{gone} is missing" in caplog.text
    assert "checkpoint 40" in caplog.text
    assert untimed(out) == untimed(whole)
    jax.tree.map(np.testing.assert_array_equal, weights(out, config, step=60), weights(whole, config))


def without_checkpoints(whole: pathlib.Path, out: pathlib.Path, *, steps: int) -> pathlib.Path:
    """A copy of a run that was cut off after so many steps, with no checkpoint in it."""
    shutil.rmtree(unfinished(whole, out) / "checkpoints")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:steps]))
    return out


def test_stopped_before_its_first_checkpoint_it_says_that_it_starts_again(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = without_checkpoints(whole, tmp_path / "run", steps=40)  # the one of step 20 may not have been whole
    train(config, out, progress=quiet)
    assert "starts from the beginning" in caplog.text
    assert untimed(out) == untimed(whole)


def test_where_all_checkpoints_are_gone_it_does_not_start_from_scratch(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = without_checkpoints(whole, tmp_path / "run", steps=41)
    before = untimed(out)
    with pytest.raises(UserError, match=r"has made 41 steps and saved checkpoints, and .*checkpoints holds none: put"):
        train(config, out, progress=quiet)
    assert untimed(out) == before


def test_with_no_complete_checkpoint_left_it_does_not_start_from_scratch(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = unfinished(whole, tmp_path / "run")
    for folder in ("40", "60"):
        shutil.rmtree(out / "checkpoints" / folder)
    with pytest.raises(CheckpointError, match="no complete checkpoint is left"):
        train(config, out, progress=quiet)
    assert untimed(out) == untimed(whole)


def test_a_run_goes_on_with_another_mesh(config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = unfinished(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "60")
    (out / "checkpoints" / "60.json").unlink()
    train(dataclasses.replace(config, mesh=MeshConfig(slice=2, tensor=2)), out, progress=quiet)
    losses, expected = ([line["loss"] for line in read_metrics(folder)] for folder in (out, whole))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_no_steps_save_the_initial_weights(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    summary = train(dataclasses.replace(config, steps=0), tmp_path / "run", progress=quiet)
    assert (summary["steps"], summary["tokens"], summary["first_loss"]) == (0, 0, None)
    initial = weights(tmp_path / "run", config, step=0)
    assert float(np.std(initial["embed"])) == pytest.approx(0.02, rel=0.1)


def test_a_run_of_epochs_trains_on_every_token_as_often(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(config, steps=None, epochs=2.0, batch=ConversationsPerStep(conversations=50))
    summary = train(config, tmp_path / "run", progress=quiet)
    packing = summary["packing"]
    assert summary["steps"] == 3  # 2 x 60 conversations, 50 a step
    assert (summary["tokens"], summary["trained_tokens"]) == (2 * packing["tokens"], 2 * packing["trained_tokens"])


@pytest.mark.parametrize(("steps", "epochs"), [(None, None), (1, 1.0), (None, 0.0), (-1, None)])
def test_a_run_has_one_length(config: TrainConfig, steps: int | None, epochs: float | None) -> None:
    with pytest.raises(UserError, match=r"steps|epochs"):
        dataclasses.replace(config, steps=steps, epochs=epochs)


def test_a_run_starts_from_the_weights_of_another(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = dataclasses.replace(config, init=FromCheckpoint(path=os.path.relpath(whole)), steps=0)
    train(config, tmp_path / "run", progress=quiet)
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / "run", config), weights(whole, config))


def test_stopped_before_its_first_checkpoint_it_starts_again_from_the_weights_it_started_from(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(whole, source)
    newest = source / "checkpoints" / "60"
    for path in (newest, newest.with_suffix(".json")):
        path.rename(tmp_path / path.name)
    config = dataclasses.replace(config, init=FromCheckpoint(path=str(source)), steps=0)
    train(config, run, progress=quiet)
    assert json.loads((run / "input.json").read_text())["init_step"] == 40
    first = weights(run, config)

    (run / "complete.json").unlink()
    shutil.rmtree(run / "checkpoints")
    for path in (newest, newest.with_suffix(".json")):
        (tmp_path / path.name).rename(path)
    train(config, run, progress=quiet)
    jax.tree.map(np.testing.assert_array_equal, weights(run, config), first)


@pytest.mark.parametrize("problem", ["checkpoint 60 is gone", "checkpoint 60 holds others now"])
def test_a_run_does_not_start_again_from_other_weights(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, problem: str
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(whole, source)
    config = dataclasses.replace(config, init=FromCheckpoint(path=str(source)), steps=0)
    train(config, run, progress=quiet)
    (run / "complete.json").unlink()
    shutil.rmtree(run / "checkpoints")
    for name in ("60", "60.json"):
        (source / "checkpoints" / name).rename(tmp_path / name)
    if "others" in problem:
        shutil.copytree(source / "checkpoints" / "40", source / "checkpoints" / "60")
    with pytest.raises(UserError, match=rf"{problem}.*--out"):
        train(config, run, progress=quiet)
    assert not (run / "complete.json").exists()


def test_a_step_takes_the_rows_that_hold_its_trained_tokens(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(config, batch=TrainedTokensPerStep(tokens=300))
    summary = train(config, tmp_path / "run", progress=quiet)
    assert summary["trained_tokens"] / STEPS == pytest.approx(300, rel=0.02)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": RowsPerStep(rows=12)}, DataError, "12.*8"),
        ({"mesh": MeshConfig(fsdp=3)}, UserError, "8 device"),
        ({"tokenizer": "nowhere/tokenizer.model"}, UserError, "nowhere"),
        ({"init": FromCheckpoint(path="nowhere")}, UserError, "nowhere"),
        ({"steps": -1}, UserError, "steps is -1"),
    ],
)
def test_what_can_not_be_meant_is_refused_and_nothing_looks_complete(
    config: TrainConfig, tmp_path: pathlib.Path, change: dict[str, Any], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(dataclasses.replace(config, **change), tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run" / "complete.json").exists()


def test_a_seed_that_no_key_holds_is_refused() -> None:
    with pytest.raises(UserError, match="64 bits"):
        RandomInit(seed=2**63)


def test_a_vocabulary_larger_than_the_model_s_is_refused(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    model = dataclasses.replace(config.model, vocab_size=300)
    with pytest.raises(UserError, match=r"model\.vocab_size is 300"):
        train(dataclasses.replace(config, model=model), tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"d_ff": 64}, "d_ff: 32 -> 64"), ({"rope_theta": 5e5}, "rope_theta: 10000.0 -> 500000.0")],
)
def test_weights_of_another_model_are_refused_by_name(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    model = dataclasses.replace(config.model, **change)
    config = dataclasses.replace(config, model=model, init=FromCheckpoint(path=str(whole)))
    with pytest.raises(UserError, match=rf"another model .*model\.{message}"):
        train(config, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_data(config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = unfinished(whole, tmp_path / "run")
    pinned = json.loads((out / "input.json").read_text())
    (out / "input.json").write_text(json.dumps({**pinned, "packed_sha256": "0" * 64}))
    with pytest.raises(UserError, match="packed_sha256"):
        train(config, out, progress=quiet)


@pytest.mark.parametrize("damage", [b"", b'{"packed', b"[]", b"\xff\xfe"])
def test_a_run_whose_input_can_not_be_read_is_refused(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, damage: bytes
) -> None:
    out = unfinished(whole, tmp_path / "run")
    (out / "input.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"input\.json: damaged"):
        train(config, out, progress=quiet)


def test_the_folder_of_another_run_is_refused(config: TrainConfig, whole: pathlib.Path) -> None:
    with pytest.raises(FolderError, match="seed"):
        train(dataclasses.replace(config, seed=5), whole, progress=quiet)
