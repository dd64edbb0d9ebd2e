"""The page of one evaluation: what can be said and what can not, scores, verdicts, judges, samples, cost.

EVAL/report.html   the page, one file that needs no network
EVAL/report.csv    figure,group,series,value,low,high,n: the numbers of every drawing on it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs.errors import UserError
from configs.folder import write_atomically
from data_gen.llm.pricing import dollars
from data_gen.page import Content, Html, element, facts, figure, join, page, table
from wizard_jax.evaluate.config import SimulatedWorld
from wizard_jax.evaluate.results import measure_rows, score_rows
from wizard_jax.report.claims import Claim, better, harder, percent
from wizard_jax.report.comparison import CHECK, held_out_text
from wizard_jax.report.figures import Figure, Point, bars, figures_csv
from wizard_jax.report.judges import judges_section
from wizard_jax.report.reading import Evaluation, Parts, read_evaluation
from wizard_jax.report.rounds import round_evidence, rounds_section
from wizard_jax.report.samples import samples_section
from wizard_jax.report.verdicts import capacity_section, strengths_section, verdicts_section

PAGE = "report.html"


def write_page(folder: Path, results: Mapping[str, Any] | None = None, *, target: Path | None = None) -> Path:
    """Writes the page and its figures' numbers, `target` with .csv for .html; by default into the folder itself.

    `results` are those of an evaluation that is not marked complete yet; None: those that it was completed with.

    Raises:
      UserError: the folder is not of a finished wizard eval, a row in it is damaged, or `target` ends in .csv.
    """
    evaluation = read_evaluation(folder, results)
    target = folder / PAGE if target is None else target
    numbers = target.with_suffix(".csv")
    if numbers == target:
        raise UserError(f"{target}: the page is a .html file; the numbers of its drawings go into the .csv beside it")
    sections = {heading: section(evaluation) for heading, section in SECTIONS.items()}
    drawn = [part for parts in sections.values() for part in parts if isinstance(part, Figure)]
    contents: list[Content] = [_first(evaluation)]
    for heading, parts in sections.items():
        if parts:
            contents += [element("h2", heading), *_shown(parts)]
    contents.append(element("p", f"The numbers of every drawing are in {numbers.name}, beside this page."))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(numbers, figures_csv(drawn))
    write_atomically(target, page(f"Evaluation: {evaluation.results['task']['name']}", *contents))
    return target


def claims(evaluation: Evaluation) -> list[Claim]:
    """Every sentence that this evaluation could support, whether it does or not."""
    results, called = evaluation.results, evaluation.called
    judges = results.get("judges", {})
    found = [better(one, judges, called=called) for one in results.get("comparisons", [])]
    baseline, capacity = evaluation.config.baseline, results.get("capacity")
    if baseline and capacity is not None:
        others = [name for name in results["models"] if name != baseline]
        found += [percent(name, baseline, capacity.get(name), judges, called=called) for name in others]
    if rounds := round_evidence(results):
        found.append(harder(rounds))
    return found


def _shown(parts: Parts) -> Iterator[Content]:
    """Figures that follow each other stand side by side where there is room."""
    for is_figure, group in groupby(parts, lambda part: isinstance(part, Figure)):
        if is_figure:
            figures = [figure(one.svg, one.caption) for one in group if isinstance(one, Figure)]
            yield element("div", *figures, css="plots")
        else:
            yield from (one for one in group if not isinstance(one, Figure))


def _first(evaluation: Evaluation) -> Html:
    results = evaluation.results
    task, judges = results["task"], results.get("judges", {})
    named: dict[str, Content] = {"items": f"{task['items']:,}"} if "items" in task else {}
    named["models"] = f"{len(results['models']):,}"
    if judges:
        named["judges that count"] = f"{sum(told['counts'] for told in judges.values())} of {len(judges)}"
    if results["spent"]["calls"]:
        named["requests"] = f"{results['spent']['calls']:,}"
        named["paid"] = dollars(results["spent"]["usd"])
    is_simulated = isinstance(evaluation.config.task, SimulatedWorld)
    return join(facts(named), element("p", CHECK, css="note") if is_simulated else "")


def _said(evaluation: Evaluation) -> Parts:
    return [_claim(one) for one in claims(evaluation)]


def _claim(claim: Claim) -> Html:
    figures = element("p", f"{claim.figures}.") if claim.figures else ""
    if claim.holds:
        return element("div", element("p", element("b", f"{claim.sentence}.")), figures, css="note")
    why = element("ul", *(element("li", one) for one in claim.failed))
    return element("div", element("p", f"Not said: “{claim.sentence}”, because"), why, figures)


def _scores(evaluation: Evaluation) -> Parts:
    """By program, in all and by band, and what was measured of the models themselves."""
    models = {evaluation.called[name]: told for name, told in evaluation.results["models"].items()}
    parts: Parts = []
    for head, rows in (score_rows({"models": _called(models)}), measure_rows({"models": _called(models)})):
        if rows:
            parts.append(table(head, rows, css="dense"))
    points = _score_points(models)
    if points:
        main = next(iter(next(told["scores"] for told in models.values() if told.get("scores"))))
        caption = f"{main}, in all and by band, with 95 % intervals."
        parts.append(bars(points, name=main, caption=caption, x_label=main, limits=(0.0, 1.0)))
        parts.append(element("p", "Answers that are missing count as not right. Each table cell says its n."))
    rows = [
        (name, told["answered"], told["cut"], told["not_scored"], "; ".join(told["not_answered"]))
        for name, told in models.items()
        if "answered" in told
    ]
    if rows:
        parts.append(table(("model", "answered", "cut off at max_tokens", "not scored", "not answered"), rows))
    return parts


def _called(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**told, "label": name} for name, told in models.items()}


def _score_points(models: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """Of the task's main score: of all items, then by band, for every model."""
    points = []
    for name, told in models.items():
        for score, whole in list(told.get("scores", {}).items())[:1]:
            groups = {"all items": whole} | {band: found.get(score) for band, found in told["bands"].items()}
            points += [
                Point(
                    group=group,
                    series=name,
                    value=found["share"],
                    low=found["low"],
                    high=found["high"],
                    n=int(found["trials"]),
                )
                for group, found in groups.items()
                if found is not None
            ]
    return points


