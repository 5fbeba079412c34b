"""A router in a thread of the test's process, on a port of its own."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from entropy_rft.router.app import create_app
from entropy_rft.router.features import FeatureSource, Question
from entropy_rft.router.serve import RouterServer
from entropy_rft.router.settings import load_settings

PATIENCE = 30.0


class FixedFeatures:
    """Finds every question equally hard."""

    def __init__(self, proba: tuple[float, float, float]) -> None:
        self.answer = proba

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ready(self) -> bool:
        return True

    async def proba(self, request: Question) -> tuple[float, float, float]:
        return self.answer


class RunningRouter:
    """What a test asks and checks of it."""

    def __init__(self, server: RouterServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.port = server.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.tasks_at_start = self.tasks()

    def tasks(self) -> list[str]:
        """What the router's loop is busy with, but for the asking."""

        async def names() -> list[str]:
            mine = asyncio.current_task()
            return sorted(repr(task.get_coro()) for task in asyncio.all_tasks() if task is not mine)

        return asyncio.run_coroutine_threadsafe(names(), self.loop).result(PATIENCE)

    def metric(self, name: str, *labels: str) -> float:
        """The sum of its samples with these labels, such as ``'status="200"'``."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as response:
            text = response.read().decode()
        samples = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for given, value in samples if all(label in given for label in labels))

    def wait_for_metric(self, value: float, name: str, *labels: str) -> None:
        self._wait(lambda: self.metric(name, *labels) == value, lambda: f"{name} is {self.metric(name, *labels)}")

    def assert_idle(self) -> None:
        """Nothing is left of any request: no count, no task, no open answer of a backend."""

        def left() -> dict[str, Any]:
            counts = {name: self.metric(f"entropy_rft_{name}") for name in ("in_flight", "backend_outstanding")}
            acquired = len(self.server.router.pool.session.connector._acquired)
            # One for the connection that reads the metrics just now, if it is still there.
            more = len(self.tasks()) - len(self.tasks_at_start)
            return {**counts, "acquired": acquired, "tasks": max(0, more - 1)}

        self._wait(lambda: not any(left().values()), lambda: f"{left()} {self.tasks()}")

    @staticmethod
    def _wait(condition: Callable[[], bool], explain: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, explain()
            time.sleep(0.02)  # there is no event for the end of bookkeeping


@contextmanager
def running_router(
    backends: Sequence[Any], *, features: FeatureSource | dict[str, Any] | None = None, **settings: Any
) -> Iterator[RunningRouter]:
    """A router before `backends` (URLs or settings); it ends with `with`."""
    source = features if not isinstance(features, dict) else None
    if isinstance(features, dict):
        settings["features"] = features
    loaded = load_settings(None, {"host": "127.0.0.1", "port": 0, "backends": list(backends), "drain_s": 1, **settings})
    server = RouterServer(create_app(loaded, features=source))
    loop = asyncio.new_event_loop()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(server.serve())
        except BaseException as error:
            failure.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started:
        assert thread.is_alive(), failure
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield RunningRouter(server, loop)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the router does not end"
        assert not failure, failure
