"""Clients that are slow, huge, garbled or gone: refused in OpenAI's shape or let go, while the others are served."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, stream_events
from wire import BODY, STREAM, checked_error, connected, exchange, read_body, read_head, read_reply, request

pytestmark = pytest.mark.integration

LIMITS = {
    "max_body_bytes": 2**20,
    "header_timeout_s": 0.5,
    "body_timeout_s": 0.5,
    "write_timeout_s": 0.5,
    "keep_alive_s": 1.0,
}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def running(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], limits=LIMITS, max_tokens=100) as router:
        yield router


@pytest.fixture
def router(running: RunningRouter, stub: Stub) -> Iterator[RunningRouter]:
    stub.requests.clear()
    stub.answer = None
    yield running
    stub.answer = None
    assert exchange(running.port, request()).body == PLAIN
    running.assert_idle()


def message(content: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()


def nested(depth: int) -> bytes:
    return b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "x": %b}' % (b"[" * depth + b"]" * depth)


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of it": BODY[:-5],
    "two of it": BODY + BODY,
    "no object": b"[1, 2]",
    "null": b"null",
    "not UTF-8": BODY.replace(b"What", b"\xff\xfe\x80"),
    "UTF-16": BODY.decode().encode("utf-16"),
    "NaN": BODY[:-1] + b', "temperature": NaN}',
    "a lone surrogate": BODY.replace(b"What", rb"\ud800"),
    "deep": nested(200),
    "a million levels": nested(100_000),
    "deep and unfinished": b'{"messages":' + b'[{"x":' * 100_000,
    "deep difficulty": BODY[:-1] + b', "difficulty": ' + b"[" * 90 + b"]" * 90 + b"}",
    "no messages": b'{"model": "m"}',
    "no message": b'{"model": "m", "messages": []}',
    "strange messages": b'{"model": "m", "messages": [1, null]}',
    "strange difficulty": BODY[:-1] + b', "difficulty": 7}',
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body(router: RunningRouter, stub: Stub, name: str, path: str) -> None:
    reply = exchange(router.port, request(BAD_BODIES[name], path=path))
    assert (reply.status, reply.whole) == (400, True)
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["x-request-id"]
    assert not stub.requests


STRANGE = {
    "temperature": "hot",
    "max_tokens": -5,
    "max_completion_tokens": [1],
    "n": {"a": 1},
    "stream": "yes",
    "tools": 3,
    "chat_template_kwargs": [],
    "model": None,
    "continue_final_message": "x",
}


@pytest.mark.parametrize("field", STRANGE)
def test_strange_values_are_the_backends_business(router: RunningRouter, stub: Stub, field: str) -> None:
    """vLLM says better than we what is wrong with its own fields."""
    stub.answer = lambda request: Behaviour.error(400, "the backend's word")
    reply = exchange(router.port, request(json.dumps(json.loads(BODY) | {field: STRANGE[field]}).encode()))
    assert (reply.status, reply.error["message"]) == (400, "the backend's word")
    assert stub.requests[-1].json[field] == STRANGE[field]


CONTENTS = [None, "", [], 7, {"a": 1}, [None], ["x"], [{"type": "text"}], [{"type": 5}], "x" * 500_000, "\0\x1b🤖" * 9]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content)[:20])
def test_strange_contents_go_through(router: RunningRouter, stub: Stub, content: Any) -> None:
    assert exchange(router.port, request(message(content))).status == 200
    assert stub.requests[-1].json["messages"][-1]["content"] == content


def test_a_hundred_megabytes_with_a_length(router: RunningRouter, stub: Stub) -> None:
    """Refused before it is sent."""
    start = time.monotonic()
    reply = exchange(router.port, request(b'{"model": "', length=100 * 2**20))
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert time.monotonic() - start < 5
    assert not stub.requests


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_that_are_sent_anyway(router: RunningRouter, chunked: bool) -> None:
    piece = b"x" * 2**20
    frame = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    told = (("transfer-encoding", "chunked"),) if chunked else ()
    with connected(router.port) as connection:
        connection.sendall(request(b"", length=-1 if chunked else 100 * 2**20, headers=told))

        def send() -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(100):
                    connection.sendall(frame)

        sending = threading.Thread(target=send)
        sending.start()
        reply = read_reply(connection)
        sending.join(30)
        assert not sending.is_alive()
    assert reply.status == 413
    assert reply.error["code"] == "body_too_large"


HEADS = {
    "10,000 headers": request(headers=tuple((f"x-{i}", "y") for i in range(10_000))),
    "a header of a megabyte": request(headers=(("x", "y" * 2**20),)),
    "a path of a megabyte": request(path="/" + "a" * 2**20),
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "no HTTP version": b"POST /v1/chat/completions\r\n\r\n",
    "a bad length": request(length=-1, headers=(("content-length", "-7"),)),
    "two lengths": request(headers=(("content-length", "5"),)),
    "a length and chunks": request(headers=(("transfer-encoding", "chunked"),)),
    "bad chunks": request(b"zzz\r\nhello\r\n", length=-1, headers=(("transfer-encoding", "chunked"),)),
    "a zero in a header": request(headers=(("x-request-id", "a\0b"),)),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_bad_head(router: RunningRouter, stub: Stub, name: str) -> None:
    reply = exchange(router.port, HEADS[name])
    assert reply.status in (400, 431)
    assert reply.error["type"] == "invalid_request_error"
    assert not stub.requests


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/chat/completions", 405), ("POST", "/nothing", 404)]
)
def test_a_wrong_address(router: RunningRouter, method: str, path: str, status: int) -> None:
    reply = exchange(router.port, request(method=method, path=path))
    assert reply.status == status
    assert reply.error


def test_odd_headers_do_no_harm(router: RunningRouter, stub: Stub) -> None:
    headers = (("x-request-id", 'a"b <script>\xff'), ("x-entropy-rft-difficulty", "EASY "), ("te", "trailers"))
    reply = exchange(router.port, request(headers=headers))
    assert (reply.status, reply.headers["x-entropy-rft-difficulty"]) == (200, "easy")
    assert "<" not in reply.headers["x-request-id"]


def trickled(port: int, data: bytes, pause: float = 0.1) -> socket.socket:
    """A connection on which `data` goes out a byte at a time, until the other end has had enough."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)

    def send() -> None:
        with suppress(OSError):
            for byte in data:
                connection.sendall(bytes([byte]))
                time.sleep(pause)  # the slowness is what is tested

    threading.Thread(target=send, daemon=True).start()
    return connection


