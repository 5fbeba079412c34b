"""Passes an open answer on to the client, piece by piece and byte for byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from entropy_rft.router.dialects import Dialect
from entropy_rft.router.metrics import USAGE_TAIL
from entropy_rft.router.upstream import Headers, Upstream

logger = logging.getLogger("entropy_rft.router")

Send = Callable[[Any], Awaitable[None]]
# An empty line, whatever ends the lines: LF, CR LF or CR. The LF of a last CR LF may come with the next piece.
_EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\n\r", b"\r\r", b"\r\r\n")
_LONGEST_END = 3
_LONGEST_EVENT = 2**20  # most bytes buffered until an event is whole


class Truncated(Exception):
    """The backend died after the head of a plain answer had been sent: the connection must be cut off."""


class Relay:
    """Sends one answer to one client.

    Args:
        send: of ASGI.
        headers: ours, the request's id first; added to the backend's.
        dialect: the client's.

    Attributes:
        started: its head has been sent.
        finished: its last part is being sent, so that a disconnect of the client no longer matters.
        died: the backend died in the middle.
        tail: the answer's last bytes.
    """

    __slots__ = ("_dialect", "_headers", "_loop", "_send", "died", "finished", "started", "tail")

    def __init__(self, send: Send, headers: Headers, dialect: Dialect) -> None:
        self._dialect = dialect
        self._send = send
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self.started = False
        self.finished = False
        self.died = False
        self.tail = b""

    async def whole(self, status: int, headers: Headers, body: bytes, complete: bool = True) -> None:
        """Send an answer that has arrived completely; after `complete=False`, `end` must follow."""
        self.tail = body[-USAGE_TAIL:]
        await self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.finished = complete
        await self._piece(body, more=not complete)

    async def end(self) -> None:
        """End the answer."""
        self.finished = True
        await self._piece(b"", more=False)

    async def pass_on(self, upstream: Upstream) -> None:
        """Send the answer as it arrives, to its end.

        Raises:
            Truncated: the backend died in the middle of a plain answer.
        """
        if upstream.complete and (
            not upstream.stream or upstream.status == 204
        ):  # which has no body, so no event either
            upstream.close()
            await self.whole(upstream.status, upstream.headers, upstream.body)
        elif upstream.stream:
            await self._events(upstream)
        else:
            await self._long(upstream)

    async def _long(self, upstream: Upstream) -> None:
        """A plain answer that is too long to be buffered."""
        headers = upstream.headers
        if upstream.length is not None:
            headers = [*headers, (b"content-length", b"%d" % upstream.length)]
        await self._start(upstream.status, headers)
        piece = upstream.body
        upstream.body = b""
        while piece:
            await self._piece(piece)
            self._remember(piece)
            try:
                piece = await upstream.read()
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                self._lost(upstream, error)
                raise Truncated from error
        if upstream.ends_with_connection():
            self._lost(upstream, None)
            raise Truncated
        upstream.close()
        self.finished = True
        await self._piece(b"", more=False)

    async def _events(self, upstream: Upstream) -> None:
        """A stream of events. An event is passed on when it is whole, so that an error can follow it at any time."""
        await self._start(upstream.status, upstream.headers)
        piece, held = upstream.body, bytearray()
        inside = False  # an event that is too long to be buffered
        at_end = False  # the last event has arrived: then nothing is lost, even if the connection breaks
        upstream.body = b""
        error: BaseException | None = None
        while piece:
            self._remember(piece)
            if held or not piece.endswith(_EVENT_ENDS):
                searched = len(held)
                held += piece
                end = len(held) if len(held) >= _LONGEST_EVENT else _events_end(held, searched)
                piece = bytes(held[:end])
                del held[:end]
            if piece:
                at_end = at_end or self._dialect.stream_end.search(piece) is not None
                inside = not piece.endswith(_EVENT_ENDS)
                await self._piece(piece)
            try:
                piece = await upstream.read()
            except (aiohttp.ClientError, asyncio.TimeoutError) as caught:
                error = caught
                break
        at_end = at_end or self._dialect.stream_end.search(held) is not None
        if (error is not None or upstream.ends_with_connection()) and not at_end:
            self._lost(upstream, error)
            name, event = upstream.backend.name, self._dialect.errors.event
            if isinstance(error, asyncio.TimeoutError):
                what = event(504, f"backend {name} sent nothing for too long", "backend_timeout", self.tail)
            else:
                what = event(502, f"backend {name} died in the middle", "backend_died", self.tail)
            upstream.close()
            self.finished = True
            await self._piece(b"\n\n" + what if inside else what, more=False)
            return
        upstream.close()
        self.finished = True
        await self._piece(bytes(held), more=False)

    def _remember(self, piece: bytes) -> None:
        self.tail = piece[-USAGE_TAIL:] if len(piece) >= USAGE_TAIL else (self.tail + piece)[-USAGE_TAIL:]

    def _lost(self, upstream: Upstream, error: BaseException | None) -> None:
        self.died = True
        upstream.backend.failed(self._loop.time(), gone=not isinstance(error, asyncio.TimeoutError))
        cause = f"{type(error).__name__}: {error}" if error else "the connection ended"
        logger.warning(
            "a backend died in the middle of an answer", extra={"backend": upstream.backend.name, "cause": cause}
        )

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        status = self._dialect.errors.status(status)
        own = self._headers[0][0]  # the header of the request's id: ours replaces the backend's
        headers = [header for header in headers if header[0] != own]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._headers]})

    async def _piece(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _events_end(held: bytearray, searched: int) -> int:
    """Where the last whole event ends; 0 where none does. No event ends within the first `searched` bytes.

    They are not searched again: a long event in many pieces would take quadratic time, and delay every other request.
    """
    start = max(0, searched - _LONGEST_END)
    return max(at + len(end) if (at := held.rfind(end, start)) >= 0 else 0 for end in _EVENT_ENDS)
