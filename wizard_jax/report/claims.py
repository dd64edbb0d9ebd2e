"""The sentences that readers take away, each said only where its conditions hold; otherwise those that failed are.

    better(comparison, judges)   "evolved is better than seeds"         of results.json's comparisons and judges
    percent(model, baseline, capacity, judges)   "evolved reaches 97 percent of seeds"
    harder(rounds)               "instructions get harder with each round"

A judge has passed when it was tried on pairs of known truth and failed no gate. A sentence may not rest on one that
failed, even where an evaluation was told to count it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wizard_jax.evaluate.statistics.bootstrap import Estimate
from wizard_jax.evaluate.statistics.multiple import LEAST

SIGNIFICANT = 0.05
"""Of the sign test."""

JUDGES_NEEDED = 2
"""That must agree before instructions are said to get harder: one may have a taste of its own."""

VALIDITY_MARGIN = 0.05
"""The share of valid instructions may not fall by more from parents to children, with all of its interval."""

Told = Mapping[str, Any]
"""A part of results.json; {"none": why} where a figure can not be had."""


@dataclass(frozen=True)
class Claim:
    """A sentence without its full stop, with the figures that it rests on and the conditions that do not hold."""

    sentence: str
    figures: str
    failed: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.failed


def has_passed(judge: Told) -> bool:
    """Whether a judge was tried and failed no gate."""
    return bool(judge["passed"]) and not judge["failed"]


def better(comparison: Told, judges: Mapping[str, Told], *, called: Mapping[str, str]) -> Claim:
    """That one of two models is better, whichever has the higher win rate; `called` are names to print.

    Needs: judges that passed, and no other; 20 items; an interval of the win rate without 0.5; a sign test below 0.05;
    and the win rate at equal length on the same side of 0.5.
    """
    candidate, baseline = (called.get(comparison[role], comparison[role]) for role in ("candidate", "baseline"))
    rate = comparison["win_rate"]
    if "none" in rate:
        return Claim(f"{candidate} is better than {baseline}", "", (rate["none"],))
    is_ahead = rate["estimate"]["value"] >= 0.5
    winner, loser = (candidate, baseline) if is_ahead else (baseline, candidate)
    found = rate["estimate"] if is_ahead else _of_the_other(rate["estimate"])
    wins, losses = (rate["wins"], rate["losses"]) if is_ahead else (rate["losses"], rate["wins"])
    length, equal = comparison["length_controlled"], None
    if "none" not in length:
        equal = length["controlled"] if is_ahead else _of_the_other(length["controlled"])
    failed = [*_judges_failed(comparison["judges"], judges), *_too_few(found["n"])]
    if found["low"] <= 0.5:
        failed.append(f"the interval of the win rate, {interval(found)}, holds 0.5")
    if rate["p"] >= SIGNIFICANT:
        failed.append(f"the sign test of {wins} wins to {losses} losses has {p_value(rate['p'])}, not below 0.05")
    if equal is None:
        failed.append(f"there is no win rate at equal length: {length['none']}")
    elif equal["value"] <= 0.5:
        failed.append(f"at equal length the win rate is {interval(equal)}, not above 0.5")
    elif length["separated"]:
        failed.append("length alone tells every win from every loss, so nothing can be said of equal length")
    told = f"Win rate {interval(found)} on {found['n']:,} items; {wins} wins, {rate['ties']} ties, {losses} losses, "
    told += f"sign test {p_value(rate['p'])}; at equal length {'unknown' if equal is None else interval(equal)}; "
    return Claim(f"{winner} is better than {loser}", f"{told}judged by {_named(comparison['judges'])}", tuple(failed))


def percent(
    model: str, baseline: str, capacity: Told | None, judges: Mapping[str, Told], *, called: Mapping[str, str]
) -> Claim:
    """That a model reaches so many percent of the baseline in graded scores; None: nobody graded both.

    Needs: judges that passed, and no other; 20 items; and both averages, of items as published and of skills, each
    with its interval.
    """
    name, other = called.get(model, model), called.get(baseline, baseline)
    if capacity is None:
        return Claim(
            f"{name} reaches a percentage of {other}", "", ("no judge that counts graded answers of both to one item",)
        )
    failed = [*_judges_failed(capacity["judges"], judges), *_too_few(capacity["items"])]
    if "none" in capacity:
        return Claim(f"{name} reaches a percentage of {other}", "", (*failed, capacity["none"]))
    items, skills = capacity["item_weighted"], capacity["skill_mean"]
    own, its = capacity["mean_grades"]
    sentence = f"{name} reaches {100 * items['value']:.1f} percent of {other}"
    count = len(capacity["skills"])
    told = f"Weighted by items {_percent(items)}, as published; the plain mean of {_counted(count, 'skill')} "
    told += f"{_percent(skills)}; mean grades {own:.2f} and {its:.2f} on {capacity['items']:,} items; graded by "
    return Claim(sentence, told + _named(capacity["judges"]), tuple(failed))


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was found of one round: instructions of the round (children) beside what they were rewritten from."""

    number: int
    passed: tuple[str, ...]
    """Judges that passed their gates, and compared children with parents."""
    length_matched: Estimate | None
    """P(the child is harder) by those judges, on pairs of nearly equal length; None: not known."""
    judge_free: Mapping[str, Estimate]
    """By measure, the mean change from parent to child: above 0 is harder."""
    validity: Estimate | None
    """Change of the share of valid instructions from parents to children; None: not known."""


