"""The router inside the server that answers, as an ASGI middleware of vLLM: no process beside it, and no second engine.

    ENTROPY_RFT_PROBE=probe vllm serve MODEL --middleware entropy_rft.router.middleware.RouterMiddleware

vLLM puts it outside its own middlewares, also of the check of the key. Requests that get a strategy are answered by the
same parts as in `entropy_rft.router.app`; what they ask of a backend is asked of the application below, in this process
(`in_process`). That needs neither the server's address nor its certificate, and costs no connection. All other requests
are passed through untouched; only to the answer of /metrics the router's own are added.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from prometheus_client import generate_latest

from entropy_rft.errors import UserMistake
from entropy_rft.router.assembly import Loaded, Parts, Readiness, assembled, cancelled
from entropy_rft.router.backends import Backend
from entropy_rft.router.dialects import BY_PATH
from entropy_rft.router.features import FeatureSource, build_features
from entropy_rft.router.in_process import CLIENT_SCOPE, ASGISession
from entropy_rft.router.logs import configure_logs
from entropy_rft.router.middleware_settings import CONFIG_ENV, load_middleware_settings
from entropy_rft.router.pool import Pool
from entropy_rft.router.relay import Send
from entropy_rft.router.reloading import Reading, Reloader
from entropy_rft.router.security import Keys, Receive
from entropy_rft.router.settings import RouterSettings

logger = logging.getLogger("entropy_rft.router")

_METRICS = "/metrics"
_SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
# Of one connection, or of a body that is written anew; or they are for the router only.
_NOT_PASSED = frozenset(
    b"accept-encoding connection content-encoding content-length content-type expect keep-alive te trailer "
    b"transfer-encoding upgrade x-entropy-rft-difficulty".split()
)


class OwnServer(Backend):
    """The server that the router runs in: it is asked whatever it answered before, as without the router."""

    inside = True

    def blocked_s(self, now: float) -> float:
        return 0.0


class RouterMiddleware:
    """Gives each question the strategy of its difficulty; see `load_middleware_settings` for what can be set.

    A mistake in the settings ends the server's start: with one line in the log, and without a traceback.

    Args:
        app: of ASGI, the rest of the server.
        settings: by default those of the environment.
        features: a source other than the one that the settings describe.
        probe: a `DifficultyProbe` other than the one that the settings name.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        settings: RouterSettings | None = None,
        features: FeatureSource | None = None,
        probe: Any = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._given = features
        self._probe = probe
        self._parts: Parts | None = None  # before the start requests are passed through
        self._loaded: Loaded
        self.reloader: Reloader
        self._session: ASGISession

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] == "http" and self._parts is not None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if scope["method"] == "POST" and path in BY_PATH:
                token = CLIENT_SCOPE.set(scope)
                try:
                    await self._parts.generate(scope, receive, send, BY_PATH[path])
                finally:
                    CLIENT_SCOPE.reset(token)
                return
            if scope["method"] == "GET" and path == _METRICS and _SHARED_METRICS not in os.environ:
                await self._metrics(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Receive, send: Send) -> None:
        """The lifespan of the application below, in which the router's own lies."""
        stack = contextlib.AsyncExitStack()
        failed = False

        async def ending() -> Any:
            if failed:  # the server sends nothing more; the application ends what it has started
                return {"type": "lifespan.shutdown"}
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._parts = None
                await stack.aclose()
            return message

        async def starting(message: Any) -> None:
            nonlocal failed
            if failed:
                return
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._start(scope, stack)
                except Exception as error:
                    await stack.aclose()
                    if not isinstance(error, UserMistake):
                        logger.exception("the router could not be started")
                    failed = True
                    message = {"type": "lifespan.startup.failed", "message": f"entropy_rft: {error}"}
            await send(message)

        await self._app(scope, ending, starting)

    async def _start(self, scope: Any, stack: contextlib.AsyncExitStack) -> None:
        settings = load_middleware_settings() if self._settings is None else self._settings
        in_json = settings.log_format == "json" and "log_format" in settings.model_fields_set
        configure_logs("json" if in_json else "text", settings.log_level, [logger.name])
        arguments = _arguments(scope)
        keys = _keys(arguments)
        self._loaded = loaded = Loaded(settings, self._given, self._probe, process=False)
        outer = {name: value for name, value in scope.items() if name in ("app", "state")}
        base = {
            **outer,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "server": None,
            "client": None,
        }
        self._session = ASGISession(self._app, base, {"authorization": f"Bearer {keys[0]}"} if keys else {})
        pool = Pool(settings, [OwnServer(each, settings.breaker) for each in settings.backends], self._session)
        stack.push_async_callback(pool.close)
        await pool.start()
        features = self._given
        own = None if settings.model is not None else arguments.get("tokenizer") or arguments.get("model")
        build = partial(build_features, session=self._session, tokenizer=own)
        if features is None and settings.features.kind != "none":
            features = await asyncio.get_running_loop().run_in_executor(None, build, settings, loaded.probe)
        checked = Keys(keys)

        def passed(headers: dict[bytes, bytes], identity: bytes) -> dict[str, str]:
            return passed_inside(headers, identity, bool(checked))

        parts = await assembled(loaded, features, pool, checked, stack, passed=passed)
        readiness = Readiness(settings, pool, features, loaded.metrics)
        await readiness.missing()  # the metrics are right from the first request on
        stack.push_async_callback(cancelled, asyncio.create_task(readiness.keep()))
        reading = Reading(lambda: settings)
        if self._settings is None:
            reading = Reading(load_middleware_settings, os.environ.get(CONFIG_ENV) or None)
        self.reloader = Reloader(reading, loaded, parts, readiness, self._given is not None, build)
        self.reloader.start()
        stack.push_async_callback(self.reloader.close)
        self._parts = parts
        logger.info("%s", loaded.says())

    async def _metrics(self, scope: Any, receive: Receive, send: Send) -> None:
        """The server's own metrics and the router's, in one answer."""
        plain = [(n, v) for n, v in scope["headers"] if n not in (b"accept", b"accept-encoding")]
        start: Any = None
        pieces: list[bytes] = []

        async def hold(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    await self._with_own(start, b"".join(pieces), send)

        await self._app({**scope, "headers": [*plain, (b"accept", b"text/plain")]}, receive, hold)

    async def _with_own(self, start: Any, body: bytes, send: Send) -> None:
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        if start["status"] == 200:
            body = body + b"\n" * (not body.endswith(b"\n")) + generate_latest(self._loaded.metrics.registry)
        await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


def passed_inside(headers: dict[bytes, bytes], identity: bytes, checked: bool) -> dict[str, str]:
    """The headers of a client's request that the server gets: all but those of the body, which is written anew.

    Args:
        headers: the client's.
        identity: the request's id.
        checked: the client's key is right. One given as ``x-api-key`` is left out: the session's own takes its place.
    """
    passed = {
        name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items() if name not in _NOT_PASSED
    }
    if checked:
        passed.pop("x-api-key", None)
        if not passed.get("authorization", "").lower().startswith("bearer "):
            passed.pop("authorization", None)
    passed["x-request-id"] = identity.decode("ascii")
    return passed


def _arguments(scope: Any) -> dict[str, Any]:
    """The arguments that vLLM was started with; empty in another server."""
    arguments = getattr(getattr(scope.get("app"), "state", None), "args", None)
    return {} if arguments is None else vars(arguments)


def _keys(arguments: dict[str, Any]) -> list[str]:
    """The keys that vLLM accepts: those of --api-key, else of VLLM_API_KEY."""
    return [key for key in (arguments.get("api_key") or [os.environ.get("VLLM_API_KEY")]) if key]
