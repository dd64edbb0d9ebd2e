"""An import or export that is stopped at any moment leaves no folder that loads, and is finished when run again."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_flow import Flow
from wizard_children import Parent, can_have_a_disk, parent_of_wizards

from configs.errors import UserError
from wizard_jax.runs import find_model
from wizard_jax.transfer import export_model, import_model

CODES = {signal.SIGKILL: -9, signal.SIGTERM: 42, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Parent]:
    folder = tmp_path_factory.mktemp("wizards")
    small = disk if can_have_a_disk(disk) else None
    with parent_of_wizards(folder, disk=small, module="wizard_jax.transfer") as parent:
        yield parent


@pytest.fixture(scope="module")
def hf(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights in five files, as those of large models are."""
    from safetensors.numpy import load_file, save_file

    out = tmp_path_factory.mktemp("hf") / "hf"
    export_model(flow.run, out, dtype="float32", verify="nothing")
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    for number in range(5):
        part = dict(itertools.islice(tensors.items(), number, None, 5))
        save_file(part, out / f"model-{number}.safetensors")
    return out


@pytest.fixture(scope="module")
def imported(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "model"
    import_model(hf, out)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes().replace(bytes(folder), b"OUT")  # model.gin names it
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def loads(folder: Path) -> bool:
    """By our reader, or by one that takes any folder with a config and weights."""
    try:
        find_model(folder)
    except UserError:
        return (folder / "config.json").exists() and (folder / "complete.json").exists()
    return True


def stopped_everywhere(parent: Parent, command: list[str], out: Path, whole: dict[str, bytes]) -> int:
    """Stops the command before each of its operations on files, by one signal after the other; returns how often.

    Every second one finds what the one before has left; every sixth is then left alone.
    """
    signals = itertools.cycle(CODES)
    stops = 0
    for moment in itertools.count(1):
        number = next(signals)
        if afresh := moment % 2 == 1:
            shutil.rmtree(out.parent, ignore_errors=True)
        child = parent.start([*command, str(out)], dies_at=(moment, number))
        code = child.wait()
        if code == 0:
            assert files(out) == whole
            if afresh:
                return stops
            continue
        stops += 1
        assert code == CODES[number], child.output
        assert "Traceback" not in child.output
        assert not loads(out), f"stopped before operation {moment} it loads"
        if moment % 6 == 0:
            code, output = parent.run([*command, str(out)])
            assert code == 0, output
            assert files(out) == whole
            assert [path.name for path in out.parent.iterdir()] == [out.name]
    raise AssertionError


def test_an_import_stopped_before_any_of_its_changes_leaves_nothing_that_loads_and_is_then_finished(
    parent: Parent, hf: Path, imported: Path, tmp_path: Path
) -> None:
    assert stopped_everywhere(parent, ["import", str(hf)], tmp_path / "here" / "out", files(imported)) >= 25


@pytest.mark.slow
def test_an_import_that_adds_tokens_stopped_before_any_of_its_changes_is_then_finished(
    parent: Parent, hf: Path, tmp_path: Path
) -> None:
    import_model(hf, tmp_path / "whole", add_tokens=["<new>"], pad_vocabulary_to=64)
    command = ["import", str(hf), "--pad-vocabulary-to", "64", "--add-tokens=<new>"]
    assert stopped_everywhere(parent, command, tmp_path / "here" / "out", files(tmp_path / "whole")) >= 25


@pytest.mark.slow
def test_an_export_stopped_before_any_of_its_changes_leaves_nothing_that_loads_and_is_then_finished(
    parent: Parent, flow: Flow, tmp_path: Path
) -> None:
    export_model(flow.run, tmp_path / "whole", verify="nothing")
    command = ["export", str(flow.run), "--no-verify"]
    assert stopped_everywhere(parent, command, tmp_path / "here" / "out", files(tmp_path / "whole")) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--format gguf", "--format gptq --group-size 16"])
def test_an_export_in_another_format_that_is_killed_leaves_no_folder_and_is_then_finished(
    options: str, parent: Parent, flow: Flow, tmp_path: Path
) -> None:
    command, out = ["export", str(flow.run), *options.split()], tmp_path / "here" / "out"
    assert parent.run([*command, str(tmp_path / "whole")])[0] == 0
    for moment in itertools.count(1, 4):
        child = parent.start([*command, str(out)], dies_at=(moment, signal.SIGKILL))
        if child.wait() == 0:
            break
        assert child.wait() == -signal.SIGKILL, child.output
        assert not out.exists()
    assert moment > 8, "it was killed at least three times, each time on what the last has left"
    assert files(out) == files(tmp_path / "whole")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_disk_that_is_full_at_any_size_leaves_nothing_that_loads(
    verb: str, parent: Parent, hf: Path, flow: Flow, disk: Path
) -> None:
    if not can_have_a_disk(disk):
        pytest.skip("no file system of one's own can be mounted here")
    out, seen = disk / verb, parent.seen(disk) / verb
    command = ["import", str(hf), str(out)] if verb == "import" else ["export", str(flow.run), str(out), "--no-verify"]
    full = 0
    for kilobytes in range(4, 160, 40):
        parent.resize(disk, kilobytes=kilobytes)
        code, output = parent.run(command)
        if code:
            full += 1
            assert code == 2, output
            assert "Traceback" not in output
            assert f"wizard: {disk}/" in output or "make room" in output
            assert not loads(seen)
        parent.resize(disk, kilobytes=4000)
        code, output = parent.run(command)
        assert code == 0, output
        assert loads(seen)
        shutil.rmtree(seen)
    assert full >= 2
