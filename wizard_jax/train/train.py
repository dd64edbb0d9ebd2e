"""A training run from top to bottom: a config and a folder in, a folder with trained weights out.

config.gin  identity.json  complete.json   as every stage
input.json, tokenizer.*                    what it trains on and starts from, pinned at the first start
starts.jsonl, environment.json, source.diff   what it takes to repeat it
audit.json                                 what was packed and what was lost on the way
metrics.jsonl, tensorboard/                every step
trackers.json                              what the run is called elsewhere, if it is watched there
profile/                                   a trace of some steps, if asked for
checkpoints/<step>/                        params, opt_state and guard; with an adapter, params are the adapter's
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from configs.errors import UserError
from configs.folder import IDENTITY, open_stage, read_complete, read_identity, write_atomically
from configs.interrupt import stop_flag
from configs.loader import entries
from data_gen.shards import dataset_folder, read_manifest
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.data.packing import AUDIT, PackedFolder, pack
from wizard_jax.data.pipeline import ahead, batches
from wizard_jax.data.steps import StepRows, step_rows
from wizard_jax.doctor import check_extra
from wizard_jax.model.decoder import count_params
from wizard_jax.model.lora import count_adapter, needs_qwix
from wizard_jax.model.sharding import RULES, batch_sharding
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.compilation import compilation_cache
from wizard_jax.train.config import FromCheckpoint, RandomInit, TrainConfig
from wizard_jax.train.fit import fitting_mesh, steps_of
from wizard_jax.train.held_out import HeldOutRows
from wizard_jax.train.metrics import Recorder, read_metrics
from wizard_jax.train.optimizer import check_schedule
from wizard_jax.train.profiling import FOLDER as PROFILE
from wizard_jax.train.profiling import check_profile_steps, profiled
from wizard_jax.train.provenance import record_start
from wizard_jax.train.source import (
    CHECKPOINTS,
    INPUT,
    check_whole,
    frozen_params,
    read_input,
    source_params,
    weights_of,
)
from wizard_jax.train.step import HALT, Steps, TrainState
from wizard_jax.train.summary import run_figures
from wizard_jax.train.trackers import check_trackers, open_trackers
from wizard_jax.train.utilisation import utilisation_of

BATCHES_AHEAD = 2
"""On the devices, beside the one that a step works on."""
FREE_WITH_WEIGHTS = ("model.initializer_range", "model.max_positions")
"""Settings of the model that do not say what given weights compute."""

_log = logging.getLogger(__name__)


class TrainError(UserError):
    """Settings that do not go together, or a run that can not go on."""


def train(config: TrainConfig, out: str | os.PathLike[str], *, progress: Progress) -> dict[str, Any]:
    """Run, or go on with, the training of `config` in the folder `out`; the summary of the whole run.

    `progress` is called with steps done, all steps, and figures to show. Raises UserError for what the user can
    mend, Interrupted once what was done is saved after SIGTERM or Ctrl-C.
    """
    # What can be wrong, before there is a folder
    tokenizer = Tokenizer(config.tokenizer)
    mesh = fitting_mesh(config, jax.devices())
    _check(config, tokenizer)
    check_trackers(config.trackers)

    # Folder
    folder = open_stage(out, config, stage="train")
    with folder:
        if folder.is_complete:
            return read_complete(folder.path)

        # Data: packed once, then read by row number
        cache = Path(config.pack_cache) if config.pack_cache else folder.path.absolute().parent / "packed"
        packed = pack(config.data, tokenizer, cache_dir=cache, progress=progress)
        write_atomically(folder.path / AUDIT, packed.audit.to_json())
        microbatch_ways = math.prod(mesh.shape[axis] for axis in RULES["batch"]) * config.gradient_accumulation
        rows = step_rows(config.batch, stats=packed.stats, multiple_of=microbatch_ways, epochs=config.epochs)
        total = rows.steps if config.steps is None else config.steps
        check_profile_steps(config.profile_steps, total=total)
        check_schedule(config.optimizer, total_steps=total)
        held_out = None
        if config.held_out is not None:
            apart = pack(config.data, tokenizer, cache_dir=cache, part="held_out", progress=progress)
            microbatch = rows.batch_rows // config.gradient_accumulation  # what fits into memory in training
            held_out = HeldOutRows(apart, every=config.held_out.every, batch_rows=microbatch, mesh=mesh)
        _pin_input(folder.path, tokenizer=tokenizer, packed=packed, rows=rows)

        with (
            jax.set_mesh(mesh),
            compilation_cache(config.compilation_cache),
            open_trackers(config.trackers, folder.path, settings=folder.made_by.settings) as trackers,
            _checkpoints(config, folder.path) as checkpoints,
            stop_flag() as stop,
        ):
            # State: the newest complete checkpoint, or the start of the run
            steps = steps_of(config, total_steps=total, mesh=mesh)
            restored = _restore(checkpoints, steps=steps)
            if restored is None and read_metrics(folder.path):
                _log.warning("%s was stopped before its first checkpoint: it starts from the beginning", folder.path)
            if restored is None:
                state = _start(config, folder.path, steps=steps)
            else:
                state = restored._replace(frozen=_frozen(config, folder.path, steps=steps))
            done = int(state.step)
            saved = None if restored is None else done

            # What it takes to repeat the run
            model, peak = config.model, config.peak_flops
            utilisation = utilisation_of(
                model, seq_len=config.data.seq_len, mesh=mesh, peak_flops=peak, adapter=config.adapter
            )
            hashes = {
                "data_sha256": " ".join(read_manifest(Path(one.dataset)).sha256 for one in config.data.members),
                "tokenizer_sha256": tokenizer.sha256,
                "packed_sha256": packed.sha256,
                "held_out_sha256": None if held_out is None else held_out.packed.sha256,
            }
            record_start(folder.path, config=config, step=done, inputs=hashes, utilisation=utilisation)

            # Loop
            with (
                Recorder(
                    folder.path,
                    step=done,
                    total=total,
                    progress=progress,
                    utilisation=utilisation,
                    trackers=trackers,
                ) as recorder,
                profiled(steps.train, config.profile_steps, folder=folder.path / PROFILE, done=done) as train_step,
            ):
                placed = _on_devices(packed, mesh=mesh, rows=rows, seed=config.seed, step=done)
                data = recorder.timed(ahead(placed, count=BATCHES_AHEAD))
                if held_out is not None and done == 0:
                    recorder.held_out(done, held_out.measure, steps.evaluate, state)
                while done < total and stop.exit_code is None:
                    state, metrics = train_step(state, next(data))
                    done += 1
                    recorder.add(done, metrics)
                    if done % config.log_every == 0 or recorder.is_first:
                        recorder.record(lag=0 if recorder.is_first else 1)
                    if held_out is not None and held_out.is_due(done, total=total):
                        recorder.held_out(done, held_out.measure, steps.evaluate, state)
                    if done % config.checkpoint_every == 0 and done < total:
                        recorder.record(lag=0)  # a checkpoint never knows more than the log
                        checkpoints.save(done, _trees(state))
                        recorder.saved(done)
                        saved = done
                recorder.record(lag=0)

            # Last checkpoint
            if done != saved:
                checkpoints.save(done, _trees(state))
            checkpoints.wait()
            stop.raise_if_set()

        # Summary
        summary = _summary(config, folder.path, packed=packed, rows=rows, steps=total)
        folder.complete(summary)
        return summary


def _check(config: TrainConfig, tokenizer: Tokenizer) -> None:
    if (processes := jax.process_count()) > 1:
        raise TrainError(f"{processes} processes are at work here, and wizard train works in one: start it on one host")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise TrainError(
            f"{config.tokenizer} has {tokenizer.vocab_size} tokens and model.vocab_size is "
            f"{config.model.vocab_size}: set it to at least {tokenizer.vocab_size}"
        )
    for member in config.data.members:
        dataset_folder(Path(member.dataset))
    check_tokenizer(get_format(config.data.chat_format), tokenizer)
    if isinstance(config.init, FromCheckpoint):
        if not weights_of(config.init).steps():
            raise TrainError(
                f"init.path {config.init.path} holds no checkpoint: give the folder of a finished `wizard train` "
                "or `wizard import`"
            )
        check_whole(config.init)
        _check_same_network(config, config.init)
    if config.adapter is not None and needs_qwix(config.adapter):
        check_extra("qlora", asks=f"adapter.base={config.adapter.base}")


def _check_same_network(config: TrainConfig, init: FromCheckpoint) -> None:
    """Weights mean nothing in another network, and shapes do not show its rope_theta or norm_eps."""
    if not (epath.Path(init.path) / IDENTITY).exists():
        return
    there = read_identity(init.path).settings
    now = {one.path: one.text for one in entries(config) if one.path.startswith("model.") and one.role == "identity"}
    different = [
        f"{path}: {there[path]} -> {text}"
        for path, text in now.items()
        if path not in FREE_WITH_WEIGHTS and there.get(path, text) != text
    ]
    if different:
        raise TrainError(
            f"init.path {init.path} holds weights of another model (there -> here): {'; '.join(different)}; give the "
            "model settings that it was made with"
        )


def _pin_input(folder: Path, *, tokenizer: Tokenizer, packed: PackedFolder, rows: StepRows) -> None:
    """Write down what the run trains on; refuse to go on with anything else, as the config names only paths."""
    now = {"tokenizer_sha256": tokenizer.sha256, "packed_sha256": packed.sha256, "rows_per_step": str(rows.per_step)}
    file = folder / INPUT
    if file.exists():
        before = read_input(folder)
        changed = [f"{name}: {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
        if changed:
            raise TrainError(
                f"{folder} was started on another input ({'; '.join(changed)}): put back the tokenizer and the "
                "data set, or choose another --out"
            )
        return
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    write_atomically(file, json.dumps(now, indent=1) + "\n")


def _checkpoints(config: TrainConfig, folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / CHECKPOINTS, keep=config.keep_checkpoints)


def _trees(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds: its step is the name of its folder, and what is frozen is saved elsewhere."""
    return {"params": state.params, "opt_state": state.opt_state, "guard": state.guard}


