"""The weights that a run starts from: which they were is pinned at its first start, in input.json.

A run with an adapter needs them at every start, as its checkpoints hold the adapter alone. They are read array by
array, and each is put into the form that the run keeps it in before the next is read.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from etils import epath

from configs.errors import UserError
from configs.folder import IDENTITY, load_config, read_complete, read_identity, write_atomically
from wizard_jax.convert.imported import damage, weights_sha256
from wizard_jax.convert.importing import load_hf_params
from wizard_jax.hosts.group import ALONE, Hosts
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.decoder import Params, abstract_params, logical_axes
from wizard_jax.model.lora import LoRA, freeze, init_adapter, merge, trained_axes
from wizard_jax.model.sharding import shardings
from wizard_jax.train.checkpoint import PARAMS, CheckpointStore, Convert, Restored
from wizard_jax.train.config import FromCheckpoint, TrainConfig

CHECKPOINTS = "checkpoints"
INPUT = "input.json"

_log = logging.getLogger(__name__)


class SourceError(UserError):
    """The weights that a run was started from are not there, or are others now."""


def read_input(folder: Path) -> dict[str, Any]:
    """What a run has written down of its input."""
    file = folder / INPUT
    try:
        told = json.loads(file.read_text())
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise SourceError(
            f"{file}: damaged, so what the run trains on is not known; put it back, or choose another --out"
        )
    return told


def is_import(path: str) -> bool:
    return (epath.Path(path) / IDENTITY).exists() and read_identity(path).stage == "import"


def check_source(init: FromCheckpoint) -> None:
    """Raises UserError where there are no weights of a whole model at `init.path`."""
    if is_import(init.path):
        read_complete(init.path)
        return
    with CheckpointStore(f"{init.path}/{CHECKPOINTS}") as store:
        if not store.steps():
            raise SourceError(
                f"init.path {init.path} holds no checkpoint: give the folder of a finished `wizard train` or "
                "`wizard import`"
            )
    path = Path(init.path)
    if not (path / IDENTITY).exists() or read_identity(path).stage != "train":
        return
    if load_config(TrainConfig, path).adapter is not None:
        raise SourceError(
            f"init.path {path} holds an adapter, not a model: write both in one by `wizard export {path} --dtype "
            "float32`, read that by `wizard import`, and give the folder that it makes"
        )


def source_params(
    init: FromCheckpoint,
    folder: Path,
    *,
    model: ModelConfig,
    abstract: Params,
    convert: Convert | None = None,
    hosts: Hosts = ALONE,
) -> Params:
    """The weights that the run started from when it was first started; the newest there are, if that is now.

    `abstract` is the model's tree with shardings; `convert` is applied to each array by its path. Raises SourceError.
    """
    pinned = read_input(folder)
    if is_import(init.path):
        step, sha256 = None, _imported_sha256(init, folder, pinned=pinned, hosts=hosts)
        params = load_folder(init.path, model, abstract=abstract, convert=convert)
    else:
        restored, sha256 = _from_run(init, folder, pinned=pinned, abstract=abstract, convert=convert, hosts=hosts)
        step, params = restored.step, restored.trees[PARAMS]
    if "init_sha256" not in pinned:
        pinned |= {"init_sha256": sha256} if step is None else {"init_step": step, "init_sha256": sha256}
        if hosts.is_first:
            write_atomically(folder / INPUT, json.dumps(pinned, indent=1) + "\n")
    elif pinned["init_sha256"] != sha256:
        raise SourceError(_other_source(folder, init, f"checkpoint {step} holds others now"))
    return params


def load_folder(
    path: str | os.PathLike[str], model: ModelConfig, *, abstract: Params, convert: Convert | None = None
) -> Params:
    """The weights of a folder of `wizard import`, placed as `abstract` says; each process reads what it needs."""
    placed = jax.tree.map(_over_devices, abstract)
    return load_hf_params(path, model, shardings=placed, convert=convert)


def _over_devices(leaf: jax.ShapeDtypeStruct) -> Any:
    """The sharding of an array, or None for the first device; one made under `jax.set_mesh` names no devices."""
    return None if isinstance(getattr(leaf.sharding, "mesh", None), jax.sharding.AbstractMesh) else leaf.sharding


def _imported_sha256(init: FromCheckpoint, folder: Path, *, pinned: dict[str, Any], hosts: Hosts) -> str:
    """Of the weights of an import, which are whole, and those that the run was started from."""
    problem = damage(init.path, hosts=hosts)
    sha256 = weights_sha256(init.path)
    if pinned.get("init_sha256", sha256) != sha256:
        raise SourceError(_other_source(folder, init, problem or "it was imported again since"))
    if problem is not None:
        raise SourceError(f"init.path {init.path}: {problem}; put the file back, or import the model into a new folder")
    return sha256


def _from_run(
    init: FromCheckpoint,
    folder: Path,
    *,
    pinned: dict[str, Any],
    abstract: Params,
    convert: Convert | None,
    hosts: Hosts,
) -> tuple[Restored, str]:
    at = pinned.get("init_step")
    with CheckpointStore(f"{init.path}/{CHECKPOINTS}", hosts=hosts) as store:
        if at is not None and at not in store.agreed_steps():
            raise SourceError(_other_source(folder, init, f"checkpoint {at} is gone"))
        restored = store.restore({PARAMS: abstract}, step=at, convert=convert)
        sha256 = store.params_sha256(restored.step)
    for note in restored.notes:
        _log.warning(note)
    return restored, sha256


def _other_source(folder: Path, init: FromCheckpoint, problem: str) -> str:
    return (
        f"{folder} was started from other weights than {init.path} holds: {problem}; put them back, or choose "
        "another --out"
    )


def frozen_params(
    init: FromCheckpoint,
    folder: Path,
    *,
    model: ModelConfig,
    adapter: LoRA,
    abstract: Params,
    hosts: Hosts = ALONE,
) -> Params:
    """The base of an adapter as the step takes it: `abstract` is the state's `frozen`, with shardings."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = jax.tree.leaves(placed)[0].mesh

    def stored(path: tuple[str, ...], array: jax.Array) -> Any:
        where = functools.reduce(lambda tree, name: tree[name], path, placed)
        frozen = functools.partial(freeze, path, model=model, base=adapter.base)
        return jax.jit(frozen, out_shardings=where, donate_argnums=0)(array)

    whole = abstract_on(mesh, model)
    return source_params(init, folder, model=model, abstract=whole, convert=stored, hosts=hosts)


