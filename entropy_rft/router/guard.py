"""The connection itself: slow or endless headers are refused, and an answer can be cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from entropy_rft.router.errors import error_body
from entropy_rft.router.settings_parts import LimitSettings

_LINGER_S = 2.0  # a refused request is read on for so long: closing at once would take the answer from its sender

CONNECTION = "entropy_rft.connection"
"""Key of the `GuardedConnection` in a request's scope."""


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on the head of a request, which it does not have.

    Attributes:
        on_lost: called once when the client's connection is gone, instead of a task that waits for that.
    """

    limits: LimitSettings  # set by `guarded`
    on_lost: Callable[[], None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _head_count = 0
    _refused = False
    _refusal = (400, "the request is no valid HTTP", "invalid_http")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            # Whole pieces are counted: a body's beginning in the last one is forgiven by on_headers_complete.
            if self._head_bytes > self.limits.max_header_bytes:
                self._refuse(431, f"headers may have at most {self.limits.max_header_bytes} bytes", "headers_too_large")
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._await_head()
        self._in_head = True
        self._head_count = 0
        cast("dict[str, Any]", self.scope)[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_count += 1
        if self._head_count > self.limits.max_header_count:
            self._refusal = (431, f"at most {self.limits.max_header_count} headers are read", "too_many_headers")
            raise ValueError(self._refusal[1])  # the parser stops, and send_400_response answers
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unset_timer()
        self._in_head = False
        self._head_bytes = 0
        size = sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)
        if size > self.limits.max_header_bytes:
            limit = self.limits.max_header_bytes
            self._refusal = (431, f"headers may have at most {limit} bytes", "headers_too_large")
            raise ValueError(self._refusal[1])
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._refusal)

    def unchunked(self, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """A `send` for HTTP/1.0, which knows no chunks: an answer without a length ends with its connection."""
        cycle = self.cycle
        cycle.chunked_encoding = False
        cycle.keep_alive = False

        async def plainly(message: Any) -> None:
            cycle.expected_content_length = len(message.get("body", b""))  # uvicorn checks what it is told
            await send(message)

        return plainly

    def abort(self) -> None:
        """Cut the connection, whatever is still to be sent."""
        self.transport.abort()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._too_slow)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._head_bytes:
            self._refuse(408, "the request's headers took too long", "headers_too_slow")
        else:
            self.transport.close()  # it never said anything

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._unset_timer()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:  # its body is what is wrong: this is its answer
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not cycle.response_started:  # not into the middle of another
            body = error_body(status, message, code)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self._refused = True
            self._unset_keepalive_if_required()
            self.transport.write(STATUS_LINE[status] + head + body)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._timer = self.loop.call_later(_LINGER_S, self.transport.close)
            return
        self.transport.close()


def guarded(limits: LimitSettings) -> type[GuardedConnection]:
    """The class with its limits, as uvicorn wants it."""
    return type("GuardedConnection", (GuardedConnection,), {"limits": limits})
