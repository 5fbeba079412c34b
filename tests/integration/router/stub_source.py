"""A server that gives features: what stubs of it have in common, whatever they answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web


class SourceServer:
    """Answers POST requests to one path by `answer`, and says which models it has and whether it is healthy.

    Args:
        path: of the questions.
        answer: to each of their requests.
        models: entries of ``/v1/models``.
    """

    def __init__(
        self, path: str, answer: Callable[[web.Request], Awaitable[web.Response]], models: list[dict[str, Any]]
    ) -> None:
        self._path, self._answer = path, answer
        self.models = models
        self.healthy = True

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self.models})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post(self._path, self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()
