"""A run shows its held-out loss, exact and the same however it was interrupted, its utilisation, a profile, and how to
repeat it, and `docs/watching.md` says what each figure is."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import STEPS, quiet, tiny_config, write_material

from configs.errors import UserError
from configs.folder import read_complete
from configs.loader import paths
from wizard_jax.data.config import DataConfig
from wizard_jax.data.packing import Group, PackedFolder, pack
from wizard_jax.data.pipeline import to_batch
from wizard_jax.model.decoder import abstract_params
from wizard_jax.model.flops import token_flops
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.config import HeldOut, TrainConfig
from wizard_jax.train.step import batch_loss
from wizard_jax.train.train import train
from wizard_jax.train.watching.held_out import summed
from wizard_jax.train.watching.metrics import read_held_out, read_metrics
from wizard_jax.train.watching.trackers import flat
from wizard_jax.train.watching.utilisation import Utilisation

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    return folder


@pytest.fixture(scope="module")
def config(material: pathlib.Path) -> TrainConfig:
    return tiny_config(material, held_out=HeldOut(every=4), peak_flops=1e9, profile_steps=(2, 1), keep_checkpoints=9)


@pytest.fixture(scope="module")
def watched(
    config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[tuple[int, Any]]]:
    """The folder of the run that was never interrupted, and what it showed of the held-out loss."""
    seen: list[tuple[int, Any]] = []
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config, out, progress=lambda done, _, facts: seen.append((done, facts.get("held-out loss"))))
    return out, seen


@pytest.fixture(scope="module")
def whole(watched: tuple[pathlib.Path, object]) -> pathlib.Path:
    return watched[0]


def group(source: str, round_: int) -> Group:
    return Group(source=source, round=round_, conversations=1, tokens=1, trained_tokens=1)


def test_a_group_s_loss_is_its_sum_over_its_tokens_and_no_mean_of_means() -> None:
    groups = [group("zoo", 0), group("zoo", 1), group("farm", 1)]
    batches = [
        (np.float32([[1.0, 7.0, 2.0], [4.0, 0.0, 0.0]]), np.int32([[0, 1, 1], [2, -1, -1]])),
        (np.float32([[3.0, 3.0, 0.0]]), np.int32([[1, 1, -1]])),
    ]
    assert summed(batches, groups=groups) == {
        "loss": 20 / 6,
        "tokens": 6,
        "by_source": {"zoo": {"loss": 16 / 5, "tokens": 5}, "farm": {"loss": 4.0, "tokens": 1}},
        "by_round": {"0": {"loss": 1.0, "tokens": 1}, "1": {"loss": 19 / 5, "tokens": 5}},
    }


def test_a_loss_that_is_not_finite_is_none_and_no_word_that_json_lacks() -> None:
    groups = [group("zoo", 0), group("farm", 0)]
    found = summed([(np.float32([[np.nan, 2.0]]), np.int32([[0, 1]]))], groups=groups)
    assert found["loss"] is None
    assert found["by_source"] == {"zoo": {"loss": None, "tokens": 1}, "farm": {"loss": 2.0, "tokens": 1}}


def test_it_is_measured_before_the_first_step_at_times_and_at_the_end(whole: pathlib.Path) -> None:
    lines = read_held_out(whole)
    assert [line["step"] for line in lines] == [0, 4, STEPS]
    assert [line["step"] for line in read_metrics(whole)] == list(range(1, STEPS + 1))
    order = [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert order == [0, 1, 2, 3, 4, 4, 5, 6, 6]
    assert lines[-1]["held_out"]["loss"] < lines[0]["held_out"]["loss"]
    summary = read_complete(whole)
    assert summary["held_out_last"] == {"step": STEPS, **lines[-1]["held_out"]}
    assert summary["held_out_best"] == {"step": STEPS, "loss": lines[-1]["held_out"]["loss"]}


def test_it_equals_the_loss_of_every_held_out_conversation_by_itself(whole: pathlib.Path, config: TrainConfig) -> None:
    with CheckpointStore(whole / "checkpoints") as store:
        params = store.restore({"params": abstract_params(config.model)}, step=STEPS).trees["params"]
    packed = held_out_part(config)
    found = read_held_out(whole)[-1]["held_out"]
    sums: dict[Any, list[tuple[float, float]]] = {}
    measure = jax.jit(functools.partial(batch_loss, model=config.model))
    for key, batch in conversations(packed):
        loss = measure(params, batch)
        for of in ("all", key.source, str(key.round)):
            sums.setdefault(of, []).append((float(loss.total), float(loss.weight)))
    expected = {of: np.sum(parts, axis=0) for of, parts in sums.items()}
    assert found["by_source"].keys() == {"farm", "zoo"}
    assert found["by_round"].keys() == {"0", "1", "2"}
    for of, told in {"all": found, **found["by_source"], **found["by_round"]}.items():
        total, weight = expected[of]
        assert told["tokens"] == weight, of
        assert told["loss"] == pytest.approx(total / weight, rel=1e-5), of
    assert found["tokens"] == packed.stats.trained_tokens


def held_out_part(config: TrainConfig) -> PackedFolder:
    assert config.pack_cache
    return pack(config.data, Tokenizer(config.tokenizer), cache_dir=pathlib.Path(config.pack_cache), part="held_out")


def conversations(packed: PackedFolder) -> Any:
    """(group, columns of a batch of one row) of each conversation."""
    from wizard_jax.data.row_files import RowReader
    from wizard_jax.data.rows import Row

    for data in RowReader(packed.path, packed.files).read(range(packed.rows)):
        row = Row.from_bytes(data)
        ends = np.cumsum(row.lengths)
        for start, end, number in zip(ends - row.lengths, ends, row.groups, strict=True):
            alone = row._replace(
                tokens=row.tokens[start:end],
                trained=row.trained[start:end],
                lengths=np.int32([end - start]),
                groups=np.int32([number]),
            )
            batch = to_batch([alone], seq_len=packed.stats.seq_len)
            yield packed.groups[number], {name: jax.numpy.asarray(column) for name, column in batch._asdict().items()}


def untimed(folder: pathlib.Path) -> list[str]:
    return [line.partition(', "timing"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("resumed_from", [2, 4])
def test_a_run_that_goes_on_has_the_same_lines(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path, resumed_from: int
) -> None:
    """From a checkpoint with no measurement of its own step, and from one with."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "complete.json").unlink()
    for step in range(resumed_from + 1, STEPS + 1):
        shutil.rmtree(out / "checkpoints" / str(step), ignore_errors=True)
        (out / "checkpoints" / f"{step}.json").unlink(missing_ok=True)
    train(config, out, progress=quiet)
    assert untimed(out) == untimed(whole)


