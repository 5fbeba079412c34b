"""Requests that are passed on unchanged, apart from the hot path: GET /v1/models, and what concerns stored answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from entropy_rft.router.deadline import timeout
from entropy_rft.router.dialects import Dialect
from entropy_rft.router.errors import RouterError
from entropy_rft.router.generate import Exchange
from entropy_rft.router.guard import CONNECTION
from entropy_rft.router.relay import Send, Truncated
from entropy_rft.router.security import Receive
from entropy_rft.router.upstream import Headers, Upstream


class Forwarded(Response):
    """Asks a backend and passes its answer on. When the client disconnects, the request is cancelled.

    Args:
        ask: asks the backends.
        dialect: of the client.
        headers: ours: the request's id and the name of its header.
        timeout_s: for the whole answer, where it is a short one.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[Upstream]], dialect: Dialect, headers: Headers, timeout_s: float | None = None
    ) -> None:
        super().__init__()
        self._ask = ask
        self._dialect = dialect
        self._ours = headers
        self._timeout_s = timeout_s

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, {}, send, self._ours, self._dialect)
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.on_lost = exchange.leave
        try:
            await self._answer(exchange)
        except Truncated:
            exchange.abort()
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
        finally:
            if connection is not None:
                connection.on_lost = None

    async def _answer(self, exchange: Exchange) -> None:
        relay = exchange.relay
        try:
            async with timeout(self._timeout_s):
                await self._pass_on(exchange)
        except asyncio.TimeoutError:
            if relay.started:
                raise Truncated from None
            await self._refuse(exchange, RouterError(504, "no backend answered in time", "backend_timeout"))
        except RouterError as error:
            await self._refuse(exchange, error)

    async def _refuse(self, exchange: Exchange, error: RouterError) -> None:
        await exchange.relay.whole(error.status, error.headers(), error.body(self._dialect.errors))

    async def _pass_on(self, exchange: Exchange) -> None:
        upstream = await self._ask()
        try:
            await exchange.relay.pass_on(upstream)
        finally:
            upstream.close()
