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
from pathlib import Path
from typing import Any

import jax
from etils import epath

from configs.errors import UserError
from configs.folder import IDENTITY, StageFolder, read_complete, read_identity, write_atomically
from configs.interrupt import stop_flag
from configs.loader import entries
from data_gen.shards import dataset_folder, read_manifest
from launch.slices import find_slice
from wizard_jax.chat import check_tokenizer, get_format
from wizard_jax.data.packing import AUDIT, PackedFolder, pack
from wizard_jax.data.steps import StepRows, step_rows
from wizard_jax.doctor import check_extra
from wizard_jax.hosts.folder import open_together
from wizard_jax.hosts.group import ALONE, Hosts
from wizard_jax.hosts.watching import StallWatch
from wizard_jax.model.decoder import count_params
from wizard_jax.model.lora import count_adapter, needs_qwix
from wizard_jax.model.sharding import RULES
from wizard_jax.progress import Progress
from wizard_jax.tokenizer import Tokenizer
from wizard_jax.train.checkpoint import CheckpointStore, Keep
from wizard_jax.train.compilation import compilation_cache
from wizard_jax.train.config import FromCheckpoint, RandomInit, TrainConfig
from wizard_jax.train.feeding import fed_to_devices
from wizard_jax.train.fit import fitting_mesh, steps_of
from wizard_jax.train.halting import Halting
from wizard_jax.train.optimizer import check_schedule
from wizard_jax.train.source import (
    CHECKPOINTS,
    INPUT,
    check_source,
    frozen_params,
    read_input,
    source_params,
)
from wizard_jax.train.step import Steps, TrainState
from wizard_jax.train.watching.held_out import HeldOutRows
from wizard_jax.train.watching.metrics import Recorder, read_metrics
from wizard_jax.train.watching.profiling import FOLDER as PROFILE
from wizard_jax.train.watching.profiling import check_profile_steps, profiled
from wizard_jax.train.watching.provenance import read_starts, record_start
from wizard_jax.train.watching.summary import run_figures
from wizard_jax.train.watching.trackers import check_trackers, open_trackers
from wizard_jax.train.watching.utilisation import utilisation_of

FREE_WITH_WEIGHTS = ("model.initializer_range", "model.max_positions")
"""Settings of the model that do not say what given weights compute."""

_PACKING_MINUTES = 24 * 60.0
"""For process 0 to pack what the others wait for; that it is alive they see all the time."""

_log = logging.getLogger(__name__)


class TrainError(UserError):
    """Settings that do not go together, or a run that can not go on."""


