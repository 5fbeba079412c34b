"""How late the event loop is: a process that gets too little of the CPU must not take that for a slow backend."""

from __future__ import annotations

import asyncio

_TICK_S = 0.25


class Lag:
    """Measures the running loop.

    Attributes:
        seconds: how late its timers were last; a larger value is remembered, and halves with every tick.
    """

    def __init__(self, tick_s: float = _TICK_S) -> None:
        self.seconds = 0.0
        self._tick_s = tick_s
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; needs the running loop."""
        self._loop = asyncio.get_running_loop()
        self._next()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _next(self) -> None:
        self._due = self._loop.time() + self._tick_s
        self._handle = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self.seconds = max(self._loop.time() - self._due, self.seconds / 2)
        self._next()