@pytest.mark.parametrize("where", ["head", "body"])
def test_slow_loris(router: RunningRouter, where: str) -> None:
    """Fifty connections that say a byte now and then end soon, and nobody else notices them."""
    if where == "head":
        slow = [trickled(router.port, request()) for _ in range(50)]
    else:
        slow = [socket.create_connection(("127.0.0.1", router.port), timeout=30) for _ in range(50)]
        for connection in slow:
            connection.sendall(request(b"{", length=500))
    start = time.monotonic()
    assert exchange(router.port, request()).status == 200
    for connection in slow:
        with connection:
            reply = read_reply(connection)
            assert reply.status == 408
            assert reply.error
    assert time.monotonic() - start < 10  # left alone, they would take 20 s for the head


def test_a_connection_that_says_nothing(router: RunningRouter) -> None:
    with connected(router.port) as connection:
        assert connection.recv(1) == b""


def test_an_idle_connection_ends(router: RunningRouter) -> None:
    with connected(router.port) as connection:
        connection.sendall(request())
        assert read_reply(connection).status == 200
        assert connection.recv(1) == b""


def test_requests_sent_before_the_answer_came(router: RunningRouter) -> None:
    with connected(router.port) as connection:
        connection.sendall(request() * 3)
        received = b""
        while received.count(PLAIN) < 3:
            piece = connection.recv(65536)
            assert piece, received[-500:]
            received += piece


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["plain", "streamed"])
def test_a_client_that_leaves_before_the_answer(router: RunningRouter, stub: Stub, body: bytes) -> None:
    stub.answer = lambda request: Behaviour(stop_before=HEAD, stop="hang")
    lost = stub.disconnects
    with connected(router.port) as connection:
        connection.sendall(request(body))
        stub.wait_for(lambda stub: stub.in_progress == 1)
    stub.wait_for(lambda stub: stub.disconnects == lost + 1 and not stub.in_progress)
    stub.answer = None
    router.assert_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_in_mid_stream(router: RunningRouter, stub: Stub, how: str) -> None:
    """The backend learns of it at once, not when it writes the next piece: it has none to write."""
    stub.answer = lambda request: Behaviour.stream(stop_before=3, stop="hang")
    lost = stub.disconnects
    with connected(router.port) as connection:
        connection.sendall(request(STREAM))
        *_, rest = read_head(connection)
        while rest.count(b"data: ") < 3:
            rest += connection.recv(65536)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stub.wait_for(lambda stub: stub.disconnects == lost + 1 and not stub.in_progress)