def merged_params(
    folder: Path,
    init: FromCheckpoint,
    *,
    model: ModelConfig,
    adapter: LoRA,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    convert: Convert | None = None,
) -> Restored:
    """The model that a run with an adapter has trained: float32, base and update in one, split over `mesh`.

    With `convert`, each array becomes what `convert(path, array)` makes of it before the next is merged. The base is
    that of the run, rounded or taken back from 4 bits, so that the result computes what was trained.
    """
    restored = restore_adapter(folder, model=model, adapter=adapter, step=step, mesh=mesh)
    trained = restored.trees[PARAMS]

    def merged(path: tuple[str, ...], array: jax.Array) -> Any:
        def both(array: jax.Array, trained: Params) -> jax.Array:
            return merge(path, freeze(path, array, model=model, base=adapter.base), trained=trained, adapter=adapter)

        whole: jax.Array = jax.jit(both, out_shardings=array.sharding, donate_argnums=0)(array, trained)
        return whole if convert is None else convert(path, whole)

    params = source_params(init, folder, model=model, abstract=abstract_on(mesh, model), convert=merged)
    return restored._replace(trees={PARAMS: params})


def restore_adapter(
    folder: str | os.PathLike[str],
    *,
    model: ModelConfig,
    adapter: LoRA,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Restored:
    """A and B of a run: its newest complete checkpoint, or that of `step`."""
    abstract: Params = jax.eval_shape(functools.partial(init_adapter, model, adapter=adapter))
    if mesh is not None:
        abstract = _on(mesh, abstract, trained_axes(model, adapter=adapter))
    with CheckpointStore(Path(folder) / CHECKPOINTS) as store:
        return store.restore({PARAMS: abstract}, step=step)


def abstract_on(mesh: jax.sharding.Mesh | None, model: ModelConfig) -> Params:
    """The model's parameters as `jax.ShapeDtypeStruct`, with their shardings if there is a mesh."""
    abstract = abstract_params(model)
    return abstract if mesh is None else _on(mesh, abstract, logical_axes(model))


def _on(mesh: jax.sharding.Mesh, abstract: Params, axes: Params) -> Params:
    placed: Params = jax.tree.map(
        lambda leaf, where: leaf.update(sharding=where), abstract, shardings(axes, mesh, shapes=abstract)
    )
    return placed
