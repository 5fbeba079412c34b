"""The way to a backend: how long a name and a connection may take, and the pause before it is tried again."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from running import PATIENCE, running_router
from wire import exchange, request

from entropy_rft.router.backends import Backend
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import Proxy
from entropy_rft.router.settings import load_settings

pytestmark = pytest.mark.integration

FAST = {"connect_s": 0.3, "first_byte_s": 600}
ONCE = {"attempts": 1}
# The checks at the start are not what is tested.
HEALTH = {"timeout_s": 0.1, "interval_s": 1000}


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "backend.invalid":
            over.wait(PATIENCE)
        return real(host, *rest, **options)

    monkeypatch.setattr("socket.getaddrinfo", slow)
    try:
        with running_router(["http://backend.invalid"], timeouts=FAST, retries=ONCE, health=HEALTH) as router:
            reply = exchange(router.port, request())
            assert not over.is_set()
            assert (reply.status, reply.error["code"]) == (504, "backend_timeout")
            assert "accepted no connection in time" in reply.error["message"]
            over.set()
            router.assert_idle()
    finally:
        over.set()


@contextmanager
def full_house() -> Iterator[int]:
    """A port whose queue is full: what knocks there waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
def test_a_connection_that_is_not_accepted() -> None:
    with (
        full_house() as port,
        running_router([f"http://127.0.0.1:{port}"], timeouts=FAST, retries=ONCE, health=HEALTH) as router,
    ):
        start = time.monotonic()
        reply = exchange(router.port, request())
        assert (reply.status, reply.error["code"]) == (504, "backend_timeout")
        assert time.monotonic() - start >= 0.25
        router.assert_idle()


def test_the_pause_doubles_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)

    settings = load_settings(None, {"retries": {"attempts": 9, "backoff_s": 0.1}, "backends": "http://127.0.0.1:9"})

    async def scenario() -> None:
        pool = Pool(settings, [Backend(each, settings.breaker) for each in settings.backends])
        await pool.start()
        monkeypatch.setattr("entropy_rft.router.proxy.asyncio.sleep", noted)
        proxy = Proxy(settings, pool, Metrics())
        for attempt in range(1, 9):
            await proxy._pause(attempt)
        await pool.close()

    asyncio.run(scenario())
    for pause, whole in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0), strict=True):
        assert whole / 2 <= pause <= whole
