"""An export is read back before it has its name: a folder that is not the model never gets one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from tiny_flow import Flow

from configs.folder import load_config, read_complete
from wizard_jax.cli import main
from wizard_jax.convert import export as exporting
from wizard_jax.convert import peer, verify
from wizard_jax.convert.export import export_hf
from wizard_jax.convert.importing import load_hf_params
from wizard_jax.convert.read_back import ReadBack
from wizard_jax.convert.safetensors_file import all_finite
from wizard_jax.convert.tensors import Place
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from wizard_jax.train.config import TrainConfig
from wizard_jax.transfer import export_model, import_model

TINY = ModelConfig(vocab_size=400, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=24)


def reference_of(params: decoder.Params) -> verify.Reference:
    return lambda mesh: jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def drawn(model: ModelConfig) -> decoder.Params:
    """Far enough from each other that a wrong rotation shows."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(random.normal(scale=0.3, size=leaf.shape), "float32"),
        decoder.abstract_params(model),
    )


def exported(flow: Flow, model: ModelConfig, folder: Path, dtype: Any = "float32") -> decoder.Params:
    params = drawn(model)
    export_hf(params, model, flow.tokenizer, folder, chat_format="wizardlm_7b", card="", dtype=dtype)
    return params


@pytest.mark.parametrize(
    ("scaling", "window", "lengths"),
    [
        (None, None, [256]),
        (Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64), None, [128, 256]),
        (YarnScaling(factor=4.0, original_positions=64), None, [128, 256]),
        (LinearScaling(factor=4.0), None, [128, 256]),
        (None, 32, [96, 256]),
    ],
    ids=str,
)
@pytest.mark.parametrize("reader", ["transformers", "own"])
def test_logits_past_the_original_length_agree_and_those_of_another_rotation_do_not(
    reader: str,
    scaling: RopeScaling | None,
    window: int | None,
    lengths: list[int],
    flow: Flow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = "mistral" if window else "llama"
    model = dataclasses.replace(TINY, max_positions=256, rope_scaling=scaling, sliding_window=window, family=family)
    if reader == "own":
        monkeypatch.setattr(peer, "has_transformers", lambda: False)
    params = exported(flow, model, tmp_path / "hf", "bfloat16")
    assert verify.prompt_lengths(model) == lengths
    said = verify.verify_logits(tmp_path / "hf", model, reference_of(params), dtype="bfloat16")
    assert said.startswith(
        f"logits of prompts of {' and '.join(map(str, lengths))} tokens by {reader if reader != 'own' else 'this'}"
    )
    config = tmp_path / "hf" / "config.json"
    told = json.loads(config.read_text())
    if reader == "own":
        params["layers"]["q"] = params["layers"]["q"] * 1.01
    elif window:
        config.write_text(json.dumps({**told, "sliding_window": window + 1}))
    else:
        config.write_text(
            json.dumps(
                {
                    **told,
                    "rope_theta": 9e3,
                    "rope_scaling": None,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 9e3},
                }
            )
        )
    with pytest.raises(verify.VerificationError, match=r"differ by .* of the largest, where 1e-04 is allowed"):
        verify.verify_logits(tmp_path / "hf", model, reference_of(params), dtype="bfloat16")


def test_a_model_that_does_not_fit_into_memory_is_not_run_and_the_export_says_so(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "available_memory", lambda: 1 << 20)
    said = export_model(flow.run, tmp_path / "hf").checks
    assert said[0] == "all 12 tensors were read back from the disk and are what was written"
    assert said[1].startswith("no prompts were run, as 1.1 GB of memory were not free")


def test_memory_is_counted_in_bytes_of_this_machine() -> None:
    assert 1 << 26 < verify.available_memory() < 1 << 46
    seven = dataclasses.replace(
        TINY, vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, d_ff=11_008
    )
    assert 27e9 < verify.needed_memory(seven, 512) < 40e9


