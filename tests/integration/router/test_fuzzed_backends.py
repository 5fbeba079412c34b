"""Backends whose bytes are broken in every way, and clients that do not read: no crash, no memory without a limit."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import ServerProcess, router_process
from raw_backend import RawBackend
from running import RunningRouter, running_router
from sse import events
from stub_answers import stream_events
from wire import PATIENCE, STREAM, connected, exchange, get, read_body, read_head, request

from entropy_rft.router.dialects import BY_PATH

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = b"content-type: text/event-stream\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
WHOLE = b"".join(stream_events(2))
STOLEN = OK + b'content-length: 12\r\n\r\n{"stolen":1}'
NEXT = b'{"a":1}'
MIB = 2**20
SILENCE_S = 20.0
LIMITS = {
    "timeouts": {"first_byte_s": SILENCE_S, "between_bytes_s": SILENCE_S},
    "retries": {"attempts": 1},
    "breaker": {"failures": 10**6},
    "limits": {"max_buffered_bytes": MIB},
}
BODIES = {
    "/v1/chat/completions": STREAM,
    "/v1/completions": b'{"model": "m", "prompt": "hi", "stream": true}',
    "/v1/responses": b'{"model": "m", "input": "hi", "stream": true}',
    "/v1/messages": b'{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": true}',
}


def chunk(data: bytes, after_size: bytes = b"\r\n") -> bytes:
    return b"%x%b%b\r\n" % (len(data), after_size, data)


# What a backend sends, the status that the client gets, and the body; None: an error of ours.
ANSWERS: dict[str, tuple[bytes, int, bytes | None]] = {
    "no content": (b"HTTP/1.1 204 No Content\r\n" + EVENTS + b"\r\n", 204, b""),
    "an empty stream": (OK + EVENTS + b"content-length: 0\r\n\r\n", 200, b""),
    "a stream with a length": (OK + EVENTS + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE, 200, WHOLE),
    "a stream that ends with its connection": (b"HTTP/1.0 200 OK\r\n" + EVENTS + b"\r\n" + WHOLE, 200, WHOLE),
    "extensions of chunks": (OK + EVENTS + CHUNKED + b"\r\n" + chunk(WHOLE, b";a=b\r\n") + b"0\r\n\r\n", 200, WHOLE),
    "a trailer": (OK + EVENTS + CHUNKED + b"\r\n" + chunk(WHOLE) + b"0\r\nset-cookie: a\r\n\r\n", 200, WHOLE),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + (OK + EVENTS + CHUNKED + b"\r\n" + chunk(WHOLE) + b"0\r\n\r\n"),
        200,
        WHOLE,
    ),
    "a length and chunks": (OK + EVENTS + b"content-length: 3\r\n" + CHUNKED + b"\r\n" + chunk(WHOLE), 502, None),
    "two lengths": (OK + EVENTS + b"content-length: 3\r\ncontent-length: 4\r\n\r\n" + WHOLE, 502, None),
    "a huge length": (OK + b"content-length: %d\r\n\r\n{}" % 10**23, 502, None),
    "a huge chunk": (OK + EVENTS + CHUNKED + b"\r\nFFFFFFFFFFFFFFFFF\r\nx", 502, None),
    "a line feed after a chunk's size": (OK + EVENTS + CHUNKED + b"\r\n" + chunk(WHOLE, b"\n"), 502, None),
    "a space before a colon": (OK + b"content-length : 2\r\n\r\n{}", 502, None),
    "5000 headers": (OK + b"".join(b"x-%d: y\r\n" % i for i in range(5000)) + b"\r\n", 502, None),
    "another protocol": (b"ICY 200 OK\r\n" + EVENTS + b"\r\n" + WHOLE, 502, None),
    "a second answer": (OK + b"content-length: 2\r\n\r\n{}" + STOLEN, 200, b"{}"),
    "a second answer after a stream": (
        OK + EVENTS + CHUNKED + b"\r\n" + chunk(WHOLE) + b"0\r\n\r\n" + STOLEN,
        200,
        WHOLE,
    ),
    "a folded header that looks like an answer": (
        OK + b"x: a\r\n HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        200,
        b"{}",
    ),
}


@pytest.fixture(scope="module")
def backend() -> Iterator[RawBackend]:
    with RawBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def router(backend: RawBackend) -> Iterator[RunningRouter]:
    with running_router([backend.url], **LIMITS) as router:
        yield router
        router.assert_idle()


def check_next(router: RunningRouter, backend: RawBackend) -> None:
    """The next answer is the one that belongs to the next request."""
    backend.answer, backend.closes = OK + b"content-length: %d\r\n\r\n" % len(NEXT) + NEXT, False
    reply = exchange(router.port, request(STREAM))
    assert (reply.status, reply.body) == (200, NEXT)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_odd_answer(router: RunningRouter, backend: RawBackend, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is read in one way or refused, and no later request gets anything of it."""
    backend.answer, status, body = ANSWERS[name]
    backend.closes = "ends with its connection" in name
    with caplog.at_level(logging.ERROR):
        reply = exchange(router.port, request(STREAM))
    assert (reply.status, reply.whole) == (status, True)
    if body is None:
        assert reply.error["code"] in ("backend_garbled", "backend_died")
    else:
        assert reply.body == body
        assert "set-cookie" not in reply.headers
    assert not [record for record in caplog.records if record.exc_info], "the router failed"
    check_next(router, backend)


