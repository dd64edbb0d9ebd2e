"""The loss of answers in a data set that a model was not trained on: of all, of each source and of each round.

A loss is the sum over a group's trained tokens divided by their number, as training logs it of what it holds out.
Conversations of one lineage are alike, so intervals are made by resampling lineages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen import shards
from data_gen.records import Record
from data_gen.shards import ShardError
from wizard_jax.chat import ChatError, encode_conversation, get_format
from wizard_jax.data.encoding import Filter
from wizard_jax.data.order import seeded_order
from wizard_jax.data.pipeline import to_batch
from wizard_jax.data.rows import Row
from wizard_jax.evaluate.config import EvalConfig, HeldOutLoss, Local
from wizard_jax.evaluate.items import TaskError
from wizard_jax.evaluate.measuring import MeasuredTask, Measuring, measured_once
from wizard_jax.evaluate.perplexity import batch_losses
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap, divided, estimates
from wizard_jax.generate.engine import bucket
from wizard_jax.runs import FoundModel, find_model

_LONGEST = 2048  # tokens of a conversation, where neither the run nor the config says
_NARROWEST = 64  # tokens of a row: narrower ones would be programs of their own for no gain


@dataclass(frozen=True)
class Measured:
    """What a model makes of one conversation."""

    lineage: str
    source: str
    round: int
    loss: float
    """Nats, the sum over its trained tokens."""
    tokens: int
    """Trained ones."""


@dataclass(frozen=True)
class _Conversation:
    record: Record
    row: Row


def _read(config: EvalConfig) -> dict[str, Any]:
    """Raises TaskError: a run holds nothing out, or was trained on the data set; ShardError: there is none."""
    task = _task(config)
    if task.records < 0:
        raise TaskError(f"task.records is {task.records}: a number of records, or 0 for all")
    asked = shards.read_manifest(Path(task.dataset)).sha256 if task.dataset else ""
    for name, model in config.models.items():
        assert isinstance(model, Local)
        found = find_model(Path(model.path), step=model.step)
        if task.dataset:
            _refuse_seen(task, found, asked=asked)
        elif found.run is None or not found.run.data.held_out_share:
            what = "is no run" if found.run is None else "was trained with data.held_out_share=0"
            raise TaskError(f"{found.path} {what}, so nothing was held out: name a data set by task.dataset")
        elif model.length is not None:
            raise TaskError(
                f"models.{name}.length has no effect on what a run held out, which is cut as it was for training: "
                "leave it out"
            )
    return {"source": task.dataset or "what each run held out", "sha256": asked, "notes": []}


def _refuse_seen(task: HeldOutLoss, found: FoundModel, *, asked: str) -> None:
    for dataset in found.trained_on:
        if Path(dataset).resolve() == Path(task.dataset).resolve() or _sha256(Path(dataset)) == asked:
            raise TaskError(
                f"{found.path} was trained on {dataset}, the records of task.dataset={task.dataset}: its loss there "
                "is no held-out one; name another, or leave task.dataset out to measure what each run held out"
            )


def _measure(measuring: Measuring) -> dict[str, Any]:
    return measured_once(measuring, lambda: _losses(measuring))


def _losses(measuring: Measuring) -> dict[str, Any]:
    """Raises TaskError: nothing to measure, a loss that is no number, or text that the model's format can not hold."""
    config, opened = measuring.config, measuring.model
    task, model = _task(config), config.models[measuring.name]
    assert isinstance(model, Local)
    found = find_model(Path(model.path), step=model.step)
    length, cut = _length(task, model, found)
    records = list(_records(task, found))
    if task.records:
        kept = seeded_order(len(records), seed=config.seed)[: task.records]
        records = [records[index] for index in sorted(kept.tolist())]
    conversations, longer = _encoded(records, found=found, length=length, cut=cut)
    if not conversations:
        raise TaskError(f"{found.path}: of {len(records)} records to measure it on, none fits within {length} tokens")
    measured = list(_measured(conversations, measuring=measuring, rows=model.rows, length=length))
    what = f"longer than {length:,} tokens {'are cut there' if cut else 'are left out'}"
    notes = [f"{longer:,} of {len(records):,} conversations {what}"] if longer else []
    return {
        "notes": [*opened.notes, *notes],
        "trained_on": list(opened.trained_on),
        "length": length,
        "measures": _estimates(measured, path=str(found.path), seed=config.seed),
    }


def _task(config: EvalConfig) -> HeldOutLoss:
    assert isinstance(config.task, HeldOutLoss)
    return config.task


def _sha256(dataset: Path) -> str:
    """Of a data set that a model was trained on; '' where it is not there any more."""
    try:
        return shards.read_manifest(dataset).sha256
    except (ShardError, OSError):
        return ""


