"""One backend's answer, open until it is read or discarded."""

from __future__ import annotations

import re

import aiohttp
import orjson

from entropy_rft.errors import UserValueError
from entropy_rft.router.backends import Backend
from entropy_rft.router.in_process import ASGIResponse
from entropy_rft.router.tracing import Attempt

Headers = list[tuple[bytes, bytes]]

# Headers that are not passed on: they belong to one connection, or the router sets them itself (a backend may be
# another such router), or they concern only the router and the client (cookies, CORS).
_NOT_PASSED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade content-length "
    b"date server set-cookie x-request-id".split()
)
_NO_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_PASSED_BEGINNINGS = (b"access-control-", b"x-entropy-rft-")
_NOT_PASSED_INSIDE = frozenset((b"content-length", b"transfer-encoding", b"connection"))  # the length is the relay's


class Upstream:
    """A backend's answer whose head has arrived; `close` must follow.

    Attributes:
        status, headers: as it sent them, hop-by-hop ones left out; without a length.
        body: the part that has arrived; all of it where `complete`.
        complete: nothing more will arrive.
        stream: it is a stream of server-sent events.
        length: of the whole body, where the backend reports it.
        thinking_limited: it answers the request as it was given, not the one without a limit on the thinking.
    """

    __slots__ = (
        "_between_s",
        "_response",
        "_span",
        "_trial",
        "backend",
        "body",
        "complete",
        "headers",
        "length",
        "status",
        "stream",
        "thinking_limited",
    )

    def __init__(
        self,
        backend: Backend,
        trial: int,
        response: aiohttp.ClientResponse | ASGIResponse,
        between_s: float,
        span: Attempt | None = None,
    ) -> None:
        self.backend = backend
        self.status = response.status
        self.headers: Headers = []
        self.stream = False
        named = _named(response) if "connection" in response.headers else ()
        for name, value in response.raw_headers:
            lower = name.lower()
            if backend.inside:
                passed = lower not in _NOT_PASSED_INSIDE
            else:
                passed = lower not in _NOT_PASSED and not lower.startswith(_NOT_PASSED_BEGINNINGS)
            if passed and lower not in named:
                self.headers.append((lower, value))
                if lower == b"content-type":
                    self.stream = value.lower().startswith(b"text/event-stream")
        self.length = response.content_length
        self.body = b""
        self.complete = False
        self.thinking_limited = True
        self._response = response
        self._trial: int | None = trial
        self._between_s = between_s
        self._span = span
        if span is not None:
            span.answered(self.status)

    async def fill(self, limit: int) -> None:
        """Read the first piece of a stream, or a plain answer up to `limit` bytes.

        Raises:
            aiohttp.ClientError: the backend died, or sent nothing for too long.
            ValueError: its head cannot be passed on.
        """
        self._check_head()
        content = self._response.content
        if self.stream:
            self.body = await content.readany()
            self._bound_silence()
            self.complete = not self.body
            return
        self._bound_silence()
        pieces, size = [], 0
        while size <= limit:
            piece = await content.readany()
            if not piece:
                self.complete = True
                break
            pieces.append(piece)
            size += len(piece)
        self.body = b"".join(pieces)
        if self.complete and self.ends_with_connection() and not _is_json(self.body):
            raise aiohttp.ClientPayloadError("the connection ended in the middle of the answer")

    async def read(self) -> bytes:
        """The next piece, or b"" at the end.

        Raises:
            aiohttp.ClientError: the backend died, or sent nothing for too long.
        """
        piece = await self._response.content.readany()
        self.complete = not piece
        return piece

    def ends_with_connection(self) -> bool:
        """Neither a length nor chunks mark the end, so that a lost connection looks like the end."""
        chunked = b"chunked" in self._response.headers.get("transfer-encoding", "").lower().encode()
        return self.length is None and not chunked

    def close(self) -> None:
        """Release the connection, or close it when the answer is not complete. May be called again."""
        if self._trial is None:
            return
        if self.complete:
            self._response.release()
        else:
            self._response.close()
        self.backend.ended(self._trial)
        self._trial = None
        if self._span is not None:
            self._span.end(self.complete)

    def _check_head(self) -> None:
        """Checked here, because our server could not send an error once it has begun to send this head."""
        if not 200 <= self.status <= 599:
            raise UserValueError(f"status {self.status}")
        names, values = zip(*self.headers, strict=True) if self.headers else ((), ())
        if _NO_NAME.search(b"".join(names)) or _NO_VALUE.search(b"".join(values)):
            raise UserValueError("a header with invalid characters")

    def _bound_silence(self) -> None:
        """From now on limit the time between two pieces, instead of the time to the first."""
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._between_s
            connection.protocol.start_timeout()


def _named(response: aiohttp.ClientResponse | ASGIResponse) -> set[bytes]:
    """The headers that its Connection header lists: they belong to the connection too."""
    values = response.headers.getall("connection")
    return {name.strip().lower().encode("utf-8", "surrogateescape") for v in values for name in v.split(",")}


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True
