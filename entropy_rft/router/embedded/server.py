"""The embedded engine on an address of its own, so that the router treats it as any other server."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.errors import UserOSError
from entropy_rft.router.embedded.app import EmbeddedEngine


class EmbeddedServer:
    """Runs an `EmbeddedEngine` with uvicorn in a thread, on the loopback interface and a free port.

    Args:
        model: a directory, a name on the hub, ``modulo_reasoner`` or ``smollm2``.
        options: further arguments of `EmbeddedEngine`.
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Any) -> None:
        self._model = model
        self._options = options
        self._thread: threading.Thread | None = None
        self._server: Any = None
        self.engine: EmbeddedEngine | None = None
        self.url: str | None = None

    def start(self) -> str:
        """Load the model and serve it; returns the URL, without ``/v1``, once it answers. Blocks while loading.

        Raises:
            ValueError: the model cannot be loaded.
            OSError: no port is free, or the server could not be started.
        """
        if self.url is not None:
            return self.url
        import uvicorn

        self.engine = EmbeddedEngine(self._model, **self._options)
        started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                started.set()

        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        # uvicorn's own logging is off, because the router configures it.
        config = uvicorn.Config(
            self.engine, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2
        )
        self._server = Server(config)

        def serve() -> None:
            try:
                self._server.run(sockets=[listener])
            finally:
                started.set()  # `start` must not wait for a server that has ended
                listener.close()

        self._thread = threading.Thread(target=serve, name="embedded-server", daemon=True)
        self._thread.start()
        started.wait()
        if not self._thread.is_alive() or not self._server.started:
            self.close()
            raise UserOSError("the embedded server could not be started")
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return self.url

    def close(self) -> None:
        """Stop the server and its engine; unfinished answers are cut off after two seconds."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(15)
        if self.engine is not None:
            with contextlib.suppress(RuntimeError):
                self.engine.close()
        self._server = self._thread = self.engine = self.url = None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
