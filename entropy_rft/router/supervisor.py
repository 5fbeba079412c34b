"""A router of several worker processes: starts them, replaces one that ends, checks the backends for all, and drains.

Each worker listens on a socket of its own on the same port, and Linux spreads the connections over them. (From one
shared socket the worker that happened to be awake took most: of 64 connections two workers got 57 and 7, 53 and 11, 63
and 1; from their own ones 34 and 30, 36 and 28.) Elsewhere they share one. This process answers no request: it loads no
model and no probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from entropy_rft.errors import UserMistake, UserOSError, UserValueError
from entropy_rft.router.backends import Backend
from entropy_rft.router.logs import say_draining, say_listening
from entropy_rft.router.pool import Pool
from entropy_rft.router.reloading import Reading, merge, watch
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.shared_metrics import VARIABLE
from entropy_rft.threads import chosen_by_user, own_cores

logger = logging.getLogger("entropy_rft.router")

LONGEST_MESSAGE = 2**24  # bytes, between this process and a worker
_SPREAD = sys.platform == "linux"  # other systems do not spread connections over the sockets of a port
_GRACE_S = 30.0  # for a worker to end after its own limits
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # before a worker is started again that could not start
_STEADY_S = 10.0  # or that ended so soon


class WorkerFault(Exception):
    """A worker could not start, for a reason that is no user's mistake; holds its traceback."""


class _Worker:
    """A process and the connection to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.ready = False
        self.told = 0  # the number of the settings that it was told last
        self._reader = reader
        self._writer = writer

    def tell(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def until_ready(self) -> Exception | None:
        """Why it could not start; ``None`` where it answers requests."""
        with contextlib.suppress(OSError):
            line = await self._reader.readline()
            if line:
                message = json.loads(line)
                self.ready = "ready" in message
                return None if self.ready else _failure(message)
        status = await self.process.wait()
        return UserOSError(f"workers: one {_ended(status)} before it was ready (is there enough memory for each?)")

    async def reloads(self) -> AsyncIterator[int]:
        """The number of the settings that it uses, after each reload that went well."""
        with contextlib.suppress(OSError):
            while line := await self._reader.readline():
                message = json.loads(line)
                if message.get("reloaded"):
                    yield message["number"]

    def kill(self) -> None:
        # Not by `process.kill`: it polls first, and where the process has just ended asyncio then finds no exit code.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._writer.close()


class _Checks(Pool):
    """Checks the backends, and passes on what each check found."""

    def __init__(self, settings: RouterSettings, workers: set[_Worker]) -> None:
        super().__init__(settings, [Backend(each, settings.breaker) for each in settings.backends])
        self._workers = workers

    async def _check(self, backend: Backend) -> None:
        await super()._check(backend)
        for worker in self._workers:
            worker.tell(found(backend))


class Supervisor:
    """The process that starts and watches the workers.

    Args:
        settings: of the router.
        listener: bound, not listening; it reserves the port, and where connections are not spread it is the workers'.
        directory: for the files of the metrics.
        reading: reads the settings again for a reload.
    """

    def __init__(
        self, settings: RouterSettings, listener: socket.socket, directory: Path, reading: Reading | None = None
    ) -> None:
        self._reading = reading
        self._settings = settings
        # The first are in use by some worker; the wanted ones may be a mistake, which the workers find out.
        self._share = self._wanted = share_of(settings)
        self._share_number = self._wanted_number = 0
        self._listener = listener
        self._directory = directory
        self._workers: set[_Worker] = set()
        self._checks = _Checks(settings, self._workers)
        self._count = 0  # workers that have been ready
        self._running = False  # all were ready once
        self._stop = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Serve until a signal; returns the exit code: 0, or 1 where a worker did not end well.

        Raises:
            ValueError, OSError: a worker could not be started, for a user's mistake; one line.
            WorkerFault: for another reason.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        if self._reading is not None and self._settings.reload != "off":
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        keepers: list[asyncio.Task[None]] = []
        watching = self._watching()
        try:
            await self._checks.start()
            keepers += (asyncio.create_task(self._keep()) for _ in range(self._settings.workers))
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([*keepers, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            limit = self._settings.drain_delay_s + self._settings.drain_s + _GRACE_S
            done, _ = await asyncio.wait(keepers, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
            for keeper in done:
                keeper.result()
            return self._status
        finally:
            self._stop.set()
            if watching is not None:
                watching.cancel()
            for worker in self._workers:
                worker.kill()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await asyncio.gather(*(worker.process.wait() for worker in self._workers))
            await self._checks.close()

    async def _keep(self) -> None:
        """Keep one worker running; ends when the router does, or with the error of its first start."""
        loop, pause = asyncio.get_running_loop(), 0.0
        while not self._stop.is_set():
            worker = await self._start()
            failure = await worker.until_ready()
            if worker.ready:
                self._ready()
                if worker.told != self._wanted_number:  # they came while it was starting
                    self._tell(worker)
            ready_at = loop.time()
            async for number in worker.reloads():
                self._use(number)
            status = await worker.process.wait()
            self._forget(worker)
            if self._stop.is_set():
                self._status = self._status or int(worker.ready and status != 0)
                return
            if failure is not None and not self._running:
                raise failure
            lasted = worker.ready and loop.time() - ready_at > _STEADY_S
            pause = 0.0 if lasted else min(max(_FIRST_PAUSE_S, 2 * pause), _LONGEST_PAUSE_S)
            more = {} if failure is None else {"cause": str(failure), "pause_s": pause}
            logger.warning(
                "a worker ended and is replaced", extra={"worker": worker.process.pid, "how": _ended(status), **more}
            )
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        # The worker's own socket ends with it, so that no connection waits for one that is gone.
        listener = on_the_same_port(self._listener) if _SPREAD else self._listener.dup()
        with theirs, listener:
            descriptors = (listener.fileno(), theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "entropy_rft.router.worker", *map(str, descriptors)),
                pass_fds=descriptors,
                env=os.environ | {VARIABLE: str(self._directory)},
                start_new_session=True,  # an interrupt at the terminal reaches it through this process only
            )
        worker = _Worker(process, *await asyncio.open_connection(sock=ours, limit=LONGEST_MESSAGE))
        worker.told = self._share_number
        worker.tell({"settings": self._share, "number": worker.told, "directory": str(self._directory)})
        for backend in self._checks.backends:
            worker.tell(found(backend))
        self._workers.add(worker)
        if self._stop.is_set():  # the signal came before this worker could be told
            worker.kill()
        return worker

    def _ready(self) -> None:
        self._count += 1
        if self._count == self._settings.workers:
            self._running = True
            host, port = self._listener.getsockname()[:2]
            say_listening(host, port, workers=self._count)

    def _forget(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        worker.close()
        mark_process_dead(worker.process.pid, str(self._directory))

    def _reload(self) -> None:
        """Let every worker reload."""
        assert self._reading is not None
        try:
            changed = merge(self._settings, self._reading.read())
        except UserMistake as error:
            logger.error("not reloaded, the probe and the strategies stay as they were: %s", error)
            return
        self._wanted, self._wanted_number = share_of(changed), self._wanted_number + 1
        for worker in self._workers:
            if worker.ready:
                self._tell(worker)

    def _tell(self, worker: _Worker) -> None:
        worker.told = self._wanted_number
        worker.tell({"reload": self._wanted, "number": worker.told})

    def _use(self, number: int) -> None:
        """A worker uses the settings of this number: one that starts later begins with them."""
        if number == self._wanted_number:
            self._share, self._share_number = self._wanted, number

    def _watching(self) -> asyncio.Task[None] | None:
        """Notices when the file of the settings changes; the workers watch the others."""
        if self._reading is None or self._reading.file is None or self._settings.reload != "watch":
            return None
        file = Path(self._reading.file).expanduser()
        return asyncio.create_task(watch(lambda: [file], self._reload))

    def _signalled(self, number: int) -> None:
        """The first signal begins to drain, a second one shortens it, as in a router of one process."""
        if not self._stop.is_set():
            say_draining(number, self._settings.drain_delay_s)
            self._stop.set()
            self._listener.close()  # else connections would wait in it, and nobody would accept them
        for worker in self._workers:
            if worker.ready:
                worker.tell({"signal": int(number)})
            else:
                worker.kill()


def on_the_same_port(listener: socket.socket) -> socket.socket:
    """Another socket on the address of `listener`, which allows it from now on to this user's processes."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other = socket.socket(listener.family, listener.type)
    try:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(listener.getsockname())
    except OSError:
        other.close()
        raise
    return other


