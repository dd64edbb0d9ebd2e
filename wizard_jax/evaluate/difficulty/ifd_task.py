"""The task `@Difficulty`: IFD of a data set's records under models of this project, with no judge.

    out/difficulty-<model>.jsonl   the first line says what was measured, then a row for each record
    out/results.json               by round, with intervals; rank correlations; between models

Rows are appended chunk by chunk, so a run that was killed goes on after the last whole one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data_gen.measure.asking import keyed_number
from data_gen.records import Record
from data_gen.shards import read_dataset, read_manifest
from wizard_jax.chat import get_format
from wizard_jax.evaluate.config import Difficulty, EvalConfig, Local
from wizard_jax.evaluate.difficulty.ifd import Losses, ifd, mean_losses
from wizard_jax.evaluate.difficulty.judged import read_judged
from wizard_jax.evaluate.difficulty.row_file import append_rows, read_rows
from wizard_jax.evaluate.difficulty.sequences import RecordSequences, Refused, Sequencer
from wizard_jax.evaluate.difficulty.summary import between_models, of_rows
from wizard_jax.evaluate.measuring import MeasuredTask, Measuring
from wizard_jax.model import decoder
from wizard_jax.model.config import ModelConfig
from wizard_jax.runs import FoundModel, OpenedModel, find_model

_LENGTH = 2048  # most tokens of a record, where the config does not say


def rows_file(out: Path, name: str) -> Path:
    return out / f"difficulty-{name}.jsonl"


def _task(config: EvalConfig) -> Difficulty:
    assert isinstance(config.task, Difficulty)
    return config.task


def _read(config: EvalConfig) -> dict[str, Any]:
    """Raises UserError: no records, no judge's replies where they are asked for, or a model that can not be used."""
    task = _task(config)
    if task.records < 0:
        raise UserError(f"task.records is {task.records}: a number of records, or 0 for all")
    manifest = read_manifest(Path(task.dataset))
    for local in config.models.values():
        assert isinstance(local, Local)
        _sequencer(find_model(Path(local.path), step=local.step), local, task)
    judged = read_judged(task.judged, dataset=task.dataset)
    return {
        "source": task.dataset,
        "sha256": manifest.sha256,
        "items": sum(choose(task.dataset, records=task.records, seed=config.seed).values()),
        "judged": len(judged),
        "notes": []
        if judged
        else ["IFD stands beside no judge's scores: set task.judged to a wizard evolve whose judge gave some"],
    }


def _sequencer(model: FoundModel | OpenedModel, local: Local, task: Difficulty) -> Sequencer:
    return Sequencer(
        tokenizer=model.tokenizer,
        chat_format=get_format(model.chat_format),
        length=local.length or min(model.config.max_positions, _LENGTH),
        alone_after=task.alone_after,
    )


def _measure(measuring: Measuring) -> dict[str, Any]:
    config, model = measuring.config, measuring.model
    task, local = _task(config), config.models[measuring.name]
    assert isinstance(local, Local)
    sequencer = _sequencer(model, local, task)
    chosen = choose(task.dataset, records=task.records, seed=config.seed)
    total = sum(chosen.values())

    def measure(records: Sequence[Record], before: int) -> list[dict[str, Any]]:
        def told(share: float) -> None:
            measuring.stop.raise_if_set()
            done = before + int(share * len(records))
            measuring.progress(done, total, {"model": measuring.name})

        return record_rows(records, sequencer, params=model.params, config=model.config, told=told)

    file = rows_file(measuring.out, measuring.name)
    append_rows(
        file,
        (record for record in read_dataset(Path(task.dataset)) if record.lineage in chosen),
        made_from={
            "weights": measuring.weights,
            "dataset_sha256": read_manifest(Path(task.dataset)).sha256,
            "length": sequencer.length,
            "alone_after": sequencer.prefix,
        },
        measure=measure,
        stop=measuring.stop,
    )
    rows = list(read_rows(file))
    judged = read_judged(task.judged, dataset=task.dataset)
    return {
        "rows": file.name,
        "records": sum(not row["refused"] for row in rows),
        "refused": dict(Counter(row["refused"] for row in rows if row["refused"])),
        "alone_after": model.tokenizer.decode(sequencer.prefix) or "BOS",
        **of_rows([row for row in rows if not row["refused"]], judged=judged, seed=config.seed),
    }


def record_rows(
    records: Sequence[Record],
    sequencer: Sequencer,
    *,
    params: decoder.Params,
    config: ModelConfig,
    told: Callable[[float], None],
) -> list[dict[str, Any]]:
    """A row for each record: its losses and measures, or why there are none. `told` hears the share that is done."""
    made = [sequencer.of(record) for record in records]
    sequences = [one for found in made if isinstance(found, RecordSequences) for one in found]
    losses = iter(
        mean_losses(
            sequences,
            params=params,
            config=config,
            length=sequencer.length,
            told=lambda done: told(done / len(sequences)),
        ).reshape(-1, 3)
    )
    rows = []
    for record, found in zip(records, made, strict=True):
        row: dict[str, Any] = {
            "id": record.id,
            "lineage": record.lineage,
            "round": record.round,
            "parent": record.parent,
            "source": record.source,
            "operation": record.operation,
            "steps": record.steps,
        }
        if isinstance(found, Refused):
            rows.append({**row, "refused": found.reason, "why": found.detail})
            continue
        of_record = Losses(*map(float, next(losses)))
        measures = ifd(of_record)
        if measures is None:
            rows.append({**row, "refused": "nothing to foresee", "why": f"a loss is 0: {of_record}"})
            continue
        rows.append(
            {
                **row,
                "refused": "",
                "instruction_tokens": found.instruction.scored,
                "answer_tokens": found.alone.scored,
                "loss": of_record.answer,
                "loss_alone": of_record.alone,
                "loss_instruction": of_record.instruction,
                **asdict(measures),
                "unhelped": measures.is_unhelped,
            }
        )
    return rows


def choose(dataset: str, *, records: int, seed: int) -> Mapping[str, int]:
    """The lineages that are measured, each with its number of records: all, or whole ones in a seeded order while
    they are `records` at most together (and one at least)."""
    sizes = Counter(record.lineage for record in read_dataset(Path(dataset)))
    if not records:
        return sizes
    order = sorted(sizes, key=lambda lineage: keyed_number(seed, lineage, "difficulty of records"))
    chosen: dict[str, int] = {}
    for lineage in order:
        if chosen and sum(chosen.values()) + sizes[lineage] > records:
            break
        chosen[lineage] = sizes[lineage]
    return chosen


def _together(config: EvalConfig, out: Path) -> dict[str, Any]:
    def rows() -> Iterator[tuple[str, list[dict[str, Any]]]]:
        for name in config.models:
            yield name, [row for row in read_rows(rows_file(out, name)) if not row["refused"]]

    return {"between_models": between_models(dict(rows()), seed=config.seed)}


TASK = MeasuredTask(read=_read, measure=_measure, together=_together)
