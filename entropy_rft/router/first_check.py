"""A server is checked once, before it is asked the first question."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from entropy_rft.router.batching import FeatureError

_PATIENCE_SECONDS = 1.0  # before a server that failed its check is checked again


class FirstCheck:
    """Makes the check of a server until it succeeds once.

    Args:
        url: of the server, for messages.
        check: raises FeatureError where the server cannot be used, or not yet.
    """

    def __init__(self, url: str, check: Callable[[], Awaitable[None]]) -> None:
        self._url = url
        self._check = check
        self._done = False
        self._running = asyncio.Lock()
        self._failure, self._failed_at = "", -math.inf

    async def make(self) -> None:
        """Check the server, if it has not succeeded yet; raises FeatureError."""
        async with self._running:
            if self._done:
                return
            try:
                await self._check()
            except FeatureError as error:
                self._failure, self._failed_at = str(error), time.monotonic()
                raise
            self._done = True

    async def before_a_question(self) -> None:
        """As `make`. Only one question at a time checks a server that is not reachable yet: the others do not wait.

        Raises:
            FeatureError: the check fails, failed a moment ago, or another question makes it.
        """
        if self._done:
            return
        if self._running.locked():
            raise FeatureError(f"{self._url} is being checked for the first time")
        if time.monotonic() - self._failed_at < _PATIENCE_SECONDS:
            raise FeatureError(self._failure)
        await self.make()
