"""The HTTP side: the handler of each path, and what starts and stops with the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from entropy_rft.router.assembly import Loaded, Parts, Readiness, assembled, cancelled
from entropy_rft.router.backends import Backend
from entropy_rft.router.dialects import BY_PATH, DIALECTS, errors_of
from entropy_rft.router.errors import RouterError
from entropy_rft.router.features import FeatureSource, build_features
from entropy_rft.router.forward import Forwarded
from entropy_rft.router.generate import OWN_HEADERS, Generate
from entropy_rft.router.openapi import document
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import passed_on
from entropy_rft.router.relay import Send
from entropy_rft.router.reloading import Reading, Reloader
from entropy_rft.router.security import Keys, Receive
from entropy_rft.router.settings import EMBEDDED, BackendSettings, RouterSettings
from entropy_rft.router.status import StatusBoard, page
from entropy_rft.router.upstream import Upstream

logger = logging.getLogger("entropy_rft.router")

_STORED = DIALECTS["responses"].path + "/{answer}"
_ANSWER = re.compile(r"[A-Za-z0-9_-]{1,200}")
_QUERY = re.compile(r"[!-~]*")


class RouterApp:
    """The router as an ASGI application; see :func:`create_app`.

    Attributes:
        settings: of the router.
        metrics: with its registry.
        draining: the router is shutting down: /ready answers 503, and connections are not kept alive.
        failure: why it could not start.
        elsewhere: of its pool, see there.
        pool, generate, reloader: set once it has started.
    """

    def __init__(
        self, settings: RouterSettings, features: FeatureSource | None, probe: Any, reading: Reading | None = None
    ) -> None:
        self._reading = reading or Reading(lambda: settings)
        self._loaded = loaded = Loaded(settings, features, probe)
        self.settings = settings
        self.probe = loaded.probe
        self.metrics = loaded.metrics
        self.keys = Keys(settings.auth.keys())
        for backend in settings.backends:
            backend.api_key()  # a mistake in a key is found before anything starts
        self.features = features
        self.draining = False
        self.failure: Exception | None = None
        self.elsewhere: Callable[[Pool], Awaitable[None]] | None = None
        self.pool: Pool
        self.generate: Generate
        self._parts: Parts
        self._readiness: Readiness
        self.reloader: Reloader
        self._board: StatusBoard
        self._web: Any = self._starlette()
        self._hot: Any = self._generate
        if settings.cors_origins:
            cross: dict[str, Any] = {
                "allow_origins": list(settings.cors_origins),
                "allow_methods": ["GET", "POST", "DELETE"],
                "allow_headers": ["*"],
                "expose_headers": [settings.request_id_header, *OWN_HEADERS],
            }
            self._web, self._hot = CORSMiddleware(self._web, **cross), CORSMiddleware(self._hot, **cross)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] in BY_PATH and scope["method"] in ("POST", "OPTIONS"):
            await self._hot(scope, receive, send)
        else:
            await self._web(scope, receive, send)

    async def _generate(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await self.generate(scope, receive, send, BY_PATH[scope["path"]])
        else:
            await self._web(scope, receive, send)

    def _starlette(self) -> Starlette:
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/status.json", self._status),
            Route("/openapi.json", self._openapi),
            Route("/v1/models", self._models),
            *(Route(path, _never, methods=["POST"]) for path in BY_PATH),
            Route(_STORED, self._stored, methods=["GET", "DELETE"]),
            Route(_STORED + "/cancel", self._stored, methods=["POST"]),
            Route(_STORED + "/input_items", self._stored),
        ]
        handlers: Mapping[Any, Any] = {
            HTTPException: self._http_error,
            RouterError: self._router_error,
            Exception: self._own_error,  # Starlette raises it again, so that it is logged
        }
        web = Starlette(routes=routes, exception_handlers=handlers)
        web.router.redirect_slashes = False  # the address in the redirect would come from the client
        return web

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan, without Starlette's traceback for a user's mistake."""
        await receive()
        stack = contextlib.AsyncExitStack()
        try:
            await self._start(stack)
        except Exception as error:
            self.failure = error
            await stack.aclose()
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        async with stack:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        backends = list(settings.backends)
        if not backends:
            from entropy_rft.router.embedded import EmbeddedServer

            logger.warning("no backends are configured: the embedded model answers, which is for trials only")
            server = EmbeddedServer()
            stack.push_async_callback(_in_thread, server.close)
            backends = [BackendSettings(url=await loop.run_in_executor(None, server.start), name=EMBEDDED)]
        self.pool = Pool(settings, [Backend(each, settings.breaker) for each in backends])
        self.pool.elsewhere = self.elsewhere
        stack.push_async_callback(self.pool.close)
        await self.pool.start()
        given = self.features is not None
        if self.features is None and settings.features.kind != "none":
            self.features = await loop.run_in_executor(None, build_features, settings, self.probe)
        self._parts = await assembled(self._loaded, self.features, self.pool, self.keys, stack, lambda: self.draining)
        self.generate = self._parts.generate
        self._board = StatusBoard(self.metrics.registry)
        self._readiness = Readiness(settings, self.pool, self.features, self.metrics)
        self.reloader = Reloader(self._reading, self._loaded, self._parts, self._readiness, given)
        self.reloader.start()
        stack.push_async_callback(self.reloader.close)
        for work in (self._board.run(), self._readiness.keep(lambda: self.draining)):
            stack.push_async_callback(cancelled, asyncio.create_task(work))

    async def _health(self, request: Request) -> Response:
        return self._json({"status": "ok"}, request)

    async def _ready(self, request: Request) -> Response:
        missing, serious = await self._readiness.missing(self.draining)
        status = "not ready" if serious else "degraded" if missing else "ready"
        return self._json({"status": status, "missing": missing}, request, 503 if serious else 200)

    async def _metrics(self, request: Request) -> Response:
        if not self.settings.auth.public_metrics:
            self.keys.check(dict(request.scope["headers"]))
        return Response(
            generate_latest(self.metrics.registry),
            headers={**self._identity(request), "content-type": CONTENT_TYPE_LATEST},
        )

    async def _status(self, request: Request) -> Response:
        if not self.settings.auth.public_status:
            self.keys.check(dict(request.scope["headers"]))
        return self._json(self._board.snapshot(), request, headers={"cache-control": "no-store"})

    async def _page(self, request: Request) -> Response:
        body, headers = page()
        own = {name.decode(): value.decode() for name, value in headers}
        return Response(body, headers={**own, **self._identity(request)})

    async def _openapi(self, request: Request) -> Response:
        return self._json(document(self.settings.auth, bool(self.keys)), request)

    async def _models(self, request: Request) -> Response:
        headers = dict(request.scope["headers"])
        self.keys.check(headers)
        identity = self.generate.request_id(headers)

        async def ask() -> Upstream:
            return await self._parts.proxy.ask("GET", "/v1/models", None, passed_on({}, identity))

        ours = [(self.generate.id_header, identity)]
        return Forwarded(ask, DIALECTS["chat"], ours, self.settings.health.timeout_s)

    async def _stored(self, request: Request) -> Response:
        """What concerns a stored answer: only the backend that holds it can say anything."""
        headers = dict(request.scope["headers"])
        self.keys.check(headers)
        answer, query = request.path_params["answer"], request.scope["query_string"].decode("latin-1")
        if not (_ANSWER.fullmatch(answer) and _QUERY.fullmatch(query)):
            raise HTTPException(404)
        path = _path(request)
        path = f"{path}?{query}" if query else path
        method = "GET" if request.method == "HEAD" else request.method
        identity = self.generate.request_id(headers)

        async def ask() -> Upstream:
            return await self._parts.holders.ask(answer, method, path, None, passed_on(headers, identity))

        return Forwarded(ask, DIALECTS["responses"], [(self.generate.id_header, identity)])

    def _identity(self, request: Request) -> dict[str, str]:
        identity = self.generate.request_id(dict(request.scope["headers"]))
        return {self.settings.request_id_header: identity.decode()}

    def _json(
        self, data: Any, request: Request, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        return Response(
            orjson.dumps(data),
            status,
            {"content-type": "application/json", **self._identity(request), **(headers or {})},
        )

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            message, code = f"there is no {_path(request)[:200]}", "not_found"
        elif error.status_code == 405:
            message, code = f"{request.method} is not allowed for {_path(request)[:200]}", "method_not_allowed"
        else:
            message, code = str(error.detail), None
        headers = {"content-type": "application/json", **self._identity(request), **(error.headers or {})}
        shape = errors_of(_path(request))
        return Response(shape.body(error.status_code, message, code, None), error.status_code, headers)

    async def _router_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RouterError)
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        shape = errors_of(_path(request))
        return Response(error.body(shape), shape.status(error.status), {**headers, **self._identity(request)})

    async def _own_error(self, request: Request, error: Exception) -> Response:
        return await self._router_error(request, RouterError(500, "the router failed", "internal_error"))


def _path(request: Request) -> str:
    """The path that was routed. Not that of `request.url`: it is made of the Host header, which some versions of
    Starlette do not check, so that a client could choose what a backend is asked for."""
    path: str = request.scope["path"]
    return path


async def _in_thread(function: Callable[[], Any]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, function)


async def _never(request: Request) -> Response:
    """POST is answered before Starlette; the route exists so that other methods get a 405 that names it."""
    raise HTTPException(404)


def create_app(
    settings: RouterSettings,
    *,
    features: FeatureSource | None = None,
    probe: Any = None,
    reading: Reading | None = None,
) -> RouterApp:
    """The router.

    Args:
        settings: see `load_settings`.
        features: a source other than the one that the settings describe.
        probe: a `DifficultyProbe` other than the one that the settings name.
        reading: reads the settings again for a reload; without it they stay, and only what they name is loaded again.

    Raises:
        ValueError: the probe, the strategies or a key cannot be loaded; one line.
    """
    return RouterApp(settings, features, probe, reading)