def harder(rounds: Sequence[Round], *, margin: float = VALIDITY_MARGIN) -> Claim:
    """That instructions get harder with each round, which has to hold of every one.

    Needs, in each round: two judges that passed; an interval of P(the child is harder) above 0.5 in pairs of nearly
    equal length; one measure without a judge whose interval is above 0; and an interval of the change of validity that
    does not reach below -`margin`.
    """
    sentence = "Instructions get harder with each round"
    if not rounds:
        return Claim(sentence, "", ("no round of rewritten instructions was measured",))
    failed = [f"round {one.number}: {why}" for one in rounds for why in _not_harder(one, margin)]
    told = [
        f"of round {one.number} {interval(vars(one.length_matched))}"
        for one in rounds
        if one.length_matched is not None
    ]
    figures = f"P(harder than its parent) at nearly equal length: {'; '.join(told)}" if told else ""
    return Claim(sentence, figures, tuple(failed))


def _not_harder(found: Round, margin: float) -> Iterator[str]:
    if len(set(found.passed)) < JUDGES_NEEDED:
        whose = _named(found.passed) if found.passed else "none"
        yield f"{JUDGES_NEEDED} judges that passed their gates must have compared children with parents, not {whose}"
    matched = found.length_matched
    if matched is None:
        yield "P(the child is harder) is not known for pairs of nearly equal length"
    elif matched.low <= 0.5:
        yield f"P(the child is harder), {interval(vars(matched))} at nearly equal length, is not surely above 0.5"
    if not any(change.low > 0 for change in found.judge_free.values()):
        told = ", ".join(f"{name} {interval(vars(change))}" for name, change in found.judge_free.items())
        yield f"no measure without a judge surely rises from parent to child ({told or 'none was taken'})"
    if found.validity is None:
        yield "whether children are as often valid as their parents is not known"
    elif found.validity.low < -margin:
        change = interval(vars(found.validity))
        yield f"the share of valid instructions changes by {change}: it may fall by more than {margin:g}"


def interval(found: Told | None, places: int = 3) -> str:
    """A figure with the ends of its interval, such as "0.612 [0.554, 0.669]"; "" for None."""
    if found is None:
        return ""
    return f"{found['value']:.{places}f} [{found['low']:.{places}f}, {found['high']:.{places}f}]"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _of_the_other(found: Told) -> Told:
    """A win rate as the other model has it."""
    return {"value": 1 - found["value"], "low": 1 - found["high"], "high": 1 - found["low"], "n": found["n"]}


def _judges_failed(names: Iterable[str], judges: Mapping[str, Told]) -> Iterator[str]:
    names = list(names)
    if not any(has_passed(judges[name]) for name in names):
        yield "no judge that it rests on passed its gates"
    elif others := [name for name in names if not has_passed(judges[name])]:
        yield f"it rests on {_named(others)} too, told to count without having passed"


def _too_few(items: int) -> Iterator[str]:
    if items < LEAST:
        yield f"{_counted(items, 'item')} graded, and {LEAST} are needed"


def _percent(found: Told) -> str:
    return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _named(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "nobody"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