def _cost(evaluation: Evaluation) -> Parts:
    spent = evaluation.results.get("spent_for")
    if not spent:
        return []
    counts = ("calls", "input_tokens", "output_tokens")
    rows = [(name, *(f"{one[count]:,}" for count in counts), dollars(one["usd"])) for name, one in spent.items()]
    return [
        table(("asked for", "replies", "tokens in", "tokens out", "paid"), rows),
        element("p", "Replies of models of this project are among them, and cost nothing."),
    ]


def _asked(evaluation: Evaluation) -> Parts:
    """The task, the models and the settings of what was asked."""
    results, config = evaluation.results, evaluation.config
    task = results["task"]
    asks = bool(results["spent"]["calls"])  # those that measure models themselves ask for no answers
    told = {
        "task": task["name"],
        "source": task.get("source", ""),
        "SHA-256": task.get("sha256", ""),
        **({name: getattr(config, name) for name in ("samples", "temperature", "top_p", "max_tokens")} if asks else {}),
        "seed": config.seed,
        "wording of the judges' prompts": results.get("prompts", ""),
        "pairs of known truth of each kind": config.gates.pairs if config.judges else "",
    }
    parts: Parts = [
        table(("asked", ""), [(name, str(value)) for name, value in told.items() if value != ""]),
        *(element("p", f"Note: {note}") for note in task.get("notes", ())),
    ]
    if "held_out" in task:
        parts.append(element("p", f"Held out: {held_out_text(task['held_out'])}"))
    rows = []
    for name, model in results["models"].items():
        step = "" if model.get("step") is None else str(model["step"])
        rows.append((name, evaluation.called[name], model.get("model", ""), step, model.get("weights", "")))
    parts.append(table(("model", "called here", "what it is", "step", "weights"), rows))
    for name, model in results["models"].items():
        called = evaluation.called[name]
        parts += [element("p", f"{called}: {note}") for note in model.get("notes", ())]
        if untraced := model.get("untraced"):
            text = f"What {untraced} was trained on is not known, so {called} may have seen these very items."
            parts.append(element("p", text))
    return parts


SECTIONS: Mapping[str, Callable[[Evaluation], Parts]] = MappingProxyType(
    {
        "What can be said": _said,
        "Answers and scores": _scores,
        "Difficulty without a judge": rounds_section,
        "Verdicts": verdicts_section,
        "Strengths": strengths_section,
        "Capacity": capacity_section,
        "Judges": judges_section,
        "Samples": samples_section,
        "What it cost": _cost,
        "What was asked": _asked,
    }
)
"""In the order of the page; one without parts is left out."""
