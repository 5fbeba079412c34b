"""Requests to an ASGI application in the same process: no socket, no second HTTP parser, no address to know.

`ASGISession` offers the part of `aiohttp.ClientSession` that the router uses, and raises aiohttp's errors, so that all
that asks a server can ask the application as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

logger = logging.getLogger("entropy_rft.router")

_MOST_BUFFERED = 2**18  # bytes of an answer that wait to be read; then the application waits

Scope = dict[str, Any]
CLIENT_SCOPE: ContextVar[Scope | None] = ContextVar("entropy_rft_client_scope", default=None)
"""The request of a client that is being answered: a request to the application takes over all that it does not set."""


class ASGISession:
    """Asks `app`.

    Args:
        app: of ASGI.
        scope: what a request has that belongs to no client, such as ``app``.
        headers: of every request that does not set them.
    """

    closed = False

    def __init__(
        self, app: Callable[..., Awaitable[None]], scope: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        self._app = app
        self._scope = dict(scope)
        self._headers = dict(headers)
        self._tasks: set[asyncio.Task[None]] = set()

    def request(
        self,
        method: str,
        url: str | URL,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        allow_redirects: bool = False,
    ) -> _Asking:
        """As aiohttp's: to be awaited, or used with ``async with``. A redirect is an answer; it is not followed."""
        address = url if isinstance(url, URL) else URL(url)
        given = CLIENT_SCOPE.get() or {}
        body = data or b""
        head = CIMultiDict(headers or {})
        for name, value in self._headers.items():
            head.setdefault(name, value)
        head["content-length"] = str(len(body))
        head.setdefault("host", address.host or "localhost")
        scope: Scope = {
            **self._scope,
            **given,
            "type": "http",
            "method": method,
            "path": address.path,
            "raw_path": address.raw_path.encode(),
            "query_string": address.raw_query_string.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in head.items()],
        }
        return _Asking(self._start(scope, body), None if timeout is None else timeout.total)

    def get(self, url: str | URL, **options: Any) -> _Asking:
        """As aiohttp's."""
        return self.request("GET", url, **options)

    async def close(self) -> None:
        """Disconnect from every request that is left."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, scope: Scope, body: bytes) -> ASGIResponse:
        response = ASGIResponse(scope, body)
        task = asyncio.create_task(response.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await response.head
        except BaseException:
            response.close()
            raise
        return response


class _Asking:
    """A request: its answer is awaited, or released at the end of ``async with``."""

    def __init__(self, answer: Awaitable[ASGIResponse], timeout_s: float | None) -> None:
        self._answer = answer
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[Any, None, ASGIResponse]:
        return asyncio.wait_for(self._answer, self._timeout_s).__await__()

    async def __aenter__(self) -> ASGIResponse:
        self._response = await self
        return self._response

    async def __aexit__(self, *exception: object) -> None:
        self._response.close()


class ASGIResponse:
    """The application's answer, as `aiohttp.ClientResponse`; also what the application gets and sends.

    Attributes:
        head: done when `status` and the headers are known; it raises what went wrong.
        content: has `readany`.
        connection: there is none.
    """

    connection = None

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.content_length: int | None = None
        self._scope = scope
        self._body: bytes | None = body
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = False
        self._error: BaseException | None = None
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        version = scope.get("asgi", {}).get("spec_version", "2.0")
        self._send_raises = tuple(map(int, version.split("."))) >= (2, 4)

    @property
    def content(self) -> ASGIResponse:
        return self

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Let the application answer."""
        error: BaseException | None = None
        try:
            await app(self._scope, self._receive, self._send)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        except Exception as caught:
            error = caught
            if not self._left.is_set():
                logger.error("the server failed to answer a request", exc_info=caught)
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self.head.done():
            self.head.set_exception(aiohttp.ServerDisconnectedError("the server failed before it had answered"))
            self.head.exception()  # retrieved, so that asyncio does not log it where nobody waits any more
        elif not self._whole and self._error is None:
            self._error = aiohttp.ClientPayloadError(f"the server failed in the middle of the answer ({error!r})")
        self._changed.set()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        if self._left.is_set():
            if self._send_raises:
                raise ConnectionResetError("the client has disconnected")
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._take(message.get("body", b""), message.get("more_body", False))
            await self._room.wait()

    def _begin(self, status: int, headers: Any) -> None:
        self.status = status
        self.raw_headers = tuple((bytes(name), bytes(value)) for name, value in headers)
        for name, value in self.raw_headers:
            self.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        length = self.headers.get("content-length", "")
        self.content_length = int(length) if length.isdigit() else None
        if self.content_length is None:
            self.headers["transfer-encoding"] = "chunked"  # as a server sends it: the end of the answer is known
        if not self.head.done():
            self.head.set_result(None)

    def _take(self, body: bytes, more: bool) -> None:
        if body:
            self._pieces.append(body)
            self._size += len(body)
            if self._size >= _MOST_BUFFERED:
                self._room.clear()
        self._whole = not more
        self._changed.set()

    async def readany(self) -> bytes:
        """What has arrived, at least one byte; b"" at the end.

        Raises:
            aiohttp.ClientPayloadError: the application failed in the middle.
        """
        while not self._pieces:
            if self._whole:
                return b""
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size = [], 0
        self._room.set()
        return found

    async def read(self) -> bytes:
        """All that is left."""
        pieces = []
        while piece := await self.readany():
            pieces.append(piece)
        return b"".join(pieces)

    def release(self) -> None:
        """The answer is no longer needed."""
        self.close()

    def close(self) -> None:
        """The application is told that the client has disconnected, and ends by itself.

        It is not cancelled: vLLM cancels a generation when it is told, and would lose track of one otherwise.
        """
        self._left.set()
        self._room.set()
