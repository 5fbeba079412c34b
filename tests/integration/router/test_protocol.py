"""What HTTP allows and few clients or backends do, and many streams at once."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from running import FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, stream_events
from wire import STREAM, Reply, connected, exchange, get, read_body, read_head, read_reply, request

pytestmark = pytest.mark.integration

WHOLE = b"".join(stream_events())


@pytest.fixture
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], limits={"max_body_bytes": 2**20}) as router:
        yield router
        router.assert_idle()


def test_a_client_that_asks_before_it_sends(router: RunningRouter) -> None:
    """curl does, with bodies of a megabyte."""
    expecting = (("expect", "100-continue"),)
    with connected(router.port) as connection:
        head, _, body = request(headers=expecting).partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert read_reply(connection).body == PLAIN
    with connected(router.port) as connection:
        connection.sendall(request(b"", headers=expecting, length=100 * 2**20))
        refusal = read_reply(connection)
        assert refusal.status == 413
        assert refusal.error


def test_http_1_0(router: RunningRouter) -> None:
    reply = exchange(router.port, request().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (reply.status, reply.body) == (200, PLAIN)


def test_a_stream_in_http_1_0(router: RunningRouter, stub: Stub) -> None:
    """It knows no chunks, so the stream ends with its connection; what nginx asks for by default."""
    first = stream_events()[0]
    stub.answer = lambda asked: Behaviour.stream(stop_before=1)
    with connected(router.port) as connection:
        connection.sendall(request(STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers, rest = read_head(connection)
        while first not in rest:
            rest += connection.recv(65536)
        stub.release()  # nothing more came before this: the first piece was not held back
        while piece := connection.recv(65536):
            rest += piece
    assert status == 200
    assert not {"transfer-encoding", "content-length"} & headers.keys()
    assert rest == WHOLE


def test_a_connection_that_is_to_be_closed(router: RunningRouter) -> None:
    with connected(router.port) as connection:
        connection.sendall(request(headers=(("connection", "close"),)))
        assert read_reply(connection).body == PLAIN
        assert connection.recv(1) == b""


def test_a_compressed_answer_stays_compressed(router: RunningRouter, stub: Stub) -> None:
    squeezed = gzip.compress(PLAIN)
    stub.script(Behaviour((squeezed,), headers=(("content-encoding", "gzip"),)))
    reply = exchange(router.port, request())
    assert (reply.headers["content-encoding"], reply.body) == ("gzip", squeezed)
    assert "accept-encoding" not in stub.requests[-1].headers  # nobody asked for it


@pytest.mark.parametrize("status", [201, 404, 418])
def test_other_statuses_go_through(router: RunningRouter, stub: Stub, status: int) -> None:
    answer = Behaviour.error(status) if status >= 400 else Behaviour(status=status)
    stub.script(answer)
    reply = exchange(router.port, request())
    assert (reply.status, reply.body) == (status, answer.pieces[0])
    assert len(stub.requests) == 1


def test_a_redirect_is_not_followed(router: RunningRouter, stub: Stub) -> None:
    """Requests go nowhere but where the configuration says."""
    with Stub() as elsewhere:
        stub.answer = lambda asked: Behaviour(status=307, headers=(("location", f"{elsewhere.url}{asked.path}"),))
        reply = exchange(router.port, request())
        assert reply.status == 502
        assert reply.error
        assert not elsewhere.requests


def test_what_belongs_to_one_connection_stays_there(router: RunningRouter, stub: Stub) -> None:
    theirs = (
        ("connection", "keep-alive, X-Odd"),
        ("x-odd", "1"),
        ("set-cookie", "a=b"),
        ("server", "stub"),
        ("x-kept", "yes"),
    )
    stub.script(Behaviour(headers=theirs))
    reply = exchange(router.port, request(headers=(("cookie", "secret=1"), ("authorization", "Bearer mine"))))
    assert reply.headers["x-kept"] == "yes"
    assert not {"x-odd", "set-cookie", "server"} & reply.headers.keys()
    assert not {"cookie", "authorization"} & stub.requests[-1].headers.keys()


def lines_of(port: int, name: bytes) -> list[bytes]:
    """The values of a header, each time it occurs."""
    with connected(port) as connection:
        connection.sendall(request(headers=(("connection", "close"),)))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    lines = received.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line.partition(b": ")[2] for line in lines if line.lower().startswith(name + b":")]


def test_a_router_before_a_router(router: RunningRouter) -> None:
    """Each header of ours is there once, and says what the nearer one did."""
    with running_router([router.url], features=FixedFeatures((0.9, 0.1, 0.0))) as outer:
        assert lines_of(outer.port, b"x-entropy-rft-difficulty") == [b"easy"]
        assert lines_of(outer.port, b"x-entropy-rft-reason") == [b"probe"]
        for name in (b"x-entropy-rft-confidence", b"x-entropy-rft-routing-ms", b"x-request-id", b"date"):
            assert len(lines_of(outer.port, name)) == 1, name
        outer.assert_idle()


def test_a_death_after_the_end(router: RunningRouter, stub: Stub) -> None:
    """The stream has said [DONE]: that its connection then breaks is no error for the client."""
    stub.script(Behaviour.stream(stop_before=len(stream_events()), stop="abort"))
    reply = exchange(router.port, request(STREAM))
    assert (reply.status, reply.whole, reply.body) == (200, True, WHOLE)


def test_hundreds_of_streams_at_once(router: RunningRouter, stub: Stub) -> None:
    """All in the middle at the same time; all come to their end."""
    stub.answer = lambda asked: Behaviour.stream(stop_before=2)
    count = 500
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(router.port)) for _ in range(count)]
        for connection in connections:
            connection.sendall(request(STREAM))
        heads = [read_head(connection) for connection in connections]
        assert router.metric("entropy_rft_in_flight") == count
        stub.release()
        replies = [read_body(c, *head) for c, head in zip(connections, heads, strict=True)]
        assert {(reply.status, reply.whole, reply.body) for reply in replies} == {(200, True, WHOLE)}


def test_more_requests_than_may_be(stub: Stub) -> None:
    stub.answer = lambda asked: Behaviour(stop_before=HEAD)
    with running_router([stub.url], limits={"max_requests": 3}) as router, ExitStack() as stack:
        connections = [stack.enter_context(connected(router.port)) for _ in range(3)]
        for connection in connections:
            connection.sendall(request())
        stub.wait_for(lambda stub: stub.in_progress == 3)
        reply: Reply = exchange(router.port, request())
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.error
        assert get(router.port, "/health").status == 200
        stub.release()
        assert [read_reply(connection).status for connection in connections] == [200] * 3
        router.assert_idle()
