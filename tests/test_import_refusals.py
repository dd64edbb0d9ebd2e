"""What can be wrong with a folder that is imported or exported: exit code 2, one message, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_flow import Flow

from wizard_jax.cli import main
from wizard_jax.tokenizer import train_tokenizer
from wizard_jax.transfer import export_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
UP = "model.layers.0.mlp.up_proj.weight"

Spoil = Callable[[Path], None]
SPOILT: dict[str, tuple[Spoil, tuple[str, ...]]] = {}


def spoilt(*says: str) -> Callable[[Spoil], Spoil]:
    def keep(spoil: Spoil) -> Spoil:
        SPOILT[spoil.__name__.replace("_", " ")] = spoil, says
        return spoil

    return keep


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change(folder: Path, changes: dict[str, np.ndarray | None]) -> None:
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}, folder / WEIGHTS
    )


def in_two_files(folder: Path, **listed: str) -> None:
    """With an index that lists the files as they are, but for `listed`."""
    tensors = load_file(folder / WEIGHTS)
    norm = {NORM: tensors.pop(NORM)}
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "model-1.safetensors")
    save_file(norm, folder / "model-2.safetensors")
    weight_map = {**dict.fromkeys(tensors, "model-1.safetensors"), NORM: "model-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, **listed}}))


def header_of(file: Path) -> tuple[dict[str, object], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(file: Path, text: str, data: bytes) -> None:
    file.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + data)


@spoilt("holds only pickled weights (pytorch_model.bin)", "run code", "save_pretrained")
def pickled_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@spoilt("['LlamaForCausalLn']", "OPTForCausalLM", "the nearest is LlamaForCausalLM")
def an_architecture_that_is_not_known(folder: Path) -> None:
    edit(folder, architectures=["LlamaForCausalLn"])


@spoilt(
    "4 tensor(s)",
    f"missing: {NORM}",
    "unknown: model.extra [3]",
    f"shape [16, 32] where the config says [32, 16]: {UP}",
    "dtype I32, not one of F32, F16, BF16: lm_head.weight",
)
def tensors_missing_unknown_misshapen_and_of_another_dtype(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    wrong = {NORM: None, "model.extra": np.zeros(3, np.float32), UP: tensors[UP].T}
    change(folder, {**wrong, "lm_head.weight": tensors["lm_head.weight"].astype(np.int32)})


@spoilt("2 tensor(s)", f"set twice, in model-1.safetensors and model-2.safetensors: {UP}", "missing: lm_head.weight")
def a_tensor_in_two_files_and_one_that_is_gone(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["lm_head.weight"]
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "model-1.safetensors")
    save_file({UP: tensors[UP]}, folder / "model-2.safetensors")


@spoilt("1 tensor(s)", f"dtype F4, not one of F32, F16, BF16: {NORM}")
def weights_of_four_bits(folder: Path) -> None:
    header, data = header_of(folder / WEIGHTS)
    norm = header[NORM]
    assert isinstance(norm, dict)
    norm |= {"dtype": "F4", "shape": [16 * 8]}
    with_header(folder / WEIGHTS, json.dumps(header), data)


@spoilt("its header sets twice: model.norm.weight", "fetch it again")
def a_header_that_sets_a_tensor_twice(folder: Path) -> None:
    header, data = header_of(folder / WEIGHTS)
    norm = json.dumps({NORM: header[NORM]})
    with_header(folder / WEIGHTS, f"{norm[:-1]}, {json.dumps(header)[1:]}", data)


@spoilt(f"{WEIGHTS}: truncated or no safetensors file", "fetch it again")
def a_truncated_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


@spoilt(f"{WEIGHTS}: truncated or no safetensors file")
def a_file_of_four_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x01\0\0\0")


@spoilt("truncated or no safetensors file (a header of", "fetch it again")
def a_file_that_a_server_answered_with_a_page(folder: Path) -> None:
    (folder / WEIGHTS).write_text("<html>Too many requests</html>")


@spoilt(f"{WEIGHTS}: truncated or no safetensors file", "bytes, of")
def bytes_that_are_missing_at_the_end(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


@spoilt(f"{NORM}: begins at byte", "is next")
def tensors_that_lie_over_one_another(folder: Path) -> None:
    header, data = header_of(folder / WEIGHTS)
    norm = header[NORM]
    assert isinstance(norm, dict)
    first, last = norm["data_offsets"]
    norm["data_offsets"] = [first - 8, last - 8]
    with_header(folder / WEIGHTS, json.dumps(header), data)


@spoilt("bytes for F32 [17]")
def a_shape_that_its_bytes_do_not_fill(folder: Path) -> None:
    header, data = header_of(folder / WEIGHTS)
    norm = header[NORM]
    assert isinstance(norm, dict)
    norm["shape"] = [17]
    with_header(folder / WEIGHTS, json.dumps(header), data)


@spoilt(f"listed in {INDEX} but absent: gone.safetensors", "and no name of a file beside it: ../other.safetensors")
def an_index_that_names_files_that_are_not_there_and_elsewhere(folder: Path) -> None:
    in_two_files(folder, **{NORM: "../other.safetensors", UP: "gone.safetensors"})


@spoilt("and no name of a file beside it: /etc/passwd")
def an_index_that_names_a_file_by_its_whole_path(folder: Path) -> None:
    in_two_files(folder, **{NORM: "/etc/passwd"})


@spoilt("model-2.safetensors: is a link to", "out of the folder: put the file itself there")
def weights_that_are_a_link_out_of_the_folder(folder: Path) -> None:
    in_two_files(folder)
    elsewhere = folder.parent / "elsewhere.safetensors"
    (folder / "model-2.safetensors").rename(elsewhere)
    (folder / "model-2.safetensors").symlink_to(elsewhere)


@spoilt("tokenizer.model: is a link to", "out of the folder")
def a_tokenizer_that_is_a_link_out_of_the_folder(folder: Path) -> None:
    (folder / "tokenizer.model").rename(folder.parent / "t.model")
    (folder / "tokenizer.model").symlink_to("../t.model")


@spoilt("has no weight_map")
def an_index_without_a_map(folder: Path) -> None:
    in_two_files(folder)
    (folder / INDEX).write_text("{}")


@spoilt("its tokenizer has", "tokens, the model only 400")
def a_tokenizer_that_does_not_fit_the_embedding(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    train_tokenizer([chr(code) for code in range(256, 700)], folder / "tokenizer.model", vocab_size=800)


@spoilt(f"{WEIGHTS}: 2 tensor(s) hold NaN or infinity", UP, NORM)
def weights_that_are_no_numbers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[UP][3, 5] = np.nan
    tensors[NORM][2] = -np.inf
    change(folder, {UP: tensors[UP], NORM: tensors[NORM]})


@spoilt("tie_word_embeddings is true, yet lm_head.weight is not")
def a_head_that_is_not_the_embedding_it_is_said_to_be(folder: Path) -> None:
    edit(folder, tie_word_embeddings=True)


@spoilt("config.json: no such file")
def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.fixture(scope="module")
def hf(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    export_model(flow.run, out, dtype="float32", verify="nothing")
    (out / "export.json").unlink()
    return out


@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_is_spoilt_is_refused_in_one_message_and_nothing_is_left(
    name: str, hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, says = SPOILT[name]
    folder, out = tmp_path / "hf", tmp_path / "out"
    shutil.copytree(hf, folder)
    spoil(folder)
    assert main(["import", str(folder), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("wizard: ")
    assert said.count("wizard: ") == 1
    assert "Traceback" not in said
    for words in says:
        assert words in said, said
    assert not out.exists()


def test_the_snapshot_of_a_hubs_cache_is_taken_with_its_links(hf: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0123"
    shutil.copytree(hf, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert main(["import", str(snapshot), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (hf / WEIGHTS).read_bytes()
    assert not (tmp_path / "out" / WEIGHTS).is_symlink()


PLACES = {
    "the source itself": (["import", "HF", "--out", "HF"], "is source and --out in one"),
    "a folder that holds something": (["import", "HF", "FULL"], "holds mine.txt and is no stage's folder"),
    "an export over something": (["export", "HF", "FULL"], "exists already; remove it"),
    "an export over itself": (["export", "HF", "HF"], "exists already; remove it"),
    "an export over a file": (["export", "HF", "FULL/mine.txt"], "exists already; remove it"),
    "an export to where nothing can be": (["export", "HF", "/proc/none"], "/proc/none: can not be written: "),
    "a bucket": (["import", "gs://bucket/model", "A"], "gs://bucket/model: is no local folder: copy it here first"),
    "no place": (["import", "HF"], "needs the folder to write: name it after the source"),
    "two places": (["import", "HF", "A", "--out", "B"], "name the folder to write once"),
    "a folder that is not there": (["import", "NONE", "A"], "config.json: no such file"),
    "a step of a folder": (["export", "HF", "A", "--step", "3"], "is an exported folder, which has no step 3"),
    "a base for a whole model": (["export", "HF", "A", "--base-model", "a/b"], "goes with --format peft"),
    "a hub's name that is none": (["import", "hf://name", "A"], "write it as hf://owner/name"),
    "a place to push to that is none": (["export", "HF", "A", "--push", "name"], "write it as owner/name"),
    "a hub out of reach": (["import", "hf://a/b@main", "A"], "hf://a/b@main can not be read: "),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_can_not_be_meant_are_refused_and_left_as_they_are(
    name: str, hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, says = PLACES[name]
    shutil.copytree(hf, tmp_path / "HF")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine.txt").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    places = {"HF", "FULL", "FULL/mine.txt", "A", "B", "NONE"}
    assert main([str(tmp_path / word) if word in places else word for word in command]) == 2
    said = capsys.readouterr().err
    assert says in said, said
    assert said.count("wizard: ") == 1
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_disk_without_room_is_found_before_anything_is_written(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for command in (["import", str(hf), str(tmp_path / "out")], ["export", str(hf), str(tmp_path / "out")]):
        assert main(command) == 2
        assert "are to be written and 0.0 GB are free: make room" in capsys.readouterr().err
        assert not any(tmp_path.iterdir())
