"""`wizard eval`: one model on one task, from its folder to results.json.

    out/config.gin  simulated_world.jsonl  results.json  complete.json (last)

Every answer is written down as it comes, so a run that was stopped asks only for what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import COMPLETE, open_stage, read_complete, write_atomically
from configs.interrupt import StopFlag, stop_flag
from data_gen.records import Turn
from wizard_jax.chat import check_tokenizer, encode_prompt, end_id, get_format
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.statistics import wilson
from wizard_jax.evaluate.tasks import simulated_world
from wizard_jax.generate import sampler
from wizard_jax.generate.weights import prepared
from wizard_jax.progress import Progress
from wizard_jax.runs import OpenedModel, open_model

ANSWERS = "simulated_world.jsonl"
RESULTS = "results.json"


def evaluate(config: EvalConfig, out: Path, *, progress: Progress) -> dict[str, Any]:
    """Evaluates into `out` and returns what results.json holds.

    Raises:
      UserError: no model, no chat format, or a run whose own training data is not among `task.held_out_from`.
      Interrupted: SIGTERM or Ctrl-C came; the answers so far are kept.
    """
    if (out / COMPLETE).exists():
        with open_stage(out, config, stage="eval"):
            return read_complete(out)
    # What can be wrong, before there is a folder
    model = open_model(Path(config.model), step=config.step)
    if not model.chat_format:
        raise UserError(f"{model.path} names no chat format: import it with wizard import --chat-format NAME")
    check_tokenizer(get_format(model.chat_format), model.tokenizer)
    seen = simulated_world.read_seen(config.task.held_out_from)
    _check_held_out(model, seen)
    samples, thrown_away = simulated_world.samples(config.task, seen)
    with open_stage(out, config, stage="eval") as folder, stop_flag() as stop:
        rows = _answer_all(samples, model, config, out / ANSWERS, progress, stop)
        results = {
            "label": config.label or Path(config.model).name,
            "model": config.model,
            "step": model.step,
            "notes": list(model.notes),
            "untraced": model.untraced,
            "bands": _bands(rows),
            "held_out": {
                "checked_against": [dict(zip(("folder", "records", "sha256"), d, strict=True)) for d in seen.datasets],
                "texts": len(seen.texts),
                "pairs": len(seen.pairs),
                "unparsed": seen.unparsed,
                "drawn_and_thrown_away": thrown_away,
            },
        }
        write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
        folder.complete(results)
    return results


def _check_held_out(model: OpenedModel, seen: simulated_world.Seen) -> None:
    folders = {Path(folder).resolve() for folder, _, _ in seen.datasets}
    for dataset in model.trained_on:
        if Path(dataset).resolve() not in folders:
            raise UserError(
                f"{model.path} was trained on {dataset}, which task.held_out_from does not name: "
                "add it, or the tasks may be ones that it was trained on"
            )


def _answer_all(
    samples: Sequence[simulated_world.Sample],
    model: OpenedModel,
    config: EvalConfig,
    file: Path,
    progress: Progress,
    stop: StopFlag,
) -> list[dict[str, Any]]:
    """A row for every sample, in order; rows that `file` already has are kept, the others appended as they come."""
    chat_format = get_format(model.chat_format)
    asked = {sample.id: {**asdict(sample), "step": model.step} for sample in samples}
    rows = _keep_rows(file, asked)
    missing = [sample for sample in samples if sample.id not in rows]
    params = prepared(model.params, config=model.config)
    with file.open("a", encoding="utf-8") as stream:
        for start in range(0, len(missing), config.batch_size):
            stop.raise_if_set()
            chunk = missing[start : start + config.batch_size]
            prompts = [
                encode_prompt((Turn("user", sample.instruction),), chat_format=chat_format, tokenizer=model.tokenizer)
                for sample in chunk
            ]
            answers = sampler.generate(
                params,
                prompts,
                config=model.config,
                sampling=sampler.Sampling(max_new_tokens=config.max_new_tokens),
                eos_id=end_id(chat_format, model.tokenizer),
                batch_size=config.batch_size,
            )
            for sample, tokens in zip(chunk, answers, strict=True):
                completion = model.tokenizer.decode(tokens.tolist())
                row = {**asked[sample.id], "completion": completion}
                row |= asdict(simulated_world.score(sample, completion))
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                rows[sample.id] = row
            stream.flush()
            correct = sum(row["correct"] for row in rows.values())
            progress(len(rows), len(samples), {"correct": correct})
    return [rows[sample.id] for sample in samples]


def _keep_rows(file: Path, asked: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a file that answer what is asked now, of this checkpoint; all else is taken out of the file.

    Else is a line that is damaged or that a kill cut off, or answers from before the run or its data went on.
    """
    if not file.exists():
        return {}
    data = file.read_bytes()
    rows = {}
    for line in data.split(b"\n")[:-1]:
        row = _row(line)
        wanted = asked.get(str(row.get("id")))
        if wanted and row.items() >= wanted.items():
            rows[wanted["id"]] = row
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    if text.encode() != data:
        write_atomically(file, text)
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """Of a line that holds none: {}."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}


def _bands(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    bands = {}
    for band in simulated_world.BANDS:
        correct = [bool(row["correct"]) for row in rows if row["band"] == band]
        bands[band] = wilson(sum(correct), len(correct))._asdict()
    return bands
