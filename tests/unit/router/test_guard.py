"""When a client that reads slowly is cut off; what needs no clock of a connection's timers."""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

from entropy_rft.router.guard import GuardedConnection, guarded
from entropy_rft.router.settings_parts import LimitSettings


class Transport:
    """One whose client reads as much as the test says."""

    def __init__(self) -> None:
        self.unread = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True


class Clock:
    """A loop whose timers the test lets ring."""

    def __init__(self) -> None:
        self.rings: list[Callable[[], None]] = []

    def call_later(self, seconds: float, ring: Callable[[], None]) -> Clock:
        self.rings.append(ring)
        return self

    def cancel(self) -> None:
        self.rings.pop()

    def ring(self) -> None:
        (ring,) = self.rings
        self.rings.clear()
        ring()


def connection() -> tuple[GuardedConnection, Transport, Clock]:
    kind = guarded(LimitSettings())
    made, transport, clock = kind.__new__(kind), Transport(), Clock()
    made.transport, made.flow, made.loop = transport, FlowControl(transport), clock  # type: ignore[assignment, arg-type]
    return made, transport, clock


def test_a_slow_reader_is_waited_for() -> None:
    made, transport, clock = connection()
    transport.unread = 8 * 2**20
    made.pause_writing()
    for _ in range(10):  # each time as long as it may leave everything unread
        transport.unread -= 100_000
        clock.ring()
        assert not transport.aborted
    transport.unread = 0
    made.resume_writing()
    assert not clock.rings


def test_one_that_takes_next_to_nothing_is_not() -> None:
    made, transport, clock = connection()
    transport.unread = 8 * 2**20
    made.pause_writing()
    transport.unread -= 1000
    clock.ring()
    assert transport.aborted