def share_of(settings: RouterSettings) -> dict[str, Any]:
    """The settings of one worker: its part of each limit, and checks so much rarer that all make as many as one."""
    workers = settings.workers
    share = settings.model_dump(mode="json", exclude_unset=True) | {"workers": 1}
    share["limits"] = share.get("limits", {}) | {"max_requests": ceil(settings.limits.max_requests / workers)}
    share["health"] = share.get("health", {}) | {"interval_s": settings.health.interval_s * workers}
    share["backends"] = [
        dumped | {"max_outstanding": ceil(backend.max_outstanding / workers)}
        for dumped, backend in zip(share["backends"], settings.backends, strict=True)
    ]
    if settings.features.kind == "local" and settings.features.threads is None and not chosen_by_user():
        share["features"]["threads"] = max(1, (len(own_cores()) - 1) // workers)
    return share


def found(backend: Backend) -> dict[str, Any]:
    """What the last check of a backend found, as a message."""
    return {"backend": backend.name, "up": bool(backend.up), "max_model_len": backend.max_model_len}


def _failure(message: Mapping[str, Any]) -> Exception:
    if message["kind"] == "user":
        return (UserOSError if message["system"] else UserValueError)(message["failed"])
    return WorkerFault(f"a worker could not start\n{message['failed']}")


def _ended(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def supervise(settings: RouterSettings, listener: socket.socket, reading: Reading | None = None) -> int:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT; returns the exit code.

    Raises:
        ValueError, OSError: a user's mistake; one line.
        WorkerFault: a worker could not start for another reason.
    """
    with listener, TemporaryDirectory(prefix="entropy-rft-metrics-") as directory:
        return asyncio.run(Supervisor(settings, listener, Path(directory), reading).run())