@pytest.mark.parametrize("kind", ["a stream", "a plain answer"])
def test_a_body_that_can_no_longer_be_read(router: RunningRouter, backend: RawBackend, kind: str) -> None:
    """Its end is found at once, not after a time-out: a proxy may write an error of its own into a stream."""
    received = threading.Event()
    first = b"data: {}\n\n" if kind == "a stream" else b"x" * (MIB + 1)

    def answer() -> Iterator[bytes]:
        yield OK + (EVENTS if kind == "a stream" else b"") + CHUNKED + b"\r\n" + chunk(first)
        assert received.wait(PATIENCE)
        yield b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"

    backend.answer, backend.closes = answer(), False
    with connected(router.port) as connection:
        connection.sendall(request(STREAM))
        status, headers, rest = read_head(connection)
        while b"}" not in rest and len(rest) < MIB:
            rest += connection.recv(65536)
        start = time.monotonic()
        received.set()
        reply = read_body(connection, status, headers, rest)
    assert time.monotonic() - start < SILENCE_S
    if kind == "a stream":
        assert reply.whole
        assert json.loads(events(reply.body)[-1][1])["error"]["code"] == "backend_died"
    else:
        assert not reply.whole
    check_next(router, backend)


def check_end(path: str, body: bytes) -> None:
    """A broken stream ends in the way of the dialect."""
    kind, data = events(body)[-1]
    value = json.loads(data)
    if BY_PATH[path].errors is BY_PATH["/v1/chat/completions"].errors:
        assert list(value) == ["error"]
    else:
        assert kind == value["type"] == "error"


BYTES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            *(b"data: {}\n\n", b"data: ", b"\n\n", b"\r\n", b"\r\r", b": ping\n\n", b"\xff\xfe\x80", b"\0" * 9),
            *(b"x" * 70_000, b"event: error\n", b"event: message_stop\n", b"data: [DONE]\n\n", b"id: 1\n"),
        ]
    ),
)


def check_any_bytes(router: RunningRouter, backend: RawBackend, path: str, examples: int, again: bool) -> None:
    """`again`: the same examples in each run."""

    @settings(
        max_examples=examples,
        derandomize=again,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(BYTES, min_size=1, max_size=12), st.sampled_from(["chunks", "cut", "garbled", "connection"]))
    def any_bytes(pieces: list[bytes], end: str) -> None:
        pieces = [piece for piece in pieces if piece] or [b"x"]
        data = b"".join(pieces)
        if end == "connection":
            backend.answer = [OK + EVENTS + b"\r\n", *pieces]
        else:
            last = {"chunks": b"0\r\n\r\n", "cut": b"", "garbled": b"zz\r\n"}[end]
            backend.answer = [OK + EVENTS + CHUNKED + b"\r\n", *map(chunk, pieces), last]
        backend.closes = end != "chunks"
        reply = exchange(router.port, request(BODIES[path], path=path))
        assert reply.whole
        if end == "chunks":
            assert (reply.status, reply.body) == (200, data)
        elif reply.status == 200:
            if not BY_PATH[path].stream_end.search(reply.body):
                check_end(path, reply.body)
        else:  # it broke before anything had arrived
            assert (end in ("cut", "garbled"), reply.status) == (True, 502)
        check_next(router, backend)

    any_bytes()


@pytest.mark.parametrize("path", BODIES)
def test_any_bytes_in_a_stream(router: RunningRouter, backend: RawBackend, path: str) -> None:
    check_any_bytes(router, backend, path, 25, again=True)


@pytest.mark.soak
@pytest.mark.parametrize("path", BODIES)
def test_any_bytes_in_a_stream_at_length(router: RunningRouter, backend: RawBackend, path: str) -> None:
    check_any_bytes(router, backend, path, 1000, again=False)


# ---- memory

NOT_READ = 25
"""Clients that do not read."""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")


