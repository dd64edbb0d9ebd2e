"""Bodies that no provider should send, with a success status, from every side at once: hypothesis, a corpus, bytes.

Each is read as a run reads it: by the real client or its reader, priced, and judged as an answer to a seed. What
comes of it is one of three: accepted, rejected with a reason, or to be asked for again. Every 200 costs something.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Scripted, http

from data_gen.config import Budget, EvolveConfig, Gemini, OpenAICompatible, Price, SimulatedSeeds
from data_gen.evolve import evolve_lineage
from data_gen.llm.budget import Charged, Ledger
from data_gen.llm.chat import ChatModel, ChatReply, ChatRequest, Spent
from data_gen.llm.gemini import FINISH_REASONS, GeminiChat, read_response
from data_gen.llm.openai import OpenAIChat, read_completion
from data_gen.llm.pricing import Prices
from data_gen.records import Record, Turn

Verdict = Literal["accepted", "rejected", "retried"]
PRICE = Price(input=1.0, output=4.0)


@dataclass(frozen=True)
class Wire:
    """One provider's way to answer."""

    name: str
    good: dict[str, Any]
    finish_reasons: tuple[str, ...]
    read: Callable[..., ChatReply]
    open: Callable[[str], AbstractAsyncContextManager[ChatModel]]
    usage: str
    text: tuple[Any, ...]
    """The place of the reply's text."""

    def with_finish(self, reason: object) -> dict[str, Any]:
        (listed,) = (key for key in ("choices", "candidates") if key in self.good)
        (key,) = (key for key in ("finish_reason", "finishReason") if key in self.good[listed][0])
        return {**self.good, listed: [{**self.good[listed][0], key: reason}]}


def open_openai(address: str) -> OpenAIChat:
    return OpenAIChat(OpenAICompatible(model="m", base_url=f"{address}/v1", api_key_env="NO_SUCH_KEY"))


OPENAI = Wire(
    name="openai",
    good={
        "id": "x",
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Because of the tides.", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 12,
            "total_tokens": 42,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    },
    finish_reasons=("stop", "length", "content_filter", "tool_calls", "function_call", "eos", "error", "abort", ""),
    read=read_completion,
    open=open_openai,
    usage="usage",
    text=("choices", 0, "message", "content"),
)
GEMINI = Wire(
    name="gemini",
    good={
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [{"text": "Tides?", "thought": True}, {"text": "Because of the tides."}],
                },
                "finishReason": "STOP",
                "safetyRatings": [{"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "NEGLIGIBLE"}],
            }
        ],
        "promptFeedback": {"blockReason": "BLOCKED_REASON_UNSPECIFIED"},
        "usageMetadata": {
            "promptTokenCount": 30,
            "candidatesTokenCount": 8,
            "thoughtsTokenCount": 4,
            "cachedContentTokenCount": 8,
            "totalTokenCount": 42,
        },
        "modelVersion": "m-1",
    },
    finish_reasons=(*FINISH_REASONS, *(reason.value for reason in types.FinishReason), "A_REASON_OF_TOMORROW", ""),
    read=read_response,
    open=lambda address: GeminiChat(Gemini(model="m", base_url=address)),
    usage="usageMetadata",
    text=("candidates", 0, "content", "parts", 1, "text"),
)
EVERY = pytest.mark.parametrize("wire", [OPENAI, GEMINI], ids=lambda wire: wire.name)

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, -0.0, 1e308, 10**30, -(10**30), float("nan"), float("inf"), "", " ", "\0", "\ud83d",
    "a\ud83db", "x" * 5000, "</script>", "STOP", [], [[]], [None], {}, {"": None}, {"text": 7}, [{"text": "x"}] * 3,
)  # fmt: skip


def paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, the whole one first."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, value in inside for path in paths(value, (*at, key)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """`node` with `value` in one place; a place that is not there any more changes nothing."""
    if not path:
        return value
    key, *rest = path
    if isinstance(node, dict) and key in node:
        return {**node, key: replaced(node[key], tuple(rest), value)}
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return [replaced(item, tuple(rest), value) if i == key else item for i, item in enumerate(node)]
    return node


def as_body(value: Any) -> bytes:
    return json.dumps(value).encode()  # NaN and Infinity as Python writes them, surrogates escaped


def corpus(wire: Wire) -> list[bytes]:
    """What providers, proxies and attackers have been seen to send, and every place of a good body gone wrong."""
    good = as_body(wire.good)
    bodies = [
        b"", b" ", b"null", b"true", b"0", b'""', b"[]", b"{}", b"[null]", b"NaN", b"\0", b"\0" * 1000, b"\xff\xfe",
        b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"), b"<html><body>502 Bad Gateway</body></html>",
        b"data: " + good + b"\n\ndata: [DONE]\n\n", b"[" + good + b"]", good + good, good + b"\0", b"[" * 200_000,
        b'{"a":' * 100_000, b"9" * 5000, b'{"error": {"message": "overloaded", "code": 503}}',
        b'{"error": null}', good[:-1] + b', "model": null, "model": [1], "modelVersion": {}}', b"\n" * 100_000 + good,
    ]  # fmt: skip
    bodies += [good[:cut] for cut in range(0, len(good), 7)]
    bodies += [as_body(wire.with_finish(reason)) for reason in (*wire.finish_reasons, *HOSTILE)]
    bodies += [as_body({**wire.good, wire.usage: usage}) for usage in HOSTILE]
    bodies += [as_body({key: value for key, value in wire.good.items() if key != gone}) for gone in wire.good]
    places = paths(wire.good)
    bodies += [as_body(replaced(wire.good, place, value)) for place in places for value in HOSTILE]
    long = replaced(wire.good, wire.text, "x" * 10_000_000)
    return [*bodies, as_body(long), b'"' + b"\\ud83d" * 1_600_000 + b'"', b"x" * 10_000_000]


def bodies_like(wire: Wire) -> st.SearchStrategy[bytes]:
    """A good body with some places changed to anything; any JSON; any bytes."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(HOSTILE)
    anything = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )

    def changed(changes: list[tuple[tuple[Any, ...], Any]]) -> bytes:
        body: Any = wire.good
        for place, value in changes:
            body = replaced(body, place, value)
        return as_body(body)

    change = st.tuples(st.sampled_from(paths(wire.good)[1:]), anything)
    return st.one_of(
        st.lists(change, min_size=1, max_size=3).map(changed),
        anything.map(as_body),
        st.binary(max_size=200),
    )


def spoiled(body: bytes, draws: random.Random) -> bytes:
    """The body with some of its bytes gone, doubled or changed."""
    start, end = sorted(draws.randrange(len(body) + 1) for _ in range(2))
    kind = draws.randrange(4)
    if kind == 0:
        return body[:start]
    if kind == 1:
        return body[:start] + body[end:]
    if kind == 2:
        return body[:end] + body[start:]
    at = draws.randrange(len(body) + 1)
    return body[:at] + bytes([draws.randrange(256)]) + body[at + 1 :]


@dataclass
class Judged:
    """What came of replies, read as a run reads them."""

    model: ChatModel
    ledger: Ledger = field(default_factory=lambda: Ledger(Budget()))
    verdicts: dict[int, tuple[Verdict, str]] = field(default_factory=dict)
    """Of each reply, with the rule where one rejected it."""
    usd: dict[int, float] = field(default_factory=dict)
    """Of each reply that came."""

    def __post_init__(self) -> None:
        provider = OpenAICompatible(model="m", price=PRICE)
        self._charged = Charged(self.model, prices=Prices(provider), ledger=self.ledger)
        self._config = EvolveConfig(seeds=SimulatedSeeds(count=1), llm=provider, rounds=0, max_tokens=64)

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply = await self._charged.complete(request)
        self.usd[int(request.key.lineage)] = reply.usd
        return reply

    async def judge(self, number: int) -> None:
        """Sorts one reply into exactly one of the three."""
        seed = Record(id=f"{number}/0", lineage=f"{number}", turns=(Turn("user", f"Why? (body {number})"),))
        lineage = await evolve_lineage(seed, model=self, config=self._config)
        (outcome,) = (*lineage.records, *lineage.rejected)
        if isinstance(outcome, Record):
            assert outcome.answer.strip()
            verdict: tuple[Verdict, str] = ("accepted", "")
        else:
            assert outcome.evidence
            verdict = ("rejected" if number in self.usd else "retried", outcome.rule)
        assert (verdict[0] == "retried") == (verdict[1] == "gave_up") == (number not in self.usd)
        assert self.verdicts.setdefault(number, verdict) is verdict
        lineage.to_json().encode()  # it can be written down

    def check(self, bodies: Sequence[bytes], *, wire: Wire) -> Counter[str]:
        """Nothing was lost, counted twice or free, and every kind of outcome came up; returns how often each did."""
        assert set(self.verdicts) == set(range(len(bodies)))
        assert self.ledger.spent.calls == len(bodies)
        assert self.ledger.reserved == Spent()
        for number, usd in self.usd.items():
            assert usd == pytest.approx(expected) if (expected := _told_usd(bodies[number], wire=wire)) else usd > 0
        assert self.ledger.spent.usd >= sum(self.usd.values()) - 1e-9
        counts = Counter(verdict for verdict, _ in self.verdicts.values())
        assert min(counts["accepted"], counts["rejected"]) > len(bodies) / 20
        rules = {rule for _, rule in self.verdicts.values()}
        assert {"unreadable_reply", "empty_answer", "truncated", "refused_request"} <= rules
        return counts


