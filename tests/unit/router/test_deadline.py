"""The time limit, which is another package's on Python 3.10."""

from __future__ import annotations

import asyncio

import pytest

from entropy_rft.router.deadline import timeout


def test_it_ends_what_takes_too_long_and_passes_on_the_rest() -> None:
    async def scenario() -> str:
        cancelled = asyncio.Event()

        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with pytest.raises(asyncio.TimeoutError):
            async with timeout(0.01):
                await slow()
        assert cancelled.is_set()
        async with timeout(10):
            return await asyncio.sleep(0, "value")

    assert asyncio.run(scenario()) == "value"


def test_a_cancellation_from_outside_stays_one() -> None:
    async def limited() -> None:
        async with timeout(60):
            await asyncio.Event().wait()

    async def scenario() -> None:
        task = asyncio.create_task(limited())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
