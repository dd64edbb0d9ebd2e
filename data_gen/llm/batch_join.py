"""Which line of a batch job's results answers which request: by what the line echoes, never by where it stands."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_gen.llm.chat import ChatError, ChatReply, Permanent
from data_gen.llm.journal_file import Outcome, outcome_of, refusal


class Result(NamedTuple):
    """One line of a job's results.

    `echo` is the provider's echo of the request, as the service fingerprints it; `key` the key that was sent beside
    the request, where the provider echoes that as well.
    """

    echo: str
    key: str | None
    outcome: ChatReply | ChatError


def fingerprint(request: Any) -> str:
    """SHA-256 (hex) of a request's JSON, the same for an echo that was spelled anew.

    A provider that parses a request and writes it out again may rename its fields from snake to camel case, write 2
    as 2.0, and leave out what is empty or zero. None of that tells two requests of a run apart.
    """
    canonical = json.dumps(_canonical(request), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        members = ((_camel(name), _canonical(member)) for name, member in value.items())
        return {name: member for name, member in members if member}
    if isinstance(value, list):
        return [_canonical(member) for member in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


@dataclass
class Counts:
    """Of this process: jobs that were created, those found again, and what was wrong with results."""

    jobs: int = 0
    found_again: int = 0
    resent: int = 0
    """Requests that went into another job."""
    missing: int = 0
    """Requests of complete jobs that no usable line answers; sent again, they may be paid for twice."""
    expired: int = 0
    """Jobs that were cut short."""
    gone: int = 0
    """Jobs that the provider no longer knew, and whose requests were asked anew."""
    swapped: int = 0
    duplicated: int = 0
    conflicting: int = 0
    unknown: int = 0

    def add(self, join: Join) -> None:
        """What was wrong with the results of one job."""
        for fault in ("swapped", "duplicated", "conflicting", "unknown"):
            setattr(self, fault, getattr(self, fault) + getattr(join, fault))


class Join:
    """Takes the lines of one job's results in any order.

    `echoes` maps the digest of each request to what is echoed of it. Requests whose echoes are equal ask for the same,
    so without a key any of them may have either answer, each once. Counted: `lines`; `joined`, the requests that a
    line answers; `duplicated` lines, of which those that say something else than the first are `conflicting`;
    `swapped` lines, whose key and echo are of two requests; `unknown` lines, whose echo is of none.
    """

    def __init__(self, echoes: Mapping[str, str]) -> None:
        self.errors: dict[str, ChatError] = {}
        """Digest -> why the request has no reply, of those for which a line says so."""
        self.lines = self.duplicated = self.conflicting = self.swapped = self.unknown = 0
        self._digests: defaultdict[str, list[str]] = defaultdict(list)
        for digest, echo in echoes.items():
            self._digests[echo].append(digest)
        self._answers: dict[str, bytes] = {}

    @property
    def joined(self) -> int:
        return len(self._answers.keys() | self.errors.keys())

    def answered(self, digest: str) -> bool:
        """Whether a line holds the reply to the request, or its refusal for good."""
        return digest in self._answers

    def take(self, result: Result) -> tuple[str, Outcome] | None:
        """(digest, outcome) where the line settles a request; None where it does not, or another did before."""
        self.lines += 1
        digests = self._digests.get(result.echo)
        if digests is None:
            self.unknown += 1
            return None
        if result.key is not None and result.key not in digests:
            self.swapped += 1
            return None
        digest = result.key or next((d for d in digests if d not in self._answers), digests[0])
        outcome = _outcome(result.outcome)
        if isinstance(outcome, ChatError):
            self.errors.setdefault(digest, outcome)
            return None
        content = hashlib.sha256(repr(outcome).encode("utf-8", "surrogatepass")).digest()
        if digest in self._answers:
            self.duplicated += 1
            self.conflicting += content != self._answers[digest]
            return None
        self._answers[digest] = content
        return digest, outcome


def _outcome(found: ChatReply | ChatError) -> Outcome | ChatError:
    """What is worth keeping: a reply, or a refusal of this very request."""
    if isinstance(found, Permanent) and found.scope == "request":
        return refusal(found)
    return found if isinstance(found, ChatError) else outcome_of(found)