def test_started_again_from_the_beginning_the_first_measurement_is_there_once(
    config: TrainConfig, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "complete.json").unlink()
    shutil.rmtree(out / "checkpoints")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:3]))
    train(config, out, progress=quiet)
    assert untimed(out) == untimed(whole)


def test_progress_shows_it_from_the_start(watched: tuple[pathlib.Path, list[tuple[int, Any]]]) -> None:
    out, seen = watched
    found = [line["held_out"]["loss"] for line in read_held_out(out)]
    assert seen[-1] == (STEPS, found[-1])
    assert (1, found[0]) in seen


def test_measuring_what_is_not_held_out_is_refused(config: TrainConfig) -> None:
    data = DataConfig(dataset=config.data.dataset, chat_format="wizardlm_7b", seq_len=128)
    with pytest.raises(UserError, match=r"held_out_share.* 0"):
        dataclasses.replace(config, data=data)
    with pytest.raises(UserError, match=r"held_out\.every is 0"):
        HeldOut(every=0)


def test_its_utilisation_is_by_the_formula_that_it_states_with_its_figures(
    whole: pathlib.Path, config: TrainConfig
) -> None:
    lines = [line["timing"] for line in read_metrics(whole)]
    each = token_flops(config.model, seq_len=128).total
    for timing in lines:
        assert timing["model_flops_utilisation"] == pytest.approx(each * timing["tokens_per_second"] / (8 * 1e9))
    assert read_complete(whole)["model_flops_utilisation"] == np.median([t["model_flops_utilisation"] for t in lines])
    environment = json.loads((whole / "environment.json").read_text())
    told = environment["model_flops_utilisation"]
    assert Utilisation(**told).of(1.0) == each / 8e9


def test_it_has_the_profile_that_was_asked_for_and_says_what_it_was_made_of(whole: pathlib.Path) -> None:
    assert len(list((whole / "profile").rglob("*.xplane.pb"))) == 1
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["input"].keys() == {"data_sha256", "tokenizer_sha256", "packed_sha256", "held_out_sha256"}
    assert all(environment["input"].values())
    assert environment["source"].keys() & {"revision", "version"}


def test_the_page_says_what_every_figure_is(whole: pathlib.Path) -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    shown = {name.replace("/", ".") for line in read_metrics(whole) for name in flat(line)}
    assert not [name for name in shown if f"`{name}`" not in page]


def test_the_settings_that_the_page_names_are_settings() -> None:
    page = (ROOT / "docs" / "watching.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in page.splitlines() if line.startswith("    wizard train FILE")]
    assert len(commands) == 4
    known = {info.path for info in paths(TrainConfig)}
    for words in commands:
        settings = {word.partition("=")[0] for word in words if "=" in word}
        assert settings
        assert settings <= known