def _restore(checkpoints: CheckpointStore, *, steps: Steps) -> TrainState | None:
    """The newest complete checkpoint of this run, without what is frozen; None if none was ever saved."""
    if not checkpoints.steps():
        return None
    restored = checkpoints.restore(_trees(steps.abstract))
    for note in restored.notes:
        _log.warning(note)
    step = jax.device_put(jax.numpy.int32(restored.step), steps.abstract.step.sharding)
    return TrainState(step, **restored.trees)


def _start(config: TrainConfig, folder: Path, *, steps: Steps) -> TrainState:
    match config.init:
        case RandomInit(seed=seed):
            return steps.init(jax.random.key(seed))
        case FromCheckpoint() as init if config.adapter is None:
            return steps.start(source_params(init, folder, abstract=steps.abstract.params))
        case FromCheckpoint():
            return steps.start(_frozen(config, folder, steps=steps))


def _frozen(config: TrainConfig, folder: Path, *, steps: Steps) -> Any:
    """What an adapter is trained beside; nothing without one."""
    if config.adapter is None or not isinstance(config.init, FromCheckpoint):
        return ()
    return frozen_params(
        config.init, folder, model=config.model, adapter=config.adapter, abstract=steps.abstract.frozen
    )


def _on_devices(
    packed: PackedFolder, *, mesh: Mesh, rows: StepRows, seed: int, step: int
) -> Iterator[dict[str, jax.Array]]:
    """The columns of every batch from `step` on, each row on the devices that compute it."""
    sharding = batch_sharding(mesh)
    for batch in batches(packed, rows=rows, seed=seed, start_step=step):
        place: Callable[..., jax.Array] = jax.make_array_from_process_local_data
        columns = {**batch._asdict(), HALT: np.zeros(len(batch.tokens), np.int32)}
        yield {name: place(sharding, column) for name, column in columns.items()}


def _summary(config: TrainConfig, folder: Path, *, packed: PackedFolder, rows: StepRows, steps: int) -> dict[str, Any]:
    """Of all steps, whatever processes did them."""
    return {
        "steps": steps,
        "parameters": count_params(config.model),
        **(
            {}
            if config.adapter is None
            else {"adapter_parameters": count_adapter(config.model, adapter=config.adapter)}
        ),
        "rows_per_step": float(rows.per_step),
        **run_figures(folder),
        "packing": {**dataclasses.asdict(packed.stats), "efficiency": packed.stats.efficiency},
    }
