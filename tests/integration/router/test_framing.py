"""Where one request ends and the next begins: nothing of a body is taken for a request, nothing after it for a head."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import PLAIN
from wire import BODY, connected, exchange, get, read_reply, request

pytestmark = pytest.mark.integration

KEY = ("authorization", "Bearer sesame")
CHUNKED = ("transfer-encoding", "chunked")
CLOSE = ("connection", "close")


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url]) as router:
        yield router


def wishing(protocol: str, *headers: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol), ("http2-settings", "AAMAAABk"), *headers)


@pytest.mark.parametrize("framing", ["length", "chunked", "HTTP/1.0"])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_wish_for_another_protocol_is_not_heard(
    router: RunningRouter, stub: Stub, protocol: str, framing: str
) -> None:
    """Java's HttpClient has it in every first request."""
    stub.requests.clear()
    if framing == "chunked":
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        data = request(body, length=-1, headers=wishing(protocol, CHUNKED))
    else:
        data = request(headers=wishing(protocol))
    if framing == "HTTP/1.0":
        data = data.replace(b"HTTP/1.1", b"HTTP/1.0")
    reply = exchange(router.port, data)
    assert (reply.status, reply.body) == (200, PLAIN)
    assert stub.requests[-1].json["messages"][-1] == {"role": "user", "content": "What is 2 + 2?"}
    assert reply.headers["x-request-id"]


def test_requests_after_such_a_wish(router: RunningRouter) -> None:
    """Several in one piece, with and without the wish."""
    wish = request(headers=wishing("h2c"))
    with connected(router.port) as connection:
        connection.sendall(wish + request() + wish + wish + request(headers=(CLOSE,)))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.count(PLAIN) == received.count(b"HTTP/1.1 200") == 5


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_body_is_no_request(router: RunningRouter, protocol: str, apart: bool) -> None:
    hidden = request(b"", path="/health", length=-1, method="GET")
    last = request(b"", path="/ready", length=-1, method="GET", headers=(CLOSE,))
    with connected(router.port) as connection:
        if apart:
            connection.sendall(request(b"", length=len(hidden), headers=wishing(protocol, ("expect", "100-continue"))))
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # the head was read, so the body is another piece
            connection.sendall(hidden)
        else:
            connection.sendall(request(hidden, headers=wishing(protocol)))
        assert read_reply(connection).error["code"] == "invalid_json"
        connection.sendall(last)
        answer = read_reply(connection)
        assert b"ready" in answer.body
        assert connection.recv(1) == b""


def test_connect_is_refused(router: RunningRouter) -> None:
    for headers in ((), wishing("h2c")):
        reply = exchange(router.port, request(b"", path="a:1", method="CONNECT", length=-1, headers=headers))
        assert (reply.status, reply.error["code"]) == (400, "invalid_http")


def in_chunks(body: bytes, trailer: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer)


def test_a_trailer_is_no_header(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sesame")
    with running_router([stub.url], auth={"keys_env": "CLIENT_KEYS"}) as router:
        forged = in_chunks(BODY, b"Authorization: Bearer sesame\r\n")
        assert exchange(router.port, request(forged, length=-1, headers=(CHUNKED,))).status == 401
        with connected(router.port) as connection:
            odd = in_chunks(BODY, b"content-encoding: gzip\r\nx-entropy-rft-difficulty: hard\r\n")
            connection.sendall(request(odd, length=-1, headers=(CHUNKED, KEY)))
            reply = read_reply(connection)
            assert (reply.status, reply.headers["x-entropy-rft-difficulty"]) == (200, "normal")
            connection.sendall(request(headers=(KEY,)))  # nor one of the next request
            assert read_reply(connection).status == 200


@pytest.mark.parametrize(
    "endless",
    [b"2\r\n{}\r\n0\r\nx: ", b"2\r\n{}\r\n0\r\nx", b"2\r\n{}\r\n2;", b"2;x=", b"0\r\n" + b"x: y\r\n" * 200],
    ids=["a trailer", "a trailer's name", "a second extension", "an extension", "many trailers"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_what_is_neither_head_nor_body_is_limited(router: RunningRouter, path: str, endless: bytes) -> None:
    """Nothing of it ever ends, and it is refused before any time-out."""
    with connected(router.port) as connection:
        connection.sendall(request(endless + b"y" * 2**20, path=path, length=-1, headers=(CHUNKED,)))
        # POST is not allowed for the latter, which may be said before the body is looked at.
        assert read_reply(connection).status in ((405, 431) if path == "/v1/models" else (431,))
        assert connection.recv(1) == b""
    assert get(router.port, "/health").status == 200


@pytest.mark.parametrize(("path", "kind"), [("/v1/messages?beta=true", "error"), ("/v1/chat/completions", None)])
def test_what_is_no_request_is_refused_in_the_dialect_of_its_path(
    router: RunningRouter, path: str, kind: str | None
) -> None:
    many = tuple((f"x-{number}", "y") for number in range(300))
    reply = exchange(router.port, request(path=path, headers=many))
    assert reply.status == 431
    found = json.loads(reply.body)
    assert found.get("type") == kind
    assert "headers are read" in found["error"]["message"]
