"""A time limit that costs no task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.wait_for` in the task itself: before Python 3.12 that makes a task for each call, which is dear.

    Raises:
        asyncio.TimeoutError: it took longer, and was cancelled.
    """
    task = asyncio.current_task()
    assert task is not None
    fired = False

    def fire() -> None:
        nonlocal fired
        fired = True
        task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, fire)
    try:
        return await coroutine
    except asyncio.CancelledError:
        if not fired:
            raise
        if hasattr(task, "uncancel") and task.uncancel() > 0:  # from Python 3.11: someone else cancelled it too
            raise
        raise asyncio.TimeoutError from None
    finally:
        handle.cancel()
