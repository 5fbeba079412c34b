"""GET /v1/models of a backend, passed on unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from entropy_rft.router.deadline import timeout
from entropy_rft.router.errors import RouterError
from entropy_rft.router.generate import Exchange
from entropy_rft.router.guard import CONNECTION
from entropy_rft.router.proxy import Proxy, passed_on
from entropy_rft.router.relay import Send, Truncated
from entropy_rft.router.security import Receive


class ForwardedModels(Response):
    """Asks a backend and passes its answer on. When the client disconnects, the request is cancelled.

    Args:
        proxy: asks the backends.
        request_id: of the request.
        id_header: the name of its header.
        timeout_s: for the whole answer, which is a short one.
    """

    def __init__(self, proxy: Proxy, request_id: bytes, id_header: bytes, timeout_s: float) -> None:
        super().__init__()
        self._proxy = proxy
        self._request_id = request_id
        self._id_header = id_header
        self._timeout_s = timeout_s

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, {}, send, [(self._id_header, self._request_id)])
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
            late = RouterError(504, "no backend named its models in time", "backend_timeout")
            await relay.whole(late.status, late.headers(), late.body())
        except RouterError as error:
            await relay.whole(error.status, error.headers(), error.body())

    async def _pass_on(self, exchange: Exchange) -> None:
        upstream = await self._proxy.ask("GET", "/v1/models", None, passed_on({}, self._request_id))
        try:
            await exchange.relay.pass_on(upstream)
        finally:
            upstream.close()