def train(
    config: TrainConfig, out: str | os.PathLike[str], *, progress: Progress, hosts: Hosts = ALONE
) -> dict[str, Any]:
    """Run, or go on with, the training of `config` in the folder `out`; the summary of the whole run.

    Every process of `hosts` calls it alike; the first one writes the folder, which all of them must see.
    `progress` is called with steps done, all steps, and figures to show. Raises UserError for what the user can
    mend, Interrupted once what was done is saved after SIGTERM or Ctrl-C to any process.
    """
    # What can be wrong, before there is a folder
    hosts.agree("config", {one.path: one.text for one in entries(config)})
    check_hosts(config.slice, slices=config.slices, hosts=hosts)
    tokenizer = Tokenizer(config.tokenizer)
    mesh = fitting_mesh(config, jax.devices())
    _check(config, tokenizer)
    check_trackers(config.trackers)

    # Folder
    with open_together(out, config, stage="train", hosts=hosts) as folder:
        if folder.is_complete:
            return read_complete(folder.path)

        # Data: packed once, then read by row number
        cache = Path(config.pack_cache) if config.pack_cache else folder.path.absolute().parent / "packed"
        with hosts.first_then_others("packed data", minutes=_PACKING_MINUTES):
            packed = pack(config.data, tokenizer, cache_dir=cache, progress=progress)
        if hosts.is_first:
            write_atomically(folder.path / AUDIT, packed.audit.to_json())
        microbatch_ways = math.prod(mesh.shape[axis] for axis in RULES["batch"]) * config.gradient_accumulation
        rows = step_rows(config.batch, stats=packed.stats, multiple_of=microbatch_ways, epochs=config.epochs)
        total = rows.steps if config.steps is None else config.steps
        check_profile_steps(config.profile_steps, total=total)
        check_schedule(config.optimizer, total_steps=total)
        held_out = None
        if config.held_out is not None:
            with hosts.first_then_others("held-out data", minutes=_PACKING_MINUTES):
                apart = pack(config.data, tokenizer, cache_dir=cache, part="held_out", progress=progress)
            microbatch = rows.batch_rows // config.gradient_accumulation  # what fits into memory in training
            held_out = HeldOutRows(apart, every=config.held_out.every, batch_rows=microbatch, mesh=mesh)
        _pin_input(folder.path, tokenizer=tokenizer, packed=packed, rows=rows, hosts=hosts)

        with (
            jax.set_mesh(mesh),
            compilation_cache(config.compilation_cache),
            open_trackers(config.trackers, folder.path, settings=read_identity(folder.path).settings) as trackers,
            _checkpoints(config, folder.path, hosts=hosts) as checkpoints,
            stop_flag() as stop,
            StallWatch(folder.path, minutes=config.stall_minutes, index=hosts.index) as stall,
        ):
            # State: the newest complete checkpoint, or the start of the run
            steps = steps_of(config, total_steps=total, mesh=mesh)
            restored = _restore(checkpoints, steps=steps)
            if restored is None and hosts.is_first and (lines := read_metrics(folder.path)):
                _refuse_lost(folder.path, made=lines[-1]["step"])
                _log.warning("%s was stopped before its first checkpoint: it starts from the beginning", folder.path)
            if restored is None:
                state = _start(config, folder.path, steps=steps, hosts=hosts)
            else:
                state = restored._replace(frozen=_frozen(config, folder.path, steps=steps, hosts=hosts))
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
            halting = Halting(hosts, stop)
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
                fed = fed_to_devices(packed, mesh=mesh, rows=rows, seed=config.seed, step=done, halting=halting)
                data = recorder.timed(fed)
                if held_out is not None and done == 0:
                    recorder.held_out(done, held_out.measure, steps.evaluate, state)
                while done < total and not halting.is_settled:
                    state, metrics = train_step(state, next(data))
                    done += 1
                    recorder.add(done, metrics)
                    is_measured = held_out is not None and held_out.is_due(done, total=total)
                    is_saved = done % config.checkpoint_every == 0 or done == total
                    # A checkpoint never knows more than the log.
                    lag = 0 if is_measured or is_saved or recorder.is_first else 1
                    halting.look(metrics, lag=lag)
                    stall.step_is_done()
                    if halting.rows_are_missing:
                        break
                    if done % config.log_every == 0 or lag == 0:
                        recorder.record(lag=lag)
                    if held_out is not None and is_measured:
                        recorder.held_out(done, held_out.measure, steps.evaluate, state)
                    if is_saved:
                        checkpoints.save(done, _trees(state), loss=recorder.held_out_loss(done))
                        recorder.saved(done)
                        saved = done
                done = int(state.step)
                recorder.forget_after(done)
                recorder.record(lag=0)

            # Last checkpoint
            if done != saved:
                checkpoints.save(done, _trees(state))
            checkpoints.wait()
            halting.raise_if_settled(saved=done)

        # Summary
        if isinstance(folder, StageFolder):  # that is, process 0
            folder.complete(_summary(config, folder.path, packed=packed, rows=rows, steps=total))
        hosts.wait("complete")
        return read_complete(folder.path)


