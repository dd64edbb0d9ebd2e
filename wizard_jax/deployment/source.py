"""The weights of a model, read an array of one layer at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from wizard_jax.convert import architectures
from wizard_jax.convert.imported import weights_sha256
from wizard_jax.convert.inventory import read_tensors
from wizard_jax.convert.tensors import Array, Place, Read, at
from wizard_jax.model.decoder import Params
from wizard_jax.runs import FoundModel, check_imported, open_model
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.source import CHECKPOINTS, abstract_on

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    read: Read
    step: int | None
    """Of the checkpoint; None for a Hugging Face folder and an imported model."""
    sha256: str = ""
    """Of the files of an imported model."""


def open_source(found: FoundModel, *, step: int | None) -> Source:
    """Of a run with an adapter, whose base and update are merged array by array, all weights are in memory.

    Raises UserError: no such step, or weights that are damaged.
    """
    if found.run is None:
        sha256 = weights_sha256(found.path) if found.stage == "import" else ""
        return Source(read=_of_folder(found), step=None, sha256=sha256)
    if found.adapter is not None:
        model = open_model(found.path, step=step)
        return Source(read=reader(model.params), step=model.step)
    with CheckpointStore(found.path / CHECKPOINTS) as store:
        newest, _, notes = store.restore({}, step=step)
        for note in notes:
            _log.warning(note)
        read = store.read_layers(newest, abstract_on(None, found.config))
    return Source(read=lambda place: read(place.path, place.layer), step=newest)


def _of_folder(found: FoundModel) -> Read:
    if found.stage == "import":
        check_imported(found.path)
    stored = read_tensors(found.path, found.config)
    names = {place: name for name, rows in architectures.places(found.config).items() for place in rows}

    def read(place: Place) -> Array:
        return place.read(stored[names[place]], tuple(slice(0, size) for size in place.shape))

    return read


def reader(params: Params) -> Read:
    """Reads the arrays of a tree."""

    def read(place: Place) -> Array:
        array = at(params, place.path)
        return np.asarray(array if place.layer is None else array[place.layer])

    return read
