"""Whose ratings do not count: rules that are written into the key before anyone has rated."""

from __future__ import annotations

from dataclasses import dataclass

from wizard_jax.evaluate.people.questions import PeopleError


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A rater who breaks one is left out of every figure but those of raters; one has broken none without cases."""

    attention: float = 0.25
    """Most of the attention checks that may be answered wrongly, as a share."""
    identical: float = 0.5
    """Most of the pairs of equal sides of which one side may be preferred, as a share."""
    self_agreement: float = 0.5
    """Least share of repeats that must be answered as the first time."""
    seconds: float = 3.0
    """An answer that took less was too fast."""
    too_fast: float = 0.2
    """Most of the answers that may be too fast, as a share."""
    cases: int = 2
    """Fewest checks, pairs, repeats or times that a rule goes by: with fewer, it says nothing."""

    def __post_init__(self) -> None:
        for name in ("attention", "identical", "self_agreement", "too_fast"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise PeopleError(f"the rule {name} is {share:g}: give a share from 0 to 1")
        if not 0 <= self.seconds < float("inf"):
            raise PeopleError(f"the rule seconds is {self.seconds:g}: give a number of seconds from 0")
        if self.cases < 1:
            raise PeopleError(f"the rule cases is {self.cases}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How a rater did on questions of known truth: what happened, of how many cases."""

    attention: tuple[int, int]
    """Attention checks answered rightly."""
    identical: tuple[int, int]
    """Pairs of equal sides of which neither was preferred."""
    repeats: tuple[int, int]
    """Repeats answered as the first time."""
    fast: tuple[int, int]
    """Answers too fast, of those with a time."""


def broken(conduct: Conduct, rules: Rules) -> tuple[str, ...]:
    """Each rule that a rater broke, in words with the figures; () for one who counts."""
    found = []
    right, checks = conduct.attention
    if checks >= rules.cases and checks - right > rules.attention * checks:
        found.append(f"{checks - right} of {checks} attention checks wrong (at most {rules.attention:.0%})")
    neither, equal = conduct.identical
    if equal >= rules.cases and equal - neither > rules.identical * equal:
        found.append(
            f"preferred one of two equal sides {equal - neither} of {equal} times (at most {rules.identical:.0%})"
        )
    same, repeats = conduct.repeats
    if repeats >= rules.cases and same < rules.self_agreement * repeats:
        found.append(f"answered {same} of {repeats} repeats as before (at least {rules.self_agreement:.0%})")
    fast, timed = conduct.fast
    if timed >= rules.cases and fast > rules.too_fast * timed:
        found.append(f"{fast} of {timed} answers in under {rules.seconds:g} s (at most {rules.too_fast:.0%})")
    return tuple(found)
