"""A router process after thousands of requests of which many went wrong: as many open files, and no more memory."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from processes import ServerProcess, router_process
from stub import Stub
from stub_answers import HEAD, Behaviour, Request, pooled
from wire import STREAM, connected, exchange, get, request

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds"),
]

KINDS = 10


def open_files(router: ServerProcess) -> int:
    return len(list(Path(f"/proc/{router.pid}/fd").iterdir()))


def resident_mib(router: ServerProcess) -> float:
    lines = Path(f"/proc/{router.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def answer(asked: Request) -> Behaviour | None:
    """By a number that the client's unknown field carries."""
    answers = {
        1: Behaviour.stream(stop_before=4, stop="abort"),
        2: Behaviour(raw=b"garbage\r\n\r\n"),
        3: Behaviour.error(500),
        4: Behaviour(stop_before=HEAD, stop="hang"),
        5: Behaviour.stream(stop_before=4, stop="hang"),
    }
    return answers.get(asked.json["kind"])


def misbehave(port: int, number: int) -> None:
    """One request; what is wrong with it depends on its number."""
    kind = number % KINDS
    body = STREAM[:-1] + b', "kind": %d, "seed": %d}' % (kind, number)
    if kind == 6:
        assert exchange(port, request(b"{" + body)).status == 400
    elif kind == 7:
        assert exchange(port, request(body, headers=tuple((f"x-{i}", "y") for i in range(300)))).status == 431
    elif kind == 8:
        with connected(port) as connection:  # leaves in mid request
            connection.sendall(request(body)[:150])
    elif kind in (4, 5):
        with connected(port) as connection, suppress(OSError):  # leaves in mid answer, with a reset
            connection.sendall(request(body))
            connection.settimeout(0.05)
            connection.recv(1000)
            connection.recv(1000)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        reply = exchange(port, request(body))
        assert reply.status == {2: 502, 3: 500}.get(kind, 200)
        assert reply.whole


def settled(router: ServerProcess, stub: Stub) -> int:
    """Open files, once nothing is under way."""
    stub.wait_for(lambda stub: not stub.in_progress)
    deadline = time.monotonic() + 30
    while b"entropy_rft_in_flight 0.0" not in get(router.port, "/metrics").body:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return open_files(router)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub(answer=answer) as stub:
        yield stub


def test_nothing_is_left(stub: Stub, tmp_path: Path) -> None:
    settings = {
        "backends": [stub.url],
        "breaker": {"failures": 10**6},
        "retries": {"backoff_s": 0.0},
        "log_level": "error",
    }
    with Stub(answer=pooled) as pooling:
        # Every question is new, and few are remembered: the cache is full at once.
        features = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 5000, "cache_size": 50}
        settings |= {"probe": "embedded", "features": features}
        with router_process(tmp_path, settings, ready="/ready") as router, ThreadPoolExecutor(16) as threads:
            router.wait_until_ready(60)

            def run(count: int) -> None:
                list(threads.map(lambda number: misbehave(router.port, number), range(count)))

            run(1000)
            files, memory = settled(router, stub), resident_mib(router)
            run(2000)
            # Idle connections to the backend are kept for a while; beyond them nothing may grow.
            assert settled(router, stub) <= files + 20
            assert resident_mib(router) < memory + 8
            assert "Traceback" not in router.said()


def test_a_large_body_is_not_collected(stub: Stub, tmp_path: Path) -> None:
    with router_process(tmp_path, {"backends": [stub.url]}, ready="/ready") as router:
        router.wait_until_ready(60)
        stub.answer = None
        exchange(router.port, request())
        before = resident_mib(router)
        piece = b"%x\r\n%b\r\n" % (2**20, b"x" * 2**20)
        refusal = exchange(router.port, request(piece * 100, length=-1, headers=(("transfer-encoding", "chunked"),)))
        assert refusal.status == 413
        assert resident_mib(router) < before + 30  # the limit is 8 MiB, and it is copied once
        assert exchange(router.port, request()).status == 200