def test_a_client_that_reads_nothing(router: RunningRouter, stub: Stub) -> None:
    """It is cut off, the backend with it, and what it did not read was not collected in memory."""
    piece = b"data: " + b"x" * 2**20 + b"\n\n"
    stub.answer = lambda request: Behaviour.stream((piece,) * 500)
    lost, written = stub.disconnects, stub.written
    with connected(router.port) as connection:
        connection.sendall(request(STREAM))
        stub.wait_for(lambda stub: stub.disconnects == lost + 1 and not stub.in_progress)
    assert stub.written - written < 100


def test_hundreds_of_clients_that_leave_at_any_moment(router: RunningRouter, stub: Stub) -> None:
    stub.answer = lambda request: Behaviour.stream(between=0.002)
    total = 300

    def leave(number: int) -> None:
        with connected(router.port) as connection:
            connection.sendall(request(STREAM)[: 40 + number])  # some in the middle of their request
            if number >= 150:
                connection.sendall(request(STREAM)[40 + number :])
                for _ in range(number % 10):
                    connection.recv(200)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(leave, range(total)))
    stub.wait_for(lambda stub: not stub.in_progress)
    router.assert_idle()


def test_a_first_piece_is_not_held_back(router: RunningRouter, stub: Stub) -> None:
    first = stream_events()[0]
    stub.answer = lambda request: Behaviour.stream(stop_before=1)
    with connected(router.port) as connection:
        connection.sendall(request(STREAM))
        status, headers, rest = read_head(connection)
        while first not in rest:
            rest += connection.recv(65536)
        stub.release()  # the backend says nothing more before this
        reply = read_body(connection, status, headers, rest)
    assert reply.body == b"".join(stream_events())


def test_a_huge_answer(router: RunningRouter, stub: Stub) -> None:
    pieces = tuple(bytes([65 + number % 26]) * 2**20 for number in range(60))
    stub.answer = lambda request: Behaviour(pieces)
    reply = exchange(router.port, request())
    assert reply.whole
    assert reply.body == b"".join(pieces)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_an_answer_that_is_no_utf8(router: RunningRouter, stub: Stub, stream: bool) -> None:
    odd = b'{"text": "\xff\xfe\x80\0"}'
    answer = Behaviour.stream((b"data: " + odd + b"\n\n", b"data: [DONE]\n\n")) if stream else Behaviour((odd,))
    stub.answer = lambda request: answer
    reply = exchange(router.port, request(STREAM if stream else BODY))
    assert (reply.status, reply.body) == (200, b"".join(answer.pieces))


def test_keys(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ROUTER_KEYS", "first,second")
    monkeypatch.setenv("TEST_BACKEND_KEY", "the-backends")
    backend = {"url": stub.url, "api_key_env": "TEST_BACKEND_KEY"}
    with running_router([backend], auth={"keys_env": "TEST_ROUTER_KEYS"}) as router:
        stub.answer = None
        stub.requests.clear()
        for header in ((), (("authorization", "Bearer wrong"),), (("authorization", "first"),)):
            refusal = exchange(router.port, request(headers=header))
            assert (refusal.status, refusal.error["code"]) == (401, "invalid_api_key")
        assert not stub.requests
        for key in ("first", "second"):
            assert exchange(router.port, request(headers=(("authorization", f"Bearer {key}"),))).status == 200
        assert {asked.headers["authorization"] for asked in stub.requests} == {"Bearer the-backends"}
        router.assert_idle()


def test_checked_error_can_fail() -> None:
    for body in (
        b'{"error": "x"}',
        b'{"detail": []}',
        b'{"error": {"message": "", "type": "", "param": 1, "code": 1}}',
    ):
        with pytest.raises(AssertionError):
            checked_error(body)