def _length(task: HeldOutLoss, model: Local, found: FoundModel) -> tuple[int, bool]:
    """Most tokens of a conversation, and whether longer ones are cut there instead of left out."""
    if task.dataset:
        return model.length or min(found.config.max_positions, _LONGEST), False
    assert found.run is not None
    return found.run.data.seq_len, found.run.data.truncation == "truncate"


def _records(task: HeldOutLoss, found: FoundModel) -> Iterator[Record]:
    if task.dataset:
        shards.verify(Path(task.dataset))
        yield from shards.read_dataset(Path(task.dataset))
        return
    assert found.run is not None
    data = found.run.data
    for member in data.members:
        kept = Filter.of(member.selection, part="held_out", share=data.held_out_share, seed=data.held_out_seed)
        shards.verify(Path(member.dataset))
        yield from (
            one for one in shards.read_dataset(Path(member.dataset)) if kept.selects(one) and kept.is_in_part(one)
        )


def _encoded(
    records: Iterable[Record], *, found: FoundModel, length: int, cut: bool
) -> tuple[list[_Conversation], int]:
    """Those with something to measure, and how many are longer than `length`."""
    chat_format = get_format(found.chat_format)
    kept, longer = [], 0
    for record in records:
        try:
            tokens, trained = encode_conversation(record.turns, chat_format=chat_format, tokenizer=found.tokenizer)
        except ChatError as error:
            raise TaskError(f"record {record.id!r}: {error}") from error
        longer += len(tokens) > length
        if len(tokens) > length and not cut:
            continue
        tokens, trained = tokens[:length], trained[:length]
        if trained[1:].any():
            size, none = np.array([len(tokens)], np.int32), np.zeros(1, np.int32)
            kept.append(_Conversation(record, Row(tokens=tokens, trained=trained, lengths=size, groups=none)))
    return kept, longer


def _measured(
    conversations: Sequence[_Conversation], *, measuring: Measuring, rows: int, length: int
) -> Iterator[Measured]:
    """A row for each, side by side with others of about its length."""
    by_width: defaultdict[int, list[_Conversation]] = defaultdict(list)
    for one in conversations:
        by_width[bucket(max(len(one.row.tokens), _NARROWEST), most=max(length, _NARROWEST))].append(one)
    done = 0
    for width, those in sorted(by_width.items()):
        for start in range(0, len(those), rows):
            measuring.stop.raise_if_set()
            group = those[start : start + rows]
            empty = [None] * (rows - len(group))
            batch = to_batch([*(one.row for one in group), *empty], seq_len=width)
            losses_BxL = batch_losses(measuring.model.params, measuring.model.config, batch)
            for one, losses, weights in zip(group, losses_BxL, batch.loss_weights, strict=False):
                record, total = one.record, float(losses.sum(dtype=np.float64))
                yield Measured(record.lineage, record.source, record.round, total, int((weights > 0).sum()))
            done += len(group)
            measuring.progress(done, len(conversations), {"model": measuring.name})


def _estimates(measured: Sequence[Measured], *, path: str, seed: int) -> list[dict[str, Any]]:
    """Of all conversations, then of each source, then of each round."""
    if not all(math.isfinite(one.loss) for one in measured):
        raise TaskError(
            f"{path}: the loss is no number: its weights are damaged, or it has diverged; take an older step"
        )
    groups = {"loss": list(measured)}
    for source in sorted({one.source for one in measured}):
        groups[f"loss, source {source or '(none)'}"] = [one for one in measured if one.source == source]
    for number in sorted({one.round for one in measured}):
        groups[f"loss, round {number}"] = [one for one in measured if one.round == number]
    return [_estimate(name, members, seed=seed) for name, members in groups.items()]


def _estimate(name: str, members: Sequence[Measured], *, seed: int) -> dict[str, Any]:
    """With a 95 % interval over lineages, where there are several; `value` is in nats per token."""
    lineages: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in members:
        lineages[one.lineage][0] += one.loss
        lineages[one.lineage][1] += one.tokens
    sums = np.array(list(lineages.values()))
    loss, tokens = sums.sum(axis=0).tolist()
    (found,) = estimates(
        lambda drawn: divided(*(drawn @ sums).T),
        n=len(sums),
        bootstrap=Bootstrap(seed=seed, draws=2_000),
        bounds=[None],
    )
    interval = "one lineage alone, or all alike: none" if found is None else found.method.replace("prompts", "lineages")
    return {
        "name": name,
        "value": loss / tokens,
        "low": None if found is None else found.low,
        "high": None if found is None else found.high,
        "interval": interval,
        "n": len(sums),
        "of": "lineages",
        "conversations": len(members),
        "tokens": int(tokens),
    }


TASK = MeasuredTask(read=_read, measure=_measure)
