"""All lineages wait, or one can still move: batch models are told of the first only."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from data_gen.llm.standstill import Standstill


async def told(standstill: Standstill) -> int:
    """How often senders are told within a while."""
    calls: list[None] = []

    def send() -> None:
        calls.append(None)

    standstill.join(send)
    standstill.look()
    await asyncio.sleep(0.05)
    standstill.leave(send)
    return len(calls)


def test_senders_are_told_once_when_the_last_lineage_waits_or_ends() -> None:
    async def body() -> None:
        standstill = Standstill(settle_seconds=0.01)
        assert await told(standstill) == 0
        with standstill.lineage():
            assert await told(standstill) == 0
            with standstill.lineage():
                standstill.stands()
                assert await told(standstill) == 0
            assert await told(standstill) == 1
            standstill.moves()
            assert await told(standstill) == 0

    asyncio.run(body())


def test_a_lineage_that_is_replaced_at_once_makes_no_standstill() -> None:
    async def body() -> None:
        standstill = Standstill(settle_seconds=0.05)
        calls: list[None] = []
        standstill.join(lambda: calls.append(None))
        with standstill.lineage():
            standstill.stands()
            for _ in range(5):
                with standstill.lineage():
                    await asyncio.sleep(0.02)
            with standstill.lineage():
                await asyncio.sleep(0.1)
                assert not calls

    asyncio.run(body())


def test_a_lineage_that_waits_for_what_answers_bring_stands_still_meanwhile() -> None:
    async def body() -> None:
        standstill = Standstill(settle_seconds=0.01)
        with standstill.lineage(), standstill.lineage():
            standstill.stands()
            with standstill.standing():
                assert await told(standstill) == 1
            assert await told(standstill) == 0

    asyncio.run(body())


def test_what_is_asked_outside_of_all_lineages_waits_for_nobody() -> None:
    async def body() -> None:
        standstill = Standstill(settle_seconds=0.01)
        standstill.stands()
        assert await told(standstill) == 1

    asyncio.run(body())


@pytest.mark.parametrize(("error", "calls"), [(ValueError, 1), (asyncio.CancelledError, 0)])
def test_a_cancelled_lineage_ends_all_sending_and_a_failed_one_does_not(error: type[BaseException], calls: int) -> None:
    async def body() -> None:
        standstill = Standstill(settle_seconds=0.01)
        with standstill.lineage():
            standstill.stands()
            with contextlib.suppress(error), standstill.lineage():
                raise error
            assert await told(standstill) == calls

    asyncio.run(body())
