"""The connection itself: slow, endless or invalid requests are refused, and every connection is closed in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from entropy_rft.errors import UserValueError
from entropy_rft.router.dialects import errors_of
from entropy_rft.router.settings_parts import LimitSettings

logger = logging.getLogger("entropy_rft.router")

_LINGER_S = 2.0  # how long the rest of a refused request is read, so that its sender can read the answer
_SLOWEST = 2**16  # bytes that a client must at least read of its answer in `write_timeout_s`
_MOST_AHEAD = 100  # requests that may be sent before the first one's answer

CONNECTION = "entropy_rft.connection"
"""Key of the `GuardedConnection` in a request's scope."""


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits that it does not have.

    While a request is being answered, the application limits its time. At any other moment a timer runs: uvicorn's
    while no data arrives (`keep_alive_s`), ours from the first byte to the end of a head (`header_timeout_s`). Ours
    also limits the rest of a body after its answer. An answer that the client does not read has a separate timer.

    Attributes:
        on_lost: called once when the client's connection is gone, instead of a task that waits for that.
    """

    limits: LimitSettings  # set by `guarded`
    on_lost: Callable[[], None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of the answer that the client had not read when the write timer was set
    _in_head = False
    _in_message = False
    _no_progress = 0  # bytes since the last head or piece of a body: heads, trailers, the extensions of chunks
    _head_count = 0
    _again = b""  # the head of a request to upgrade the protocol, without the upgrade
    _refused = False
    _refusal = (400, "the request is not valid HTTP", "invalid_http")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        self._unset_write_timer()
        super().connection_lost(exc)
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        # Whole pieces are counted. A piece in which a head or a part of a body ends sets the count to 0.
        if self._no_progress > self.limits.max_header_bytes:
            self._refuse(431, f"headers may have at most {self.limits.max_header_bytes} bytes", "headers_too_large")
            return
        self._no_progress += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(*self._refusal)
            return
        if self._busy():
            self._unset_timer()
        elif self._timer is None and not self.transport.is_closing():
            self._await_head()

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse `data`. A request to upgrade the protocol is handled as any other request, with its body.

        The parser does not parse what follows such a head. So a new parser gets the head again, without the upgrade.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                head, self._again = self._again, b""
                self.parser = httptools.HttpRequestParser(self)
                with contextlib.suppress(AttributeError):  # httptools < 0.6.3; uvicorn sets the same
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_count = 0
        cast("dict[str, Any]", self.scope)[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_count += 1
        if self._head_count > self.limits.max_header_count:
            self._refusal = (431, f"at most {self.limits.max_header_count} headers are read", "too_many_headers")
            raise UserValueError(self._refusal[1])  # the parser stops, and its error becomes the answer
        if self._in_head:  # else it is a trailer, which must not change the head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._no_progress = 0
        size = sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)
        if size > self.limits.max_header_bytes:
            limit = self.limits.max_header_bytes
            self._refusal = (431, f"headers may have at most {limit} bytes", "headers_too_large")
            raise UserValueError(self._refusal[1])
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise UserValueError("CONNECT is not answered")
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self._again = b"\r\n".join([*lines, b"", b""])
            return
        if len(self.pipeline) >= _MOST_AHEAD:
            raise UserValueError("too many requests were sent before the first one's answer")
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._no_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._refused:
            self.transport.close()
        super().on_response_complete()
        if self.transport.is_closing():
            self._bound_closing()
        elif not self._busy() and self._in_message:  # in the next request, or in a body that was not read
            self._unset_keepalive_if_required()
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unset_write_timer()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._bound_closing()

    def unchunked(self, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """A `send` for HTTP/1.0, which has no chunks: an answer without a length ends with its connection."""
        cycle = self.cycle
        cycle.chunked_encoding = False
        cycle.keep_alive = False

        async def plainly(message: Any) -> None:
            cycle.expected_content_length = len(message.get("body", b""))  # uvicorn checks it
            await send(message)

        return plainly

    def abort(self) -> None:
        """Abort the connection, without sending the remaining data."""
        self.transport.abort()

    def _busy(self) -> bool:
        """Whether a request is being answered, or waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._too_slow)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head:
            self._refuse(408, "the request's headers took too long", "headers_too_slow")
        else:  # no request has begun, or it has its answer
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._bound_closing()

    def _bound_closing(self) -> None:
        """Limit the time of closing: a closed connection still sends its data, which the client may never read."""
        self._unset_timer()
        self._timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def _await_reading(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._not_read)

    def _unset_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _not_read(self) -> None:
        if self.transport.get_write_buffer_size() <= self._unread - _SLOWEST:
            self._await_reading()
            return
        logger.warning("a client did not read its answer: connection closed")
        self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer that a request cannot be read, and stop reading; an answer in progress is completed before."""
        self._refused = True
        self._unset_timer()
        if self.transport.is_closing():
            return
        if self._busy():
            cycle = self.cycle
            if self.pipeline or self._in_head or not self._in_message:
                return  # the error is not in this request's body: on_response_complete closes the connection
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self._close()
                return
        self._unset_keepalive_if_required()
        if self._busy() or self._in_head or not self._in_message:  # else it is the body of an answered request
            path = (self.url or b"").partition(b"?")[0].decode("latin-1")
            body = errors_of(path).body(status, message, code, None)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)


def guarded(limits: LimitSettings) -> type[GuardedConnection]:
    """The class with its limits, in the form that uvicorn needs."""
    return type("GuardedConnection", (GuardedConnection,), {"limits": limits})