def flipped(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("step", ["bytes", "rows", "config"])
def test_a_folder_that_differs_never_gets_its_name_and_the_exit_code_is_that_of_a_bug(
    step: str, flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if step == "bytes":  # what a broken disk does
        differing = ReadBack.differing

        def spoilt(self: ReadBack) -> list[str]:
            flipped(next(file for file in tmp_path.iterdir() if file.name == ".hf.partial"))
            return differing(self)

        monkeypatch.setattr(ReadBack, "differing", spoilt)
        says = "the disk holds other bytes than were written, of: lm_head.weight"
    elif step == "rows":  # what a fault in a table of tensors does
        to_stored = Place.to_stored

        def reversed_(self: Place, array: Any) -> Any:
            stored = to_stored(self, array)
            return stored[::-1] if self.path[-1] == "q" else stored

        monkeypatch.setattr(Place, "to_stored", reversed_)
        says = "of the largest, where 1e-04 is allowed"
    else:
        write = exporting._model_config
        monkeypatch.setattr(exporting, "_model_config", lambda *a, **k: {**write(*a, **k), "rms_norm_eps": 1e-3})
        says = "config.json does not come back as it was: norm_eps"
    out = tmp_path / "hf"
    assert main(["export", str(flow.run), str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"wizard: {out}: not written, as it would not be {flow.run}: ")
    assert says in said
    assert "Traceback" not in said
    assert not any(tmp_path.iterdir())


def test_an_export_reads_one_layer_at_a_time_what_was_saved(flow: Flow, tmp_path: Path) -> None:
    """Of a run in a folder with a name that is no address; and of a mesh that splits every array."""
    run = tmp_path / "a run, 100 % mine"
    mesh = ("mesh.fsdp=4", "mesh.tensor=2", "model.n_heads=2", "model.n_kv_heads=2", "model.n_layers=3")
    assert main(flow.train_command(run, *mesh, "model.scan_unroll=1")) == 0
    export_model(run, tmp_path / "hf", dtype="float32", verify="tensors")
    from wizard_jax.runs import open_model

    found = load_hf_params(tmp_path / "hf", load_config(TrainConfig, run).model)
    jax.tree.map(np.testing.assert_array_equal, found, open_model(run).params)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_infinity_and_nan_are_found_anywhere_and_large_numbers_are_none(dtype: Any) -> None:
    largest = float(jax.numpy.finfo(dtype).max)
    fine = np.full(600_000, largest, jax.numpy.dtype(dtype))
    fine[::2] = -largest
    assert all_finite(fine)
    for wrong in (np.inf, -np.inf, np.nan):
        for place in (0, 262_144, 599_999):
            broken = fine.copy()
            broken[place] = wrong
            assert not all_finite(broken)


def test_the_card_is_one_that_the_hub_reads_and_tells_how_the_model_came_about(flow: Flow, tmp_path: Path) -> None:
    assert main(flow.eval_command(tmp_path / "elsewhere" / "eval")) == 0
    os.symlink(tmp_path / "elsewhere" / "eval", flow.folder / "eval")
    try:
        export_model(flow.run, tmp_path / "hf", verify="tensors")
        export_model(flow.run, tmp_path / "first", step=1, verify="nothing")
    finally:
        (flow.folder / "eval").unlink()
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license is None
    assert {"wizard_jax", "evol-instruct"} <= set(card.data.tags)
    metrics = card.data.eval_results
    assert {result.dataset_name for result in metrics} == {"SimulatedWorld"}
    of_another = ModelCard.load(tmp_path / "first" / "README.md")
    assert of_another.data.eval_results is None, "the hub would take them for this checkpoint's"
    assert "checkpoint 2: exact match" in of_another.text
    for words in (
        "Rounds: round 0: ",
        "Operations: ",
        "answered by: simulated-llm",
        "License of the data: not stated",
        "Loss of the run's last step: ",
        "SimulatedWorld, 1 step, ",
        "Exported by wizard_jax ",
        "Trained by wizard_jax ",
        "It was trained from random weights.",
        "- All 12 tensors were read back",
    ):
        assert words in card.text, words


def test_the_license_that_the_data_sets_card_states_is_the_cards(flow: Flow, tmp_path: Path) -> None:
    evolved = tmp_path / "evolved"
    shutil.copytree(flow.evolved, evolved)
    card = (evolved / "README.md").read_text()
    (evolved / "README.md").write_text(card.replace("---\n", "---\nlicense: cc-by-nc-4.0\n", 1))
    assert main(flow.train_command(tmp_path / "run", f"data.dataset={evolved}", "steps=0")) == 0
    export_model(tmp_path / "run", tmp_path / "hf", verify="nothing")
    told = ModelCard.load(tmp_path / "hf" / "README.md")
    assert told.data.license == "cc-by-nc-4.0"
    assert "License of the data: cc-by-nc-4.0" in told.text


def test_the_card_tells_what_was_taken_of_the_data_and_gives_no_imported_base_the_datas_license(
    flow: Flow, tmp_path: Path
) -> None:
    evolved, base = tmp_path / "evolved", tmp_path / "base"
    shutil.copytree(flow.evolved, evolved)
    card = (evolved / "README.md").read_text()
    (evolved / "README.md").write_text(card.replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
    export_model(flow.run, tmp_path / "hf_base", verify="nothing")
    import_model(tmp_path / "hf_base", base)
    start = ("init=@FromCheckpoint", f"init.path={base}", f"data.dataset={evolved}", "data.selection.rounds_to=0")
    assert main(flow.train_command(tmp_path / "run", *start, "steps=0")) == 0
    seeds = read_complete(flow.evolved)["by_round"]["0"]
    export_model(tmp_path / "run", tmp_path / "hf", verify="nothing")
    told = ModelCard.load(tmp_path / "hf" / "README.md")
    assert f"An epoch of its training had {seeds} conversations (round 0: {seeds}) with " in told.text
    assert " trained tokens, of `evolved`." in told.text
    assert "License of the data: cc-by-4.0" in told.text
    assert told.data.license is None
    (tmp_path / "run" / "audit.json").write_text("{")
    start = ("init=@FromCheckpoint", f"init.path={tmp_path / 'run'}", f"data.dataset={evolved}", "steps=0")
    assert main(flow.train_command(tmp_path / "next", *start)) == 0
    for run in ("run", "next"):
        export_model(tmp_path / run, tmp_path / f"{run}_hf", verify="nothing")
    cards = [(tmp_path / f"{run}_hf" / "README.md").read_text() for run in ("run", "next")]
    assert "How much of `evolved` was trained on is not known: audit.json is missing or damaged" in cards[0]
    assert "Runs that its weights come from were trained on `evolved`." in cards[1]
    assert cards[1].count("evolved in up to 2 rounds") == 1


def test_weights_are_the_same_in_every_dtype_up_to_their_rounding(flow: Flow, tmp_path: Path) -> None:
    whole = exported(flow, TINY, tmp_path / "whole")
    exported(flow, TINY, tmp_path / "half", "float16")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    for name, array in load_file(tmp_path / "whole" / "model.safetensors").items():
        np.testing.assert_array_equal(array.astype(np.float16), tensors[name])
    assert whole["embed"].dtype == "float32"
