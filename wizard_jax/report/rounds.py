"""The section of an evaluation's page on difficulty without a judge: by round, in rank, and pass rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from data_gen.page import Content, element, folded, table
from wizard_jax.evaluate.statistics.bootstrap import Estimate
from wizard_jax.evaluate.statistics.shares import Proportion, difference
from wizard_jax.report.claims import Round, interval
from wizard_jax.report.figures import Figure, Point, bars
from wizard_jax.report.reading import Evaluation, Parts

MEASURES = ("loss", "ifd_loss", "ifd_ppl", "ic_ifd")
SHARES = ("answerable", "self_consistent", "valid", "harder", "harder_and_valid")


def rounds_section(evaluation: Evaluation) -> Parts:
    """Losses and IFD, validity, and pass rates, of what the evaluation has."""
    results, called = evaluation.results, evaluation.called
    by_model = {called[name]: told["rounds"] for name, told in results["models"].items() if "rounds" in told}
    parts: Parts = []
    if by_model:
        parts += [
            table(
                ("loss and IFD", "round", "records", *MEASURES, "IFD gained on the parent"),
                _loss_rows(by_model),
                css="dense",
            ),
            element(
                "p",
                "loss is of the answer, in nats of a token; ifd_loss is its ratio to the loss of the answer alone, "
                "ifd_ppl the ratio of perplexities. Rounds differ in lineages where candidates were dropped; gains "
                "are of pairs of parent and child.",
            ),
            _drawn(by_model, "ifd_loss", name="IFD by round", caption="IFD (ratio of losses) by round."),
        ]
    validity = {called[name]: rounds for name, rounds in results.get("validity", {}).items()}
    if validity:
        rows = [
            (model, one["round"], one["items"], *(_share(one[share]) for share in SHARES))
            for model, rounds in validity.items()
            for one in rounds
        ]
        parts += [
            table(("validity by", "round", "items", *(name.replace("_", " ") for name in SHARES)), rows, css="dense"),
            _drawn(validity, "valid", name="validity by round", caption="Share of valid instructions by round."),
        ]
    parts += _pass_rates(results.get("pass_rates"), called)
    found = [(called[name], told["correlations"]) for name, told in results["models"].items() if "correlations" in told]
    return parts + [_correlations(f"Rank correlations of {model}", entries) for model, entries in found if entries]


def round_evidence(results: Mapping[str, Any]) -> list[Round]:
    """What one evaluation shows of each round of rewriting, of all its models: the lowest change of validity.

    No evaluation compares children with parents by judges yet, so what they would say is not known.
    """
    gains = {
        (name, one["round"]): one["gains"] for name, told in results["models"].items() for one in told.get("rounds", ())
    }
    changes = {
        (name, after["round"]): _change(before["valid"], after["valid"])
        for name, rounds in results.get("validity", {}).items()
        for before, after in pairwise(rounds)
    }
    numbers = sorted({number for _, number in (*gains, *changes) if number})
    found = []
    for number in numbers:
        measured = {
            f"{measure} of {name}": Estimate(**told)
            for (name, at), of_round in gains.items()
            for measure, told in of_round.items()
            if at == number and "value" in told
        }
        changed = [change for (_, at), change in changes.items() if at == number and change is not None]
        found.append(
            Round(
                number=number,
                passed=(),
                length_matched=None,
                judge_free=measured,
                validity=min(changed, key=lambda change: change.low, default=None),
            )
        )
    return found


def _change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Estimate | None:
    if before is None or after is None:
        return None
    first, second = Proportion(**before), Proportion(**after)
    low, high = difference(second, first)
    n = min(first.trials, second.trials)
    return Estimate(second.share - first.share, low, high, n, "Newcombe's of independent shares")


def _loss_rows(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[tuple[Content, ...]]:
    for model, rounds in by_model.items():
        for one in rounds:
            figures = (_figure(one[name]) for name in MEASURES)
            yield model, one["round"], one["n"], *figures, _figure(one["gains"].get("ifd_loss"))


def _figure(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"unknown: {found['why']}" if "why" in found else interval(found)


def _share(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['share']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _drawn(
    by_model: Mapping[str, Sequence[Mapping[str, Any]]], figure: str, *, name: str, caption: str
) -> Content | Figure:
    points = []
    for model, rounds in by_model.items():
        for one in rounds:
            found = one[figure]
            if found is None or "why" in found:
                continue
            value, n = (found["share"], found["trials"]) if "share" in found else (found["value"], found["n"])
            low, high = found["low"], found["high"]
            points.append(Point(group=f"round {one['round']}", series=model, value=value, low=low, high=high, n=n))
    if not points:
        return element("p", "No round has enough for an interval.")
    return bars(points, name=name, caption=f"{caption} With 95 % intervals.", x_label=figure)


def _pass_rates(found: Mapping[str, Any] | None, called: Mapping[str, str]) -> Parts:
    """A model's share of right samples, where that is another thing than its score: by known difficulty."""
    if found is None:
        return []
    rows, parts = [], []
    for name, told in found["models"].items():
        rows += [
            (called[name], f"{one['difficulty']:g}", one.get("n", ""), _figure(one)) for one in told["by_difficulty"]
        ]
        if told["correlations"]:
            parts.append(_correlations(f"Rank correlations of the pass rate of {called[name]}", told["correlations"]))
    if not rows:
        return []
    head = ("pass rate", "difficulty", "items", f"{found['score']}, {found['samples']:,} samples of each item")
    note = "A label of difficulty is worth something where pass rates fall with it."
    return [table(head, rows), element("p", note), *parts]


def _correlations(heading: str, entries: Sequence[Mapping[str, Any]]) -> Content:
    rows = [
        (one["measure"], one["label"], one["within"], one["without"], one["items"], _figure(one)) for one in entries
    ]
    return folded(heading, table(("measure", "label", "within", "taken out", "items", "Spearman's"), rows))
