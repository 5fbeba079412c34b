"""One of several processes that answer a router's requests; `supervisor` starts it, with these messages between them.

Each is a line of JSON. To the worker: first its settings, their number and the directory of the metrics, then what the
checks of the backends find, signals, and settings to reload, with their number. From the worker: that it answers
requests, or why it could not start; and after each reload whether it went well.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from entropy_rft.errors import UserMistake
from entropy_rft.router.app import create_app
from entropy_rft.router.fairness import settle_memory
from entropy_rft.router.logs import configure_logs
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.reloading import Reading
from entropy_rft.router.serve import RouterServer
from entropy_rft.router.settings import RouterSettings, load_settings
from entropy_rft.router.supervisor import LONGEST_MESSAGE
from entropy_rft.threads import share_cores

_PUBLISH_S = 1.0  # between two copies of the state for the other workers


class Link:
    """The connection to the supervisor.

    Args:
        control: the socket.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._out = control.dup()
        self._tasks: list[asyncio.Task[None]] = []
        self._writer: asyncio.StreamWriter  # nothing is written to it; without it the connection would be closed
        self.server: RouterServer
        self.settings: dict[str, Any] = {}  # the latest that were told
        self.number = 0  # theirs
        self._read_number = 0  # of those that were read for a reload

    def first(self) -> dict[str, Any]:
        """Wait for the first message, before there is an event loop."""
        with self._control.makefile("rb", buffering=0) as lines:
            return dict(json.loads(lines.readline()))

    def send(self, message: dict[str, Any]) -> None:
        """Send a short message."""
        self._out.sendall(json.dumps(message).encode() + b"\n")

    async def follow(self, pool: Pool) -> None:
        """Wait until the state of every backend is told; from now on apply what is told."""
        reader, self._writer = await asyncio.open_connection(sock=self._control, limit=LONGEST_MESSAGE)
        told = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._read(reader, pool, told)))
        await told.wait()

    def publish(self, metrics: Metrics) -> None:
        """Make this worker's state known to the others, each second."""
        self._tasks.append(asyncio.create_task(_publish(metrics)))

    def read(self) -> RouterSettings:
        """The settings that were told last."""
        self._read_number = self.number
        return load_settings(None, self.settings)

    def reloaded(self, well: bool) -> None:
        """Say whether the settings that were read last are in use."""
        self.send({"reloaded": well, "number": self._read_number})

    async def _read(self, reader: asyncio.StreamReader, pool: Pool, told: asyncio.Event) -> None:
        loop, backends = asyncio.get_running_loop(), {backend.name: backend for backend in pool.backends}
        missing = set(backends)
        while line := await reader.readline():
            message = json.loads(line)
            if "signal" in message:
                self.server.handle_exit(message["signal"], None)
                continue
            if "reload" in message:
                self.settings, self.number = message["reload"], message["number"]
                self.server.router.reloader.request()
                continue
            backend = backends[message["backend"]]
            backend.checked(message["up"], loop.time())
            backend.max_model_len = message["max_model_len"]
            missing.discard(backend.name)
            if not missing:
                told.set()
        # The supervisor is gone.
        told.set()
        if not self.server.router.draining:
            self.server.handle_exit(signal.SIGTERM, None)


async def _publish(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(_PUBLISH_S)
        metrics.publish()


def main(arguments: list[str]) -> int:
    """Answer requests until the supervisor's signal.

    Args:
        arguments: the numbers of two descriptors, of the listening socket and of the connection to the supervisor.
    """
    listener, control = (socket.socket(fileno=int(number)) for number in arguments)
    link = Link(control)
    message = link.first()
    try:
        link.settings, link.number = message["settings"], message["number"]
        _serve(link, listener, link.settings, Path(message["directory"]))
    except Exception as error:
        kind = "user" if isinstance(error, UserMistake) else "fault"
        shown = str(error) if kind == "user" else traceback.format_exc()
        link.send({"failed": shown, "kind": kind, "system": isinstance(error, OSError)})
        return 1
    return 0


def _serve(link: Link, listener: socket.socket, settings: dict[str, Any], directory: Path) -> None:
    heard: set[str] = set()

    class Server(RouterServer):
        """It says to the supervisor what a router alone says in its log."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """A service manager signals all processes, so that the supervisor's first word is no second signal."""
            source = "supervisor" if frame is None else "system"
            again = source in heard
            heard.add(source)
            if again or not self.router.draining:
                super().handle_exit(sig, frame)

        def say_listening(self) -> None:
            app.reloader.on_done = link.reloaded
            link.publish(app.metrics)
            link.send({"ready": True})

        def say_draining(self, sig: int) -> None: ...

    share_cores()
    loaded = load_settings(None, settings)
    configure_logs(loaded.log_format, loaded.log_level)
    app = create_app(loaded, reading=Reading(link.read))
    app.metrics.share(directory)
    app.elsewhere = link.follow
    link.server = server = Server(app, settle_memory)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn raises it where the application could not start
        raise (app.failure or OSError("the router could not be started")) from None
    app.metrics.publish()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
