"""Whether a folder that was written is the model that it was written from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from configs.schema import fields_of
from wizard_jax.convert import architectures, peer
from wizard_jax.convert.export import Dtype
from wizard_jax.convert.importing import load_hf_params
from wizard_jax.convert.inventory import read_json, read_tensors
from wizard_jax.convert.raw_config import RawConfig
from wizard_jax.convert.safetensors_file import Written
from wizard_jax.convert.tensors import Array
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.model.rope import LinearScaling
from wizard_jax.model.sharding import MeshConfig, make_mesh, shardings

TOLERANCE = 1e-4
"""Of the largest logit (of 1, where all are smaller). Both sides compute in float32 with the values as they were
rounded for the folder, so it is the same for every dtype: what is left is the order of summation."""

PROMPT = 512
_BEYOND = 64  # positions past the original length, and past a sliding window

Reference = Callable[[jax.sharding.Mesh], decoder.Params]
"""Loads the parameters that the folder was written from, in float32, over a mesh."""


class VerificationError(Exception):
    """What was written is not the model: a fault of this project or of the machine, and not of whoever asked for it."""


def verify_tensors(folder: Path, written: Written, config: ModelConfig) -> str:
    """Reads every tensor back from the disk; returns what was done. Raises VerificationError."""
    verify_config(folder, config)
    read_tensors(folder, config)
    return verify_written(written)


def verify_config(folder: Path, config: ModelConfig, *, beside: Sequence[str] = ()) -> None:
    """Reads config.json back; `beside` are its settings that are not the network's. Raises VerificationError."""
    told = read_json(epath.Path(folder) / "config.json")
    values = {name: value for name, value in told.items() if name not in beside}
    found = architectures.read_config(RawConfig(values, path=folder / "config.json"))
    changed = [
        f"{name}: {getattr(config, name)!r} -> {getattr(found, name)!r}"
        for name, field in fields_of(ModelConfig).items()
        if field.role == "identity" and getattr(config, name) != getattr(found, name)
    ]
    if changed:
        raise VerificationError(f"config.json does not come back as it was: {'; '.join(changed)}")


def verify_written(written: Written) -> str:
    """Reads all that was put back from the disk; returns what was done. Raises VerificationError."""
    differing = written.differing()
    if differing:
        raise VerificationError(f"the disk holds other bytes than were written, of: {', '.join(differing)}")
    return f"all {written.tensors:,} tensors were read back from the disk and are what was written"


def verify_logits(folder: Path, config: ModelConfig, reference: Reference, *, dtype: Dtype) -> str:
    """Runs the same prompts through the model and through the folder; returns what was done, and by what.

    The folder is read by `transformers`, or by this project where that is not installed. Nothing is run where memory
    does not allow it. Raises VerificationError.
    """
    lengths = prompt_lengths(config)
    free = available_memory()
    fitting = [length for length in lengths if needed_memory(config, length) <= free]
    left = [length for length in lengths if length not in fitting]
    shortage = f"{needed_memory(config, min(left)) / 1e9:.1f} GB of memory were not free" if left else ""
    if not fitting:
        return f"no prompts were run, as {shortage}"
    prompts = [_prompt(length, config=config) for length in fitting]
    mesh = make_mesh(MeshConfig(slice=1, fsdp=1), jax.devices("cpu")[:1])
    expected = _own_logits(functools.partial(_rounded, reference, mesh, dtype), prompts, config=config)
    if peer.has_transformers():
        reader = f"transformers {peer.transformers_version()}"
        try:
            found = peer.transformers_logits(folder, prompts)
        except Exception as error:
            raise VerificationError(f"{reader} does not read it: {type(error).__name__}: {error}") from error
    else:
        reader = "this project's own reader (transformers and torch are not installed)"
        found = _own_logits(functools.partial(_reloaded, folder, config, mesh), prompts, config=config)
    worst = max(map(_difference, expected, found))
    if not worst <= TOLERANCE:  # NaN is no agreement
        raise VerificationError(
            f"logits of {_listed(fitting)} tokens by {reader} differ by {worst:.1e} of the largest, where "
            f"{TOLERANCE:.0e} is allowed"
        )
    done = f"logits of prompts of {_listed(fitting)} tokens by {reader} are within {TOLERANCE:.0e} of the largest"
    return done + (f"; not run: {_listed(left)}, as {shortage}" if left else "")


def prompt_lengths(config: ModelConfig) -> list[int]:
    """512 tokens, and past the length from which RoPE is stretched or a window moves; what the model is meant for."""
    lengths = {PROMPT}
    match config.rope_scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            lengths.add(int(config.max_positions / factor) + _BEYOND)
        case scaling:
            lengths.add(scaling.original_positions + _BEYOND)
    if config.sliding_window is not None:
        lengths.add(config.sliding_window + _BEYOND)
    return sorted({min(length, config.max_positions) for length in lengths})


def needed_memory(config: ModelConfig, length: int) -> int:
    """Bytes: the parameters in float32 with a copy of the largest, four layers' scores, and logits of both sides."""
    shapes: list[int] = [leaf.size for leaf in jax.tree.leaves(decoder.abstract_params(config))]
    scores = 4 * config.n_heads * length * length
    return 4 * (sum(shapes) + max(shapes) + scores + 4 * length * config.vocab_size) + (1 << 30)


def available_memory() -> int:
    """Bytes that the machine, or the control group that this process is in, has left."""
    with open("/proc/meminfo", encoding="ascii") as file:
        told = dict(line.split(":", 1) for line in file)
    free = [int(told["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free)


def _prompt(length: int, *, config: ModelConfig) -> Array:
    return np.random.default_rng(length).integers(0, config.vocab_size, length, np.int32)


def _rounded(reference: Reference, mesh: jax.sharding.Mesh, dtype: Dtype) -> decoder.Params:
    params: decoder.Params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), reference(mesh))
    return params


def _reloaded(folder: Path, config: ModelConfig, mesh: jax.sharding.Mesh) -> decoder.Params:
    placed = shardings(decoder.logical_axes(config), mesh, shapes=decoder.abstract_params(config))
    return load_hf_params(folder, config, shardings=placed)


def _own_logits(load: Callable[[], decoder.Params], prompts: Sequence[Array], *, config: ModelConfig) -> list[Array]:
    exact = dataclasses.replace(config, compute_dtype="float32", attention="reference", remat="none", scan_unroll=1)
    params = load()
    return [np.asarray(_logits(params, jnp.asarray(prompt)[None], config=exact))[0] for prompt in prompts]


@functools.partial(jax.jit, static_argnames="config")
def _logits(params: decoder.Params, tokens: jax.Array, *, config: ModelConfig) -> jax.Array:
    hidden = decoder.hidden_states(
        params,
        tokens=tokens,
        positions=jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        segment_ids=jnp.ones_like(tokens),
        config=config,
    )
    return decoder.logits(params, hidden, config=config)


def _difference(expected: Array, found: Array) -> float:
    """The largest, as a share of the largest logit, or of 1."""
    assert expected.shape == found.shape, (expected.shape, found.shape)
    return float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))


def _listed(lengths: Sequence[int]) -> str:
    return " and ".join(map(str, lengths))