def resident(router: ServerProcess) -> int:
    lines = Path(f"/proc/{router.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


ENDLESS = {
    "a stream of events": (OK + EVENTS + CHUNKED + b"\r\n", chunk(b"data: " + b"x" * 65_000 + b"\n\n"), STREAM),
    "one event": (OK + EVENTS + CHUNKED + b"\r\n", chunk(b"x" * 65_000), STREAM),
    "a plain answer": (OK + CHUNKED + b"\r\n", chunk(b"x" * 65_000), STREAM),
}
# Bytes for each client, beside the kernel's: what is held of an event, the piece of it that is being sent (twice, with
# its frame), the backend's buffer. A plain answer is collected up to `max_buffered_bytes`, and sent from there.
MOST = {"a stream of events": 2.5 * MIB, "one event": 5 * MIB, "a plain answer": 3 * MIB}


@LINUX
@pytest.mark.parametrize("name", ENDLESS)
def test_slow_readers_hold_little_memory(tmp_path: Path, name: str) -> None:
    """Backends that never end, and clients that read nothing: the backends are stopped, and memory stays as it is."""
    head, piece, body = ENDLESS[name]
    limits = {"limits": {"max_buffered_bytes": MIB, "write_timeout_s": 120.0}}
    with RawBackend() as backend:
        settings = {"backends": [backend.url], "retries": {"attempts": 1}, **limits}
        with router_process(tmp_path, settings, ready="/ready") as router, ExitStack() as stack:
            router.wait_until_ready(60)
            backend.answer = OK + b"content-length: 2\r\n\r\n{}"
            assert exchange(router.port, request()).status == 200
            before = resident(router)
            backend.answer = [head, *repeat(piece, 100_000)]  # 6 GB
            clients = []
            for _ in range(NOT_READ):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", router.port))
                clients.append(stack.enter_context(client))
                client.sendall(request(body))
            stopped_at = settled(backend, router)
            assert backend.asked == NOT_READ + 1
            held = (resident(router) - before) / NOT_READ
            assert held < MOST[name], f"{held / MIB:.2f} MiB for each client"
            # The router goes on (`settled` asks it), and the backends are stopped for as long as nobody reads.
            assert settled(backend, router) == stopped_at
            for client in clients:
                client.close()
            backend.wait_until_lost(NOT_READ)
            print(f"{name}: {held / MIB:.2f} MiB for each client")


def settled(backend: RawBackend, router: ServerProcess) -> int:
    """What the backend has written once it cannot write more: three times the same, while the router answers others.

    On a busy machine the router may get no processor time for a while. It has read what it can when it has answered.
    """
    deadline, seen = time.monotonic() + 60, [-1]
    while seen[-3:] != [backend.sent] * 3 or backend.sent == 0:
        assert time.monotonic() < deadline
        seen.append(backend.sent)
        time.sleep(0.2)  # that nothing happens has no event
        assert get(router.port, "/health").status == 200
    return seen[-1]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, backend: RawBackend) -> Iterator[ServerProcess]:
    """A router in a process of its own, so that its memory can be seen."""
    timeouts = {"first_byte_s": 2.0, "between_bytes_s": 2.0}
    settings = {"backends": [backend.url], **LIMITS, "timeouts": timeouts}
    with router_process(tmp_path_factory.mktemp("router"), settings, ready="/ready") as process:
        process.wait_until_ready(60)
        yield process
        assert "Traceback" not in process.said()


BODY = OK + EVENTS + CHUNKED + b"\r\n" + chunk(b"data: {}\n\n")
# What comes first, what follows for ever, and whether the answer has begun.
FOR_EVER = {
    "a header": (OK + b"x: ", b"y" * 60_000, False),
    "headers": (OK, b"x: y\r\n" * 10_000, False),
    "trailers": (BODY + b"0\r\n", b"x: y\r\n" * 10_000, True),
    "a trailer": (BODY + b"0\r\nx: ", b"y" * 60_000, True),
    "a chunk's extension": (BODY + b"1;", b"e" * 60_000, True),
}


@LINUX
@pytest.mark.parametrize("name", FOR_EVER)
def test_what_a_backend_sends_for_ever_is_not_collected(process: ServerProcess, backend: RawBackend, name: str) -> None:
    """Heads, trailers and extensions have no end either; the client gets an answer all the same."""
    first, more, begun = FOR_EVER[name]
    backend.answer, backend.closes = OK + b"content-length: 2\r\n\r\n{}", False
    assert exchange(process.port, request()).status == 200
    before = resident(process)
    backend.answer, backend.closes = [first, *repeat(more, 1000)], True  # 60 MB
    reply = exchange(process.port, request(STREAM))
    assert reply.whole
    assert reply.status == 502 or (begun and reply.status == 200)  # 502: all of it arrived at once
    if reply.status == 200:
        assert "error" in json.loads(events(reply.body)[-1][1])
    assert resident(process) < before + 16 * MIB
