"""What was saved comes back, on any mesh; what is damaged is found, named and passed over."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from wizard_jax.model.sharding import MeshConfig, make_mesh
from wizard_jax.train.checkpoint import CheckpointError, CheckpointStore, Keep

ROOT = pathlib.Path(__file__).parents[1]


def trees(value: float = 0.0) -> dict[str, Any]:
    """The two trees of a state, sharded over all devices."""
    sharding = NamedSharding(make_mesh(MeshConfig()), PartitionSpec("fsdp"))
    weight = jax.device_put(jnp.arange(64.0).reshape(16, 4) + value, sharding)
    return {
        "params": {"layers": {"q": weight}, "final_norm": jnp.ones(3) * value},
        "opt_state": ({"mu": weight / 2}, jnp.int32(7)),
    }


def abstract(*names: str) -> dict[str, Any]:
    """The same trees without values or places."""
    made = trees()
    return {name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), made[name]) for name in names}


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with checkpoints 1, 2 and 3, whose arrays begin with their step."""
    with CheckpointStore(tmp_path / "checkpoints") as store:
        for step in (1, 2, 3):
            store.save(step, trees(float(step)))
    return tmp_path / "checkpoints"


def assert_same(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert jax.tree.structure(left) == jax.tree.structure(right)


def test_the_newest_comes_back_as_it_was(saved: pathlib.Path) -> None:
    restored = CheckpointStore(saved).restore(abstract("params", "opt_state"))
    assert (restored.step, restored.notes) == (3, ())
    assert_same(restored.trees, trees(3.0))


def test_a_step_comes_back_by_number(saved: pathlib.Path) -> None:
    restored = CheckpointStore(saved).restore(abstract("params", "opt_state"), step=2)
    assert_same(restored.trees, trees(2.0))


def test_one_tree_comes_back_without_the_other(saved: pathlib.Path) -> None:
    restored = CheckpointStore(saved).restore(abstract("params"))
    assert restored.trees.keys() == {"params"}
    assert_same(restored.trees["params"], trees(3.0)["params"])


def test_arrays_lie_where_another_mesh_wants_them(saved: pathlib.Path) -> None:
    sharding = NamedSharding(make_mesh(MeshConfig(fsdp=2, tensor=4)), PartitionSpec("fsdp", "tensor"))
    wanted = abstract("params")
    wanted["params"]["layers"]["q"] = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=sharding)
    restored = CheckpointStore(saved).restore(wanted).trees["params"]
    assert restored["layers"]["q"].sharding == sharding
    assert_same(restored, trees(3.0)["params"])


def test_abstract_arrays_made_under_a_mesh_are_good_enough(saved: pathlib.Path) -> None:
    with jax.set_mesh(make_mesh(MeshConfig())):
        wanted = {"params": jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, abstract("params")["params"]))}
    assert_same(CheckpointStore(saved).restore(wanted).trees["params"], trees(3.0)["params"])


def test_weights_alone_are_a_checkpoint_too(tmp_path: pathlib.Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(0, {"params": trees(5.0)["params"]})
        store.wait()
        assert_same(store.restore(abstract("params")).trees["params"], trees(5.0)["params"])
        with pytest.raises(CheckpointError, match=r"0 holds no opt_state, only params"):
            store.restore(abstract("params", "opt_state"))


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path: pathlib.Path) -> None:
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        array = jnp.zeros(4_000_000)
        store.save(0, {"params": {"w": array}})
        for _ in range(5):
            array = add_one(array)
        store.wait()
        wanted = {"params": {"w": jax.ShapeDtypeStruct(array.shape, array.dtype)}}
        assert not store.restore(wanted).trees["params"]["w"].any()


def test_only_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    with CheckpointStore(tmp_path, keep=Keep(newest=2)) as store:
        for step in (1, 2, 3, 4):
            store.save(step, trees(step))
        store.wait()
        assert store.steps() == (3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "3.json", "4", "4.json"]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(), {1, 2, 3, 4, 5, 6}),
        (Keep(newest=2), {5, 6}),
        (Keep(newest=1, every=2), {2, 4, 6}),
        (Keep(newest=1, best=2), {2, 4, 6}),
        (Keep(newest=1, every=3, best=1), {2, 3, 6}),
        (Keep(newest=1, best=9), {2, 3, 4, 6}),
    ],
)
def test_the_newest_every_kth_and_the_best_are_kept(keep: Keep, kept: set[int]) -> None:
    assert keep.of({1: None, 2: 0.5, 3: 0.9, 4: 0.5, 5: None, 6: 0.7}) == kept