def check_hosts(name: str | None, *, slices: int, hosts: Hosts) -> None:
    """Raises TrainError for another number of processes than the slices of that name have hosts.

    Before anything asks for devices, which on a pod waits for every host; a process alone has only its own.
    """
    if name is None or hosts.count == 1:
        return
    one = find_slice(name)
    allowed = sorted({one.chips // machine.chips * slices for machine in one.machines})
    if hosts.count not in allowed:
        raise TrainError(
            f"slice is {name}{f', {slices} of them,' if slices > 1 else ''} with {' or '.join(map(str, allowed))} "
            f"host(s), and {hosts.count} process(es) are at work here: start one on each host, or name the slice that "
            "this is"
        )


def _check(config: TrainConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        raise TrainError(
            f"{config.tokenizer} has {tokenizer.vocab_size} tokens and model.vocab_size is "
            f"{config.model.vocab_size}: set it to at least {tokenizer.vocab_size}"
        )
    for member in config.data.members:
        dataset_folder(Path(member.dataset))
    check_tokenizer(get_format(config.data.chat_format), tokenizer)
    if isinstance(config.init, FromCheckpoint):
        check_source(config.init)
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


def _pin_input(folder: Path, *, tokenizer: Tokenizer, packed: PackedFolder, rows: StepRows, hosts: Hosts) -> None:
    """Write down what the run trains on; refuse to go on with anything else, as the config names only paths."""
    now = {"tokenizer_sha256": tokenizer.sha256, "packed_sha256": packed.sha256, "rows_per_step": str(rows.per_step)}
    hosts.agree("input", now)
    file = folder / INPUT
    with hosts.first_then_others("input"):
        if not file.exists() and hosts.is_first:
            for name, content in tokenizer.files.items():
                (folder / name).write_bytes(content)
            write_atomically(file, json.dumps(now, indent=1) + "\n")
        before = read_input(folder)
    changed = [f"{name}: {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        raise TrainError(
            f"{folder} was started on another input ({'; '.join(changed)}): put back the tokenizer and the data set, "
            "or choose another --out"
        )


def _checkpoints(config: TrainConfig, folder: Path, *, hosts: Hosts) -> CheckpointStore:
    keep = Keep(newest=config.keep_checkpoints, every=config.keep_every, best=config.keep_best)
    return CheckpointStore(folder / CHECKPOINTS, keep=keep, hosts=hosts)


def _trees(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds: its step is the name of its folder, and what is frozen is saved elsewhere."""
    return {"params": state.params, "opt_state": state.opt_state, "guard": state.guard}


def _restore(checkpoints: CheckpointStore, *, steps: Steps) -> TrainState | None:
    """The newest complete checkpoint of this run, without what is frozen; None if none was ever saved."""
    if not checkpoints.agreed_steps():
        return None
    restored = checkpoints.restore(_trees(steps.abstract))
    for note in restored.notes:
        _log.warning(note)
    step = jax.device_put(jax.numpy.int32(restored.step), steps.abstract.step.sharding)
    return TrainState(step, **restored.trees)


def _refuse_lost(folder: Path, *, made: int) -> None:
    """Raises TrainError where no checkpoint is there, and a log of `made` steps shows that there were some."""
    for start in read_starts(folder)[-1:]:
        # A save waits for the one before it: beyond the second, the first was whole.
        if start["step"] > 0 or made > 2 * int(start["operational"]["checkpoint_every"]):
            raise TrainError(
                f"{folder} has made {made} steps and saved checkpoints, and {folder / CHECKPOINTS} holds none: put "
                "them back, or start again in another --out"
            )


def _start(config: TrainConfig, folder: Path, *, steps: Steps, hosts: Hosts) -> TrainState:
    match config.init:
        case RandomInit(seed=seed):
            return steps.init(jax.random.key(seed))
        case FromCheckpoint() as init if config.adapter is None:
            return steps.start(
                source_params(init, folder, model=config.model, abstract=steps.abstract.params, hosts=hosts)
            )
        case FromCheckpoint():
            return steps.start(_frozen(config, folder, steps=steps, hosts=hosts))


def _frozen(config: TrainConfig, folder: Path, *, steps: Steps, hosts: Hosts) -> Any:
    """What an adapter is trained beside; nothing without one."""
    if config.adapter is None or not isinstance(config.init, FromCheckpoint):
        return ()
    return frozen_params(
        config.init,
        folder,
        model=config.model,
        adapter=config.adapter,
        abstract=steps.abstract.frozen,
        hosts=hosts,
    )


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
