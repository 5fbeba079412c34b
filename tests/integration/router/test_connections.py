"""How long a connection may live: no client keeps one, or a place among the requests, without asking and reading."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from running import PATIENCE, RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour
from wire import STREAM, connected, exchange, get, read_body, read_head, read_reply, request

pytestmark = pytest.mark.integration

LIMITS = {"header_timeout_s": 0.5, "body_timeout_s": 20.0, "write_timeout_s": 0.5, "keep_alive_s": 1.0}
GET = request(b"", path="/health", length=-1, method="GET")


@pytest.fixture
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], limits=LIMITS) as router:
        yield router
        wait_until_no_connection_is_left(router)
        router.assert_idle()


def wait_until_no_connection_is_left(router: RunningRouter) -> None:
    connections = router.server.server_state.connections
    router._wait(lambda: not connections, lambda: f"{len(connections)} connections are left")


def wait_past_the_head_timeout(router: RunningRouter) -> None:
    with connected(router.port) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("more", [b"\r\n", b"\n", b"G"], ids=["CRLF", "LF", "a letter"])
def test_a_little_more_after_an_answer(router: RunningRouter, more: bytes) -> None:
    with connected(router.port) as connection:
        connection.sendall(GET)
        assert read_reply(connection).status == 200
        connection.sendall(more)
        if more == b"G":
            assert read_reply(connection).error["code"] == "headers_too_slow"
        assert connection.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"h"])
def test_a_body_that_nobody_reads(router: RunningRouter, sent: bytes) -> None:
    """It is declared, and never ends."""
    with connected(router.port) as connection:
        connection.sendall(request(b"", path="/health", length=5, method="GET"))
        assert read_reply(connection).status == 200
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_body_that_nobody_reads_and_the_next_request(router: RunningRouter) -> None:
    with connected(router.port) as connection:
        for _ in range(3):
            connection.sendall(request(b"hello", path="/health", method="GET"))
            assert read_reply(connection).status == 200


def unread(port: int) -> socket.socket:
    """A connection whose client has room for little that it does not read."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_a_client_that_asks_and_never_reads(router: RunningRouter, path: str) -> None:
    many = request(b"", path=path, length=-1, method="GET") * 50

    def ask_for_ever(connection: socket.socket) -> None:
        while True:
            connection.sendall(many)

    with unread(router.port) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask_for_ever(connection)


def test_a_client_that_does_not_read_a_plain_answer(router: RunningRouter, stub: Stub) -> None:
    """It is written at once, and the request is over; its connection is not."""
    stub.script(Behaviour((b"x" * 6 * 2**20,)))
    with unread(router.port) as connection:
        connection.sendall(request())
        stub.wait_for(lambda stub: stub.requests and not stub.in_progress)
        wait_until_no_connection_is_left(router)


def test_the_beginning_of_the_next_request_ends_none(router: RunningRouter, stub: Stub) -> None:
    stub.answer = lambda asked: Behaviour(stop_before=HEAD)
    with connected(router.port) as connection:
        connection.sendall(request() + b"POST /v1/ch")
        stub.wait_for(lambda stub: stub.in_progress == 1)
        wait_past_the_head_timeout(router)
        stub.release()
        assert read_reply(connection).body == PLAIN
        assert read_reply(connection).error["code"] == "headers_too_slow"
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 300, b"GET / HTTP/1.1\r\nx: " + b"y" * 2**20],
    ids=["no HTTP", "many headers", "a long header"],
)
def test_garbage_after_a_request_does_not_take_its_answer(router: RunningRouter, stub: Stub, garbage: bytes) -> None:
    stub.answer = lambda asked: Behaviour.stream(stop_before=2)
    with connected(router.port) as connection:
        connection.sendall(request(STREAM) + garbage)
        status, headers, rest = read_head(connection)
        stub.release()
        reply = read_body(connection, status, headers, rest)
        assert (reply.status, reply.whole) == (200, True)
        assert reply.events[-1] == "[DONE]"
        assert connection.recv(1) == b""


def test_many_requests_sent_ahead(router: RunningRouter) -> None:
    """They are bounded: what was sent beyond is not collected."""
    with connected(router.port) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(GET * 10_000)
        received = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
    assert received.count(b"HTTP/1.1 200") < 1000


@pytest.fixture
def guarded(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningRouter]:
    """With a key, three places, and a patience that no test outlives."""
    monkeypatch.setenv("CLIENT_KEYS", "sesame")
    monkeypatch.setattr("entropy_rft.router.generate._LINGER_S", 1000.0)
    monkeypatch.setattr("entropy_rft.router.generate._MOST_LINGERING", 5)
    with running_router([stub.url], auth={"keys_env": "CLIENT_KEYS"}, limits={"max_requests": 3}) as router:
        yield router


def test_those_who_may_not_ask_take_no_place(guarded: RunningRouter) -> None:
    with ExitStack() as stack:
        for _ in range(5):  # a body is declared, and none is sent
            connection = stack.enter_context(connected(guarded.port))
            connection.sendall(request(b"", length=100))
            assert read_reply(connection).status == 401
        assert guarded.metric("entropy_rft_in_flight") == 0
        allowed = request(headers=(("authorization", "Bearer sesame"),))
        assert exchange(guarded.port, allowed).status == 200
        with connected(guarded.port) as connection:  # nor do they wait in any number
            connection.sendall(request(b"", length=100))
            assert read_reply(connection).status == 401
            assert connection.recv(1) == b""
    guarded.assert_idle()


def test_a_large_body_holds_nobody_up(router: RunningRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()

    def slow(body: bytes, max_depth: int) -> object:
        assert going_on.wait(PATIENCE)
        return {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    monkeypatch.setattr("entropy_rft.router.generate.parse", slow)
    with connected(router.port) as connection:
        connection.sendall(request(b" " * 2**20))
        assert get(router.port, "/health").status == 200
        going_on.set()
        assert read_reply(connection).body == PLAIN
