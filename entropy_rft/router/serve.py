"""Runs the router until a signal stops it; then it finishes the started requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.errors import UserOSError, UserValueError
from entropy_rft.router.app import RouterApp, create_app
from entropy_rft.router.fairness import listening, settle_memory
from entropy_rft.router.guard import guarded
from entropy_rft.router.logs import configure_logs, say_draining, say_listening
from entropy_rft.router.reloading import Reading
from entropy_rft.router.settings import EMBEDDED, RouterSettings


class RouterServer(uvicorn.Server):
    """uvicorn with the router's limits, and a shutdown that load balancers can notice in advance.

    Args:
        app: of `create_app`.
        on_started: called once, when it listens.
    """

    def __init__(self, app: RouterApp, on_started: Callable[[], None] | None = None) -> None:
        settings = app.settings
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=guarded(settings.limits),
                ws="none",
                lifespan="on",
                access_log=False,
                proxy_headers=False,  # the client's address is not used
                log_config=None,
                server_header=False,
                timeout_keep_alive=max(1, round(settings.limits.keep_alive_s)),
                timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                backlog=4096,
            )
        )
        self.router = app
        self._on_started = on_started
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, on `sockets` (each accepts several connections at once) or the settings' address."""
        await super().serve(None if sockets is None else [each for one in sockets for each in listening(one)])

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            if self._on_started is not None:
                self._on_started()
            self.say_listening()

    @property
    def port(self) -> int:
        """The port that it listens on, also where the settings have 0."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def say_listening(self) -> None:
        """Log that it can be asked."""
        say_listening(self.config.host, self.port)

    def say_draining(self, sig: int) -> None:
        """Log that it takes no new requests."""
        say_draining(sig, self.router.settings.drain_delay_s)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Make /ready answer 503, and stop accepting requests after `drain_delay_s` (at once after a second signal)."""
        delay = self.router.settings.drain_delay_s
        if self.router.draining or self._loop is None:
            if self.should_exit and sig == signal.SIGINT:
                self.force_exit = True
            self.should_exit = True
            return
        self.router.draining = True
        self.say_draining(sig)
        if delay > 0:
            self._loop.call_soon_threadsafe(self._loop.call_later, delay, self._exit)
        else:
            self.should_exit = True

    def _exit(self) -> None:
        self.should_exit = True


def embedded_defaults(settings: RouterSettings) -> RouterSettings:
    """Where no backend is given, the embedded model answers, and its probe reads its own hidden states.

    Raises:
        ValueError: other parts of the settings are made for another model.
    """
    if settings.backends:
        return settings
    if settings.probe not in (None, EMBEDDED) or settings.features.kind in ("vllm", "vllm_pooling", "sglang"):
        raise UserValueError("backends is missing: give the addresses of the servers that the probe was made for")
    features = settings.features.model_copy(update={"kind": "local"})  # which also marks it as set
    return settings.model_copy(update={"probe": EMBEDDED, "model": DEFAULT_MODEL, "features": features})


def check(settings: RouterSettings) -> None:
    """Load all that the settings name, but start nothing.

    Raises:
        ValueError: something cannot be loaded; one line.
    """
    create_app(embedded_defaults(settings))


def serve(settings: RouterSettings, reading: Reading | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Args:
        settings: see `load_settings`.
        reading: reads the settings again for a reload.

    Raises:
        ValueError: the probe, the strategies or a key cannot be loaded; one line.
        OSError: the address cannot be listened on.
    """
    configure_logs(settings.log_format, settings.log_level)
    if reading is not None:
        again = reading.read
        reading = Reading(lambda: embedded_defaults(again()), reading.file)
    if settings.workers > 1:
        from entropy_rft.router.supervisor import supervise

        listener = _listen(settings.host, settings.port)
        return supervise(settings, listener, reading)
    app = create_app(embedded_defaults(settings), reading=reading)
    listener = _listen(settings.host, settings.port)
    server = RouterServer(app, settle_memory)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn raises it where the application could not start
        raise (app.failure or OSError("the router could not be started")) from None
    finally:
        listener.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket opened here, so that the error for an address in use is one line."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserOSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener
