"""Checkpoints of a run: saved in the background, verified before they are trusted.

checkpoints/200/        one Orbax folder of named trees: params, opt_state, guard (an imported one: params alone)
checkpoints/200.json    every file of it with its size and checksum, and what was measured there; written once Orbax
                        has committed the folder

Of several processes each writes its part of the arrays, and checks its part of the files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import google_crc32c
import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from configs.errors import UserError
from wizard_jax.hosts.group import ALONE, Hosts
from wizard_jax.train.slices import ReadLayer, layer_reader, saved_by_layer

PARAMS = "params"
LOSS = "loss"
_UNFINISHED = ".orbax-checkpoint-tmp"
_COMMITTED = "commit_success.txt"
_CHUNK = 1 << 24
_MINUTES = 60.0
"""What processes wait for one another while terabytes are written or read."""
# What Orbax and TensorStore raise for bytes that are missing or wrong (a full memory is a RuntimeError).
_DAMAGE = (OSError, ValueError, LookupError)


Convert = Callable[[tuple[str, ...], jax.Array], Any]
"""What becomes of an array of the parameters, by its path."""


class CheckpointError(UserError):
    """A checkpoint that was asked for, or all there are, can not be restored."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints survive a save: the `newest`, those at multiples of `every`, the `best` by the measured loss.

    None keeps all for `newest`, and none for the others.
    """

    newest: int | None = None
    every: int | None = None
    best: int | None = None

    def of(self, saved: Mapping[int, float | None]) -> set[int]:
        """The steps to keep of those saved, each with the loss that was measured there, if one was."""
        steps = sorted(saved)
        kept = set(steps if self.newest is None else steps[-self.newest :])
        if self.every is not None:
            kept |= {step for step in steps if step % self.every == 0}
        losses = sorted((loss, step) for step, loss in saved.items() if loss is not None)
        return kept | {step for _, step in losses[: self.best or 0]}


KEEP_ALL = Keep()


class Restored(NamedTuple):
    """The trees that were asked for, the step they are of, and what was passed over to get there."""

    step: int
    trees: dict[str, Any]
    notes: tuple[str, ...]


class CheckpointStore:
    """The `checkpoints` folder of a run, local or gs://. Close it, or use it as a context manager."""

    def __init__(self, folder: str | os.PathLike[str], *, keep: Keep = KEEP_ALL, hosts: Hosts = ALONE) -> None:
        """Of several processes every one must make the same calls."""
        name = os.fspath(folder)
        self.folder = epath.Path(name if "://" in name else os.path.abspath(name))  # Orbax takes no relative path
        self._keep, self._hosts = keep, hosts
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        self._passed_over: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def save(self, step: int, trees: Mapping[str, Any], *, loss: float | None = None) -> None:
        """Start to save `trees` as `step`; on return they may be donated. Waits for the save before.

        `loss` is what was measured at this step, for `Keep.best`. Raises CheckpointError as `wait` does.
        """
        self.wait()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._hosts.is_first:
                self._remove(step)
            self._passed_over.discard(step)
            with saved_by_layer():
                response = ocp.save_checkpointables_async(self._path(step), dict(trees), overwrite=True)
        except _DAMAGE as error:
            raise self._unsaved(step, error) from error
        self._saving = step, self._thread.submit(self._commit, step, response, loss)

    def wait(self) -> None:
        """Until the save under way, if any, is complete; raises CheckpointError for what went wrong with it."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        step, future = saving
        try:
            future.result()
        except _DAMAGE as error:
            raise self._unsaved(step, error) from error

    def _unsaved(self, step: int, error: BaseException) -> CheckpointError:
        left = _listed(other for other in self.steps() if other != step)
        return CheckpointError(
            f"checkpoint {step} can not be saved in {self.folder}: {_first_line(error)}; whole ones there: {left}. "
            "Make room, or mend what it says, and start the same command again"
        )

    def steps(self) -> tuple[int, ...]:
        """Every step that was committed here and not removed by `keep`, damaged or not, in rising order."""
        if not self.folder.exists():
            return ()
        names = (path.name.removesuffix(".json") for path in self.folder.iterdir())
        return tuple(sorted({int(name) for name in names if name.isdecimal()}))

    def agreed_steps(self) -> tuple[int, ...]:
        """`steps` as process 0 sees them: on the file system of many machines others may see less for a moment."""
        steps: list[int] = json.loads(self._hosts.gather("checkpoints", json.dumps(self.steps()))[0])
        return tuple(steps)

    def restore(
        self, abstract: Mapping[str, Any], *, step: int | None = None, convert: Convert | None = None
    ) -> Restored:
        """The trees named in `abstract`, of the newest complete step or of `step`.

        Leaves are `jax.ShapeDtypeStruct`; each is placed by its sharding, whatever mesh it was saved from, or
        on the first device if it has none. Without `step`, a damaged checkpoint is passed over for the one
        before it, which is said in `notes`. With `convert`, the parameters are read one array at a time, and each
        becomes what `convert(path, array)` makes of it before the next is read. With no tree in `abstract` the
        checkpoint is found and its files are checked, for `read_layers`. Raises CheckpointError for a damaged
        `step`, for arrays of other shapes, and if nothing complete is left.
        """
        candidates = self.agreed_steps()
        if not candidates:
            raise CheckpointError(f"{self.folder} holds no checkpoint: has the run saved one yet?")
        if step is not None and step not in candidates:
            raise CheckpointError(f"{self.folder} holds no checkpoint {step}; there are: {_listed(candidates)}")
        damaged: list[str] = []
        for candidate in (step,) if step is not None else reversed(candidates):
            problem = self._any(f"files of checkpoint {candidate}", self._damage(candidate))
            if problem is None:
                trees, problem = self._tried(candidate, abstract, convert)
            if problem is None:
                notes = [f"checkpoint {candidate} is taken instead of a newer one: {one}" for one in damaged]
                return Restored(candidate, trees, tuple(notes))
            damaged.append(problem)
            self._passed_over.add(candidate)
        if step is not None:
            others = _listed([other for other in candidates if other != step])
            raise CheckpointError(f"checkpoint {step} is damaged: {damaged[0]}. Other steps here: {others}")
        raise CheckpointError(
            f"no complete checkpoint is left in {self.folder}: {'; '.join(damaged)}. Put the files back, or "
            "start again in a new folder"
        )

    def read_layers(self, step: int, abstract: Any) -> ReadLayer:
        """Reads the parameters of a whole `step`, one layer at a time. Raises CheckpointError: of another model."""
        path = self._path(step)
        _check_shapes(abstract, ocp.checkpointables_metadata(path).metadata[PARAMS], path=path)
        return layer_reader(path / PARAMS)

    def params_sha256(self, step: int) -> str:
        """Of the names, sizes and checksums of the files that hold the parameters of a restored `step`."""
        manifest = self._manifest(step)
        files = json.loads(manifest.read_text())["files"] if manifest.exists() else self._read_through(step)
        params = {name: told for name, told in files.items() if name.startswith(f"{PARAMS}/")}
        return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()

    def _read_through(self, step: int) -> dict[str, dict[str, int]]:
        return _files(self._path(step), _names(self._path(step)))

    def _path(self, step: int) -> epath.Path:
        return self.folder / str(step)

    def _manifest(self, step: int) -> epath.Path:
        return self.folder / f"{step}.json"

    def _any(self, name: str, problem: str | None) -> str | None:
        """The first problem that any process has."""
        told = self._hosts.gather(name, problem or "", minutes=_MINUTES)
        return next((one for one in told if one), None)

    def _tried(
        self, step: int, abstract: Mapping[str, Any], convert: Convert | None
    ) -> tuple[dict[str, Any], str | None]:
        """The trees, or what any process finds wrong on reading them. Raises CheckpointError for another model's."""
        trees, problem = {}, None
        try:
            trees = self._load(step, abstract, convert)
        except CheckpointError:
            raise
        except _DAMAGE as error:
            problem = f"{self._path(step)} can not be read: {_first_line(error)}"
        return trees, self._any(f"arrays of checkpoint {step}", problem)

    def _commit(self, step: int, response: ocp.AsyncResponse[None], loss: float | None) -> None:
        """Once Orbax is done: the manifest, then remove what `keep` no longer wants and unfinished saves."""
        response.result()
        mine = json.dumps(_files(self._path(step), self._share(_names(self._path(step)))))
        parts = self._hosts.gather(f"saved {step}", mine, minutes=_MINUTES)
        if self._hosts.is_first:
            files = {name: told for part in parts for name, told in json.loads(part).items()}
            written = self._manifest(step).with_suffix(".json.new")
            measured = {} if loss is None else {LOSS: loss}
            written.write_text(json.dumps({"files": files, **measured}, indent=1, sort_keys=True))
            written.replace(self._manifest(step))
            self._tidy(upto=step)
        self._hosts.wait(f"committed {step}")

    def _tidy(self, *, upto: int) -> None:
        steps = [step for step in self.steps() if step <= upto]
        whole = {step: self._loss(step) for step in steps if step not in self._passed_over}
        for step in set(steps) - self._keep.of(whole):
            self._remove(step)
        for path in self.folder.iterdir():
            if _UNFINISHED in path.name:
                path.rmtree(missing_ok=True)

    def _loss(self, step: int) -> float | None:
        """What was measured at `step`; None where nothing was, or its manifest can not be read."""
        try:
            loss: float | None = json.loads(self._manifest(step).read_text()).get(LOSS)
        except (OSError, ValueError, AttributeError):
            return None
        return loss

    def _share(self, names: Sequence[str]) -> Sequence[str]:
        """Of the files of a checkpoint, those that this process reads through."""
        return sorted(names)[self._hosts.index :: self._hosts.count]

    def _remove(self, step: int) -> None:
        """The manifest goes last: while it is there, half a folder is damaged, and a damaged one stays so."""
        self._path(step).rmtree(missing_ok=True)
        self._manifest(step).unlink(missing_ok=True)

    def _damage(self, step: int) -> str | None:
        """The first thing that is wrong with the files of `step`, or None."""
        folder, manifest = self._path(step), self._manifest(step)
        if not manifest.exists():  # the run died just after the commit
            return None if (folder / _COMMITTED).exists() else f"{folder / _COMMITTED} is missing"
        try:
            files = json.loads(manifest.read_text())["files"]
            expected = {name: (int(told["bytes"]), int(told["crc32c"])) for name, told in files.items()}
        except (*_DAMAGE, TypeError, AttributeError) as error:
            return f"{manifest} can not be read: {_first_line(error)}"
        for name in self._share(list(expected)):
            file, (size, checksum) = folder / name, expected[name]
            try:
                if not file.exists():
                    return f"{file} is missing"
                if (found := int(file.stat().length)) != size:
                    return f"{file} has {found:,} bytes of {size:,}"
                if _checksum(file) != checksum:
                    return f"{file} has other bytes than were saved (CRC-32C)"
            except OSError as error:
                return f"{file} can not be read: {_first_line(error)}"
        return None

    def _load(self, step: int, abstract: Mapping[str, Any], convert: Convert | None) -> dict[str, Any]:
        path = self._path(step)
        saved = ocp.checkpointables_metadata(path).metadata
        for name in abstract:
            if name not in saved and not self._manifest(step).exists():
                raise OSError(f"it holds no {name}")
            if name not in saved:
                raise CheckpointError(
                    f"{path} holds no {name}, only {', '.join(sorted(saved))}: it is not of a run, or of one by an "
                    "earlier version; start from its weights with init=@FromCheckpoint in another --out"
                )
            if saved[name] is None:  # Orbax logs the reason and goes on
                raise OSError(f"the metadata of {name} is damaged")
        if PARAMS in abstract:
            _check_shapes(abstract[PARAMS], saved[PARAMS], path=path)
        if not abstract:
            return {}
        placed = jax.tree.map(_placed, dict(abstract))
        if convert is None:
            return dict(ocp.load_checkpointables(path, placed))
        assert placed.keys() == {PARAMS}, placed.keys()
        return {PARAMS: _one_at_a_time(path, placed[PARAMS], convert=convert)}