def test_a_best_one_survives_newer_ones_and_a_restart(tmp_path: pathlib.Path) -> None:
    keep = Keep(newest=1, best=1)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, None)):
        with CheckpointStore(tmp_path, keep=keep) as store:
            store.save(step, trees(step), loss=loss)
    assert store.steps() == (2, 4)
    assert_same(CheckpointStore(tmp_path).restore(abstract("params"), step=2).trees, {"params": trees(2.0)["params"]})


def save_whole(store: CheckpointStore, step: int) -> None:
    store.save(step, trees(step))
    store.wait()


# Threads of Orbax that are still at work when a save fails find its event loop closed, and say so to no one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_says_so_and_leaves_the_one_before(saved: pathlib.Path) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it: a write beyond the limit then fails
    try:
        store = CheckpointStore(saved)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, most[1]))
        with pytest.raises(CheckpointError, match=r"checkpoint 4 can not be saved in .* whole ones there: 1, 2, 3"):
            save_whole(store, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        signal.signal(signal.SIGXFSZ, before)
    gc.collect()  # so that they say it here, and not in another test
    assert CheckpointStore(saved).restore(abstract("params")).step == 3


def test_a_step_is_saved_again_in_place_of_a_damaged_one(saved: pathlib.Path) -> None:
    lose_a_file(saved / "3")
    with CheckpointStore(saved, keep=Keep(newest=2)) as store:
        store.save(3, trees(30.0))
        store.wait()
        assert_same(store.restore(abstract("params", "opt_state"), step=3).trees, trees(30.0))
        assert store.steps() == (2, 3)


def test_a_damaged_step_is_never_trusted_when_a_run_dies_as_it_saves_it_again(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(path for path in sorted((saved / "3" / "params").rglob("d/*")))
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with CheckpointStore(saved) as store:
        monkeypatch.setattr(ocp, "save_checkpointables_async", die)
        with pytest.raises(KeyboardInterrupt):
            store.save(3, trees(30.0))
        assert store.steps() == (1, 2)


@pytest.mark.parametrize("step", [2, 4])  # before the damaged one, and after it
def test_a_damaged_one_takes_no_place_among_those_to_keep(saved: pathlib.Path, step: int) -> None:
    lose_a_file(saved / "3")
    with CheckpointStore(saved, keep=Keep(newest=2)) as store:
        assert store.restore(abstract("params")).step == 2
        store.save(step, trees(20.0))
        store.wait()
        assert set(store.steps()) - {3} == ({1, 2} if step == 2 else {2, 4})
        assert store.restore(abstract("params")).step == step


def lose_a_file(step: pathlib.Path) -> pathlib.Path:
    file = next(path for path in sorted((step / "params").rglob("d/*")))
    file.unlink()
    return file


def test_a_missing_file_is_named_and_the_step_before_is_taken(saved: pathlib.Path) -> None:
    file = lose_a_file(saved / "3")
    restored = CheckpointStore(saved).restore(abstract("params", "opt_state"))
    assert restored.step == 2
    assert_same(restored.trees, trees(2.0))
    (note,) = restored.notes
    assert f"{file} is missing" in note
    assert "checkpoint 2 is taken" in note


def test_a_missing_file_of_a_step_asked_for_by_number_is_an_error_that_names_it(saved: pathlib.Path) -> None:
    file = lose_a_file(saved / "2")
    with pytest.raises(CheckpointError, match=rf"{file} is missing.*1, 3"):
        CheckpointStore(saved).restore(abstract("params"), step=2)


def test_a_truncated_file_is_named_with_its_sizes(saved: pathlib.Path) -> None:
    file = saved / "3" / "params" / "manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{file} has [\d,]+ bytes of [\d,]+"):
        CheckpointStore(saved).restore(abstract("params"), step=3)


@pytest.mark.parametrize("size", [16, 500_000])  # a byte of the metadata, or of the numbers
def test_a_flipped_byte_is_found(tmp_path: pathlib.Path, size: int) -> None:
    numbers = np.random.default_rng(0).normal(size=size).astype(np.float32)
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, {"params": {"w": jnp.asarray(step * numbers)}})
    file = max((tmp_path / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    restored = CheckpointStore(tmp_path).restore({"params": {"w": jax.ShapeDtypeStruct((size,), jnp.float32)}})
    assert restored.step == 1
    assert f"{file} has other bytes than were saved" in restored.notes[0]
    np.testing.assert_array_equal(restored.trees["params"]["w"], numbers)


# Orbax does not await the other reads of a tree when one has failed.
@pytest.mark.filterwarnings("ignore:.*never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["a file", "a tree", "all"])
def test_what_orbax_can_not_read_is_damage_too(saved: pathlib.Path, lost: str) -> None:
    (saved / "3.json").unlink()
    match lost:
        case "a file":
            lose_a_file(saved / "3")
        case "a tree":
            shutil.rmtree(saved / "3" / "params")
        case _:
            shutil.rmtree(saved / "3")
            (saved / "3").mkdir()
    restored = CheckpointStore(saved).restore(abstract("params"))
    assert restored.step == 2
    assert f"{saved / '3'}" in restored.notes[0]


def test_a_checkpoint_whose_list_of_files_was_not_yet_written_counts(saved: pathlib.Path) -> None:
    (saved / "3.json").unlink()
    assert CheckpointStore(saved).restore(abstract("params")).step == 3
    (saved / "3" / "commit_success.txt").unlink()
    assert CheckpointStore(saved).restore(abstract("params")).step == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": 3}', '{"files": {"a": {}}}', "\xff"])
def test_a_damaged_list_of_files_is_damage(saved: pathlib.Path, text: str) -> None:
    (saved / "3.json").write_bytes(text.encode("latin-1"))
    restored = CheckpointStore(saved).restore(abstract("params"))
    assert restored.step == 2
    assert "3.json can not be read" in restored.notes[0]


def test_a_file_that_the_disk_does_not_give_back_is_damage(saved: pathlib.Path) -> None:
    file = lose_a_file(saved / "3")
    file.symlink_to("/proc/self/mem")  # of size 0 and unreadable at its beginning
    listed = json.loads((saved / "3.json").read_text())
    listed["files"][str(file.relative_to(saved / "3"))]["bytes"] = 0
    (saved / "3.json").write_text(json.dumps(listed))
    restored = CheckpointStore(saved).restore(abstract("params"))
    assert restored.step == 2
    assert f"{file} can not be read: OSError: [Errno 5]" in restored.notes[0]


def test_with_none_left_every_one_is_named(saved: pathlib.Path) -> None:
    files = [lose_a_file(saved / str(step)) for step in (1, 2, 3)]
    with pytest.raises(CheckpointError, match="no complete checkpoint is left") as raised:
        CheckpointStore(saved).restore(abstract("params"))
    assert all(str(file) in str(raised.value) for file in files)


def test_a_step_that_was_never_saved_is_answered_with_those_that_were(saved: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 7; there are: 1, 2, 3"):
        CheckpointStore(saved).restore(abstract("params"), step=7)


def test_an_empty_folder_holds_no_checkpoint(tmp_path: pathlib.Path) -> None:
    assert CheckpointStore(tmp_path / "nothing").steps() == ()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        CheckpointStore(tmp_path / "nothing").restore(abstract("params"))


@pytest.mark.parametrize("change", ["shape", "more", "less"])
def test_the_first_array_that_another_model_has_otherwise_is_named(saved: pathlib.Path, change: str) -> None:
    wanted = abstract("params")
    match change:
        case "shape":
            wanted["params"]["layers"]["q"] = jax.ShapeDtypeStruct((16, 5), jnp.float32)
            name = r"layers/q is of shape \[16, 4\] in it and of shape \[16, 5\]"
        case "more":
            wanted["params"]["unembed"] = jax.ShapeDtypeStruct((16, 5), jnp.float32)
            name = "unembed is absent in it"
        case _:
            del wanted["params"]["final_norm"]
            name = r"final_norm is of shape \[3\] in it and absent"
    with pytest.raises(CheckpointError, match=name):
        CheckpointStore(saved).restore(wanted)


CHILD = """
import sys, jax.numpy as jnp
from wizard_jax.train.checkpoint import CheckpointStore
with CheckpointStore(sys.argv[1]) as store:
    for step in range(1, 1000):
        store.save(step, {"params": {str(name): jnp.full(3_000_000, step, jnp.float32) for name in range(4)}})
"""


def test_killed_while_it_saves_the_checkpoint_before_is_whole(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 90
    while not ((tmp_path / "2.json").exists() and any("tmp" in path.name for path in tmp_path.iterdir())):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    wanted = {"params": {str(name): jax.ShapeDtypeStruct((3_000_000,), jnp.float32) for name in range(4)}}
    with CheckpointStore(tmp_path, keep=Keep(newest=3)) as store:
        restored = store.restore(wanted)
        assert restored.step >= 2
        assert restored.notes == ()
        for array in restored.trees["params"].values():
            assert (np.asarray(array) == restored.step).all()
        store.save(restored.step + 1, restored.trees)
        store.wait()
        assert store.restore(wanted).step == restored.step + 1
    assert not [path.name for path in tmp_path.iterdir() if "tmp" in path.name], "the unfinished save is cleared away"


def test_the_list_of_files_is_complete(saved: pathlib.Path) -> None:
    listed = json.loads((saved / "3.json").read_text())["files"]
    files = [path for path in (saved / "3").rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(saved / "3")): path.stat().st_size for path in files}
    assert {name: told["bytes"] for name, told in listed.items()} == sizes
