"""What results.json says of judging: each judge's health, and the comparisons by those that count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.folder import read_complete
from data_gen.judging import wording
from wizard_jax.evaluate.comparing import capacities, comparisons, strengths
from wizard_jax.evaluate.config import EvalConfig
from wizard_jax.evaluate.items import Item
from wizard_jax.evaluate.judging.calibration import Calibration
from wizard_jax.evaluate.judging.health import Health, between, health
from wizard_jax.evaluate.judging.panel import Judged, pairings
from wizard_jax.evaluate.judging.rows import Verdict
from wizard_jax.evaluate.statistics.bootstrap import Bootstrap

VERDICTS = "verdicts.jsonl"
GRADES = "grades.jsonl"


def judged_results(
    config: EvalConfig, found: Judged, items: Sequence[Item], *, families: Mapping[str, str]
) -> dict[str, Any]:
    """The parts "judges", "agreement", "comparisons", "strengths" and "capacity"."""
    bootstrap = Bootstrap(seed=config.seed)
    healths = {
        name: health(
            name,
            verdicts=found.verdicts,
            grades=found.grades,
            calibration=found.calibrations.get(name, Calibration()),
            gates=config.gates,
            bootstrap=bootstrap,
        )
        for name in config.judges
    }
    counted = [name for name, judge in config.judges.items() if judge.counts == "always" or not healths[name].failed]
    pairs = pairings(config) if any(judge.asks != "graded" for judge in config.judges.values()) else []
    told: dict[str, Any] = {
        "judges": {
            name: {**_health(one), "model": found.models[name], "counts": name in counted}
            for name, one in healths.items()
        },
        "prompts": wording.version(),
        "agreement": [asdict(one) for one in between(found.verdicts, bootstrap=bootstrap)],
        "comparisons": comparisons(
            found.verdicts, pairs, items, counted=counted, families=families, bootstrap=bootstrap
        ),
    }
    if len(config.models) > 2 and pairs:
        told["strengths"] = strengths(found.verdicts, counted=counted, bootstrap=bootstrap)
    if found.grades:
        told["capacity"] = capacities(
            found.grades,
            list(config.models),
            items,
            baseline=config.baseline,
            counted=counted,
            bootstrap=bootstrap,
        )
    return told


def _health(found: Health) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name != "judge"}


def read_verdicts(folder: Path) -> list[Verdict]:
    """Of a finished evaluation. Raises UserError: it has none, or a row is damaged."""
    read_complete(folder, stage="eval")
    file = folder / VERDICTS
    if not file.exists():
        raise UserError(f"{folder} has no verdicts: nobody judged there")
    verdicts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            verdicts.append(Verdict.from_dict(json.loads(line)))
        except ValueError as error:
            raise UserError(f"{file}:{number}: damaged ({error}); evaluate into a new folder") from error
    return verdicts


def judge_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the judges: its head, and a row for each gate that one failed, or for one that failed or had none."""
    rows: list[tuple[str, ...]] = []
    for name, told in results.get("judges", {}).items():
        counts = "counts" if told["counts"] else "does not count"
        rows += [(name, counts, line) for line in told["failed"]] or [
            (name, counts, "passed every gate" if told["passed"] else "untried: gates.pairs is 0")
        ]
    return ("judge", "", "gates"), rows


def comparison_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of the comparisons: its head, and a row for each."""
    rows: list[tuple[str, ...]] = []
    for told in results.get("comparisons", []):
        rate = told["win_rate"]
        graded = f"{told['graded']:,} of {told['items']:,}" if told["items"] else ""
        pair = f"{told['candidate']} against {told['baseline']}"
        if "none" in rate:
            rows.append((pair, rate["none"], graded, "", "", ""))
            continue
        found = rate["estimate"]
        counts = f"{rate['wins']} / {rate['ties']} / {rate['losses']}"
        shares = [_share(found), graded, counts, f"{rate['p']:.3f}"]
        controlled = told["length_controlled"]
        if "none" in controlled:
            shares.append(controlled["none"])
        else:
            shares.append(_share(controlled["controlled"]))
        rows.append((pair, *shares))
    head = ("comparison", "win rate, 95 % interval", "items graded", "wins / ties / losses", "sign test p")
    return (*head, "at equal length"), rows


def capacity_rows(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of graded scores relative to the baseline's: its head, and a row for each model."""
    rows: list[tuple[str, ...]] = []
    for name, told in results.get("capacity", {}).items():
        means = " against ".join(f"{grade:.2f}" for grade in told["mean_grades"])
        shares = (
            [told["none"], ""] if "none" in told else [_share(told[way]) for way in ("item_weighted", "skill_mean")]
        )
        rows.append((name, *shares, means, f"{told['items']:,}"))
    return ("capacity", "weighted by item", "mean over skills", "mean grades, and the baseline's", "items"), rows


def _share(found: Mapping[str, Any]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
