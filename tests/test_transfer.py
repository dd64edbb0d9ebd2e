"""A model comes in and goes out with everything that belongs to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from tiny_flow import Flow

from configs.errors import UserError
from configs.folder import read_complete
from wizard_jax.cli import main
from wizard_jax.convert.importing import load_hf_params, read_chat_format, read_model_config
from wizard_jax.runs import open_model
from wizard_jax.tokenizer import train_tokenizer
from wizard_jax.transfer import export_model, import_model


@pytest.fixture(scope="module")
def exported(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    export_model(flow.run, out, dtype="float32")
    return out


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_export_writes_what_was_trained(flow: Flow, exported: Path) -> None:
    model = open_model(flow.run)
    assert read_model_config(exported).d_model == model.config.d_model
    jax.tree.map(np.testing.assert_array_equal, load_hf_params(exported, model.config), model.params)
    assert (exported / "tokenizer.model").read_bytes() == flow.tokenizer.read_bytes()


def test_exported_again_nothing_changes(flow: Flow, exported: Path) -> None:
    before = files(exported)
    export_model(flow.run, exported, dtype="float32")
    assert files(exported) == before


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"step": 1}, {"chat_format": "vicuna"}])
def test_another_export_does_not_replace_it(flow: Flow, exported: Path, other: dict[str, object]) -> None:
    before = files(exported)
    with pytest.raises(UserError, match="exists already"):
        export_model(flow.run, exported, **{"dtype": "float32", **other})
    assert files(exported) == before


def test_the_card_says_what_it_is_what_it_saw_and_that_a_simulation_wrote_it(flow: Flow, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    summary = read_complete(flow.evolved)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Checkpoint 2 of 2 steps" in card
    assert f"{summary['records']:,} conversations" in card
    assert "answered by: simulated-llm" in card
    assert "a simulation: this checkpoint shows that the pipeline works, and nothing else" in card
    assert "`wizardlm_7b`" in card
    assert "optimizer.peak_lr" in card


def test_the_model_comes_back_as_it_went(flow: Flow, exported: Path, tmp_path: Path) -> None:
    config = import_model(exported, tmp_path / "imported")
    there, back = open_model(flow.run), open_model(tmp_path / "imported")
    jax.tree.map(np.testing.assert_array_equal, back.params, there.params)
    assert back.config == config
    assert back.chat_format == "wizardlm_7b"
    assert back.tokenizer.sha256 == there.tokenizer.sha256
    before = files(tmp_path / "imported")
    import_model(exported, tmp_path / "imported")
    assert files(tmp_path / "imported") == {**before, ".lock": files(tmp_path / "imported")[".lock"]}
    export_model(tmp_path / "imported", tmp_path / "again", dtype="float32")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (exported / weights).read_bytes()
    assert f"imported from {exported}" in (tmp_path / "again" / "README.md").read_text()


def test_the_chat_format_is_known_however_transformers_writes_its_template(exported: Path, tmp_path: Path) -> None:
    file, alone = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    config = json.loads((exported / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    file.write_text(json.dumps(config))
    assert read_chat_format(tmp_path) == ""
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    file.write_text(json.dumps({**config, "chat_template": several}))
    assert read_chat_format(tmp_path) == "wizardlm_7b"
    transformers.AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path)
    assert alone.exists()
    assert read_chat_format(tmp_path) == "wizardlm_7b"
    file.write_text(json.dumps({**config, "chat_template": template}))
    alone.write_text("another")
    assert read_chat_format(tmp_path) == ""


def test_a_model_without_a_chat_format_asks_for_one_and_keeps_it(exported: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(exported, bare)
    (bare / "tokenizer_config.json").unlink()
    import_model(bare, tmp_path / "imported")
    with pytest.raises(UserError, match="--chat-format"):
        export_model(tmp_path / "imported", tmp_path / "out")
    export_model(tmp_path / "imported", tmp_path / "out", chat_format="alpaca")
    assert "`alpaca`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="exists already"):
        export_model(tmp_path / "imported", tmp_path / "out", chat_format="vicuna")


@pytest.mark.parametrize(
    "gone",
    [("config.json", "tokenizer.model", "weights.json", "model.safetensors"), ("config.json", "tokenizer.model"), ()],
)
def test_an_import_that_was_cut_off_is_finished_when_it_is_run_again(
    flow: Flow, exported: Path, tmp_path: Path, gone: tuple[str, ...]
) -> None:
    """In the order that they are written in: complete.json is the last."""
    out = tmp_path / "imported"
    import_model(exported, out)
    summary = read_complete(out, stage="import")
    for name in ("complete.json", *gone):
        (out / name).unlink()
    import_model(exported, out)
    assert read_complete(out, stage="import") == summary
    jax.tree.map(np.testing.assert_array_equal, open_model(out).params, open_model(flow.run).params)


def test_an_import_goes_on_with_the_files_that_are_missing_or_have_changed(exported: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "hf", tmp_path / "imported"
    shutil.copytree(exported, source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    for number in range(3):
        save_file({name: tensors[name] for name in names[number::3]}, source / f"model-{number}.safetensors")
    import_model(source, out)
    before = files(out)
    for name in ("complete.json", "config.json", "model-1.safetensors"):
        (out / name).unlink()
    changed = {name: tensors[name] + 1 for name in names[2::3]}
    save_file(changed, source / "model-2.safetensors")
    import_model(source, out)
    now = files(out)
    assert now["model-0.safetensors"] == before["model-0.safetensors"], "it was copied already"
    assert now["model-1.safetensors"][1] == before["model-1.safetensors"][1]
    assert now["model-2.safetensors"][1] == (source / "model-2.safetensors").read_bytes()
    assert open_model(out).params["layers"]["q"].shape[0] == 1


def test_an_imported_model_is_trained_from(flow: Flow, exported: Path, tmp_path: Path) -> None:
    import_model(exported, tmp_path / "imported")
    start = ("init=@FromCheckpoint", f"init.path={tmp_path / 'imported'}", "steps=0")
    assert main(flow.train_command(tmp_path / "run", *start)) == 0
    jax.tree.map(np.testing.assert_array_equal, open_model(tmp_path / "run").params, open_model(flow.run).params)


def test_a_folder_without_a_tokenizer_is_refused_and_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(exported, bare)
    for name in ("tokenizer.model", "tokenizer.json"):
        (bare / name).unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.model and no tokenizer\.json: put"):
        import_model(bare, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    (other / "tokenizer.model").unlink()
    train_tokenizer([chr(code) for code in range(256, 700)], other / "tokenizer.model", vocab_size=800)
    for take in (lambda: import_model(other, tmp_path / "imported"), lambda: open_model(other)):
        with pytest.raises(UserError, match=r"other: its tokenizer has \d+ tokens, the model only 400"):
            take()
    assert not (tmp_path / "imported").exists()


def test_settings_of_a_tokenizer_that_are_not_json_are_named(exported: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json:? is not JSON"):
        import_model(broken, tmp_path / "imported")


def test_the_card_tells_of_the_simulation_also_when_the_shards_themselves_were_named(
    flow: Flow, tmp_path: Path
) -> None:
    assert main(flow.train_command(tmp_path / "run", f"data.dataset={flow.evolved / 'dataset'}", "steps=0")) == 0
    export_model(tmp_path / "run", tmp_path / "hf")
    assert "answered by: simulated-llm" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.parametrize(("made", "message"), [(False, "does not exist"), (True, "holds no model")])
def test_what_is_no_model_is_refused(made: bool, message: str, tmp_path: Path) -> None:
    if made:
        (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=message):
        export_model(tmp_path / "run", tmp_path / "hf")


def test_a_data_set_is_no_model(flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made by wizard evolve"):
        export_model(flow.evolved, tmp_path / "hf")