def _one_at_a_time(path: epath.Path, placed: Any, *, convert: Convert) -> Any:
    """The tree of parameters with each array converted, so that no more than one is there as it was saved."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True

    def load(keys: tuple[str, ...], leaf: Any) -> Any:
        alone = functools.reduce(lambda node, name: {name: node}, reversed(keys), leaf)
        with context:
            loaded = ocp.load_checkpointables(path, {PARAMS: alone})[PARAMS]
        array = functools.reduce(lambda node, name: node[name], keys, loaded)
        return jax.block_until_ready(convert(keys, array))  # type: ignore[no-untyped-call]  # jax leaves it so

    def walk(node: Any, keys: tuple[str, ...]) -> Any:
        if not isinstance(node, dict):
            return load(keys, node)
        return {name: walk(child, (*keys, name)) for name, child in node.items()}

    return walk(placed, ())


def _placed(leaf: Any) -> Any:
    """The abstract array with a sharding over real devices: its own, or the first device.

    One that was made under `jax.set_mesh` has the sharding of a mesh that names no devices.
    """
    abstract_mesh = isinstance(getattr(leaf.sharding, "mesh", None), jax.sharding.AbstractMesh)
    if leaf.sharding is None or abstract_mesh:
        return leaf.update(sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return leaf


def _names(folder: epath.Path) -> list[str]:
    """Every file under `folder`, by its path in there."""
    return [str((parent / name).relative_to(folder)) for parent, _, names in folder.walk() for name in names]


def _files(folder: epath.Path, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Size and checksum of files: Orbax does not notice a changed byte among incompressible numbers."""
    return {name: {"bytes": int((folder / name).stat().length), "crc32c": _checksum(folder / name)} for name in names}


def _checksum(path: epath.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = google_crc32c.extend(checksum, chunk)
    return checksum


def _check_shapes(wanted: Any, saved: Any, *, path: epath.Path) -> None:
    """Refuse a checkpoint of another model, naming the first array that differs."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(key, simple=True, separator="/"): leaf.shape for key, leaf in leaves}

    wanted_shapes, saved_shapes = shapes(wanted), shapes(saved)
    for name in sorted(wanted_shapes.keys() | saved_shapes.keys()):
        if wanted_shapes.get(name) != saved_shapes.get(name):
            have, want = (
                f"of shape {list(there[name])}" if name in there else "absent"
                for there in (saved_shapes, wanted_shapes)
            )
            raise CheckpointError(
                f"{path} is of another model: {name} is {have} in it and {want} in the config; give the "
                "model settings that it was made with"
            )


def _listed(steps: Any) -> str:
    return ", ".join(map(str, steps)) or "none"


def _first_line(error: BaseException) -> str:
    """The first line of the error that started it all: Orbax names the handler that failed, not the file."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