def _told_usd(body: bytes, *, wire: Wire) -> float | None:
    """What the body says it cost, if it says that as well-formed ones do: 30 tokens in, 12 out."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    told = isinstance(parsed, dict) and parsed.get(wire.usage) == wire.good[wire.usage]
    return (30 * PRICE.input + 12 * PRICE.output) / 1e6 if told else None


@dataclass
class Reads:
    """A `ChatModel` that answers with bodies, as the real client reads them."""

    wire: Wire
    bodies: list[bytes] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> ChatReply:
        return self.wire.read(self.bodies[int(request.key.lineage)], model=request.model)


@EVERY
def test_10_000_malformed_replies_5_000_of_each_provider_are_each_accepted_or_rejected_with_a_reason_and_paid(
    wire: Wire,
) -> None:
    reader = Reads(wire)
    judged = Judged(reader)
    with asyncio.Runner() as runner:

        def judge(body: bytes) -> None:
            reader.bodies.append(body)
            runner.run(judged.judge(len(reader.bodies) - 1))

        for body in corpus(wire):
            judge(body)

        @settings(max_examples=300, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(bodies_like(wire))
        def throw(body: bytes) -> None:
            judge(body)

        throw()
        draws, good = random.Random(11), as_body(wire.good)
        while len(reader.bodies) < 5_000:
            judge(spoiled(good, draws))
    counts = judged.check(reader.bodies, wire=wire)
    assert counts.total() == counts["accepted"] + counts["rejected"] >= 5_000


def over_sockets(wire: Wire, bodies: list[bytes]) -> None:
    """The real client comes to the same verdict on each body as its reader; every tenth is lost on the way."""

    def answer(asked: object) -> bytes | None:
        found = re.search(r"body (\d+)\)", json.dumps(asked))
        assert found is not None
        number = int(found[1])
        whole = http(200, bodies[number])
        return whole if number % 10 else None if number % 20 else whole[:-1]

    async def run() -> Judged:
        async with Scripted(answer) as server, wire.open(server.base_url) as chat:
            judged = Judged(chat)
            numbers = iter(range(len(bodies)))

            async def work() -> None:
                for number in numbers:
                    await judged.judge(number)

            await asyncio.gather(*(work() for _ in range(16)))
            assert len(server.heads) == len(bodies)
        return judged

    read = Judged(Reads(wire, bodies))

    async def read_all() -> None:
        for number in range(len(bodies)):
            await read.judge(number)

    asyncio.run(read_all())
    judged = asyncio.run(run())
    counts = judged.check(bodies, wire=wire)
    assert judged.verdicts == {
        number: verdict if number % 10 else ("retried", "gave_up") for number, verdict in read.verdicts.items()
    }
    assert counts["retried"] == -(-len(bodies) // 10)


def drawn(wire: Wire, count: int) -> list[bytes]:
    """Every finish reason, then the corpus in some order, then good bodies that were spoiled."""
    draws = random.Random(7)
    others, good = corpus(wire), as_body(wire.good)
    draws.shuffle(others)
    bodies = [*(as_body(wire.with_finish(reason)) for reason in wire.finish_reasons), *others]
    bodies += [spoiled(good, draws) for _ in range(count - len(bodies))]
    return [body or b" " for body in bodies[:count]]  # of an empty body, no byte can be lost


@EVERY
def test_500_malformed_replies_250_of_each_provider_over_sockets_come_to_the_same(wire: Wire) -> None:
    over_sockets(wire, drawn(wire, 250))


@pytest.mark.slow
@EVERY
def test_10_000_malformed_replies_5_000_of_each_provider_over_sockets_come_to_the_same(wire: Wire) -> None:
    over_sockets(wire, drawn(wire, 5_000))
