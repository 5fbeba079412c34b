"""SIGTERM to a router that is at work: what was begun is finished, and it ends with exit code 0."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import ServerProcess, router_process
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, stream_events
from wire import STREAM, Reply, checked_error, connected, exchange, get, read_body, read_head, read_reply, request

pytestmark = pytest.mark.integration

WHOLE = b"".join(stream_events())
PATIENCE = 60.0


def started(stub: Stub, directory: Path, **settings: object) -> ServerProcess:
    process = router_process(directory, {"backends": [stub.url], **settings}, ready="/ready")
    process.wait_until_ready(PATIENCE)
    return process


def ready(port: int) -> int:
    """The status of /ready; 0 where nobody listens any more."""
    try:
        return get(port, "/ready").status
    except (ConnectionError, AssertionError):
        return 0


def wait_until_draining(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while ready(port) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # it tells nobody


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_was_begun_is_finished(stub: Stub, tmp_path: Path, how: signal.Signals) -> None:
    """Twenty streams in the middle and twenty answers not begun; all end whole, and nothing new is taken."""
    with started(stub, tmp_path) as router, ThreadPoolExecutor(40) as threads:
        stub.answer = lambda asked: (
            Behaviour.stream(stop_before=3) if b"stream" in asked.body else Behaviour(stop_before=HEAD)
        )
        waiting: list[Future[Reply]] = [threads.submit(exchange, router.port, request(STREAM)) for _ in range(20)]
        waiting += [threads.submit(exchange, router.port, request()) for _ in range(20)]
        stub.wait_for(lambda stub: stub.in_progress == 40)
        router.process.send_signal(how)
        wait_until_draining(router.port)
        assert router.process.poll() is None
        stub.release()
        replies = [future.result() for future in waiting]
        assert [(r.status, r.whole, r.body) for r in replies] == [(200, True, WHOLE)] * 20 + [(200, True, PLAIN)] * 20
        assert router.process.wait(PATIENCE) == 0, router.said()
        assert "Traceback" not in router.said()


def test_under_load(stub: Stub, tmp_path: Path) -> None:
    """Thirty-two clients that ask and ask: nothing that was begun is cut, and what comes too late is refused."""
    stub.answer = lambda asked: Behaviour.stream(between=0.005)

    def client(port: int) -> list[tuple[int, bool]]:
        """(status, whole) of each answer until the router is gone; 0 where a connection was refused."""
        found = []
        while True:
            try:
                with connected(port) as connection:
                    connection.sendall(request(STREAM))
                    received = b""
                    while b"\r\n\r\n" not in received:
                        piece = connection.recv(65536)
                        if not piece:
                            break
                        received += piece
                    if not received:
                        return [*found, (0, True)]  # closed before it said anything
                    reply = read_body(connection, *_head(received))
            except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
                return [*found, (0, True)]
            found.append((reply.status, reply.whole and (reply.status != 200 or reply.body == WHOLE)))
            if reply.status != 200:
                assert reply.error
                return found

    with started(stub, tmp_path) as router, ThreadPoolExecutor(32) as threads:
        clients = [threads.submit(client, router.port) for _ in range(32)]
        stub.wait_for(lambda stub: len(stub.requests) > 100)
        router.process.send_signal(signal.SIGTERM)
        found = [answer for future in clients for answer in future.result()]
        assert router.process.wait(PATIENCE) == 0, router.said()
    assert all(whole for _, whole in found)
    assert {status for status, _ in found} <= {200, 503, 0}
    # Whatever reached the backend came to its client.
    assert sum(status == 200 for status, _ in found) == len(stub.requests)


def _head(received: bytes) -> tuple[int, dict[str, str], bytes]:
    first, second = socket.socketpair()
    with first, second:
        second.sendall(received)
        second.shutdown(socket.SHUT_WR)
        return read_head(first)


def test_an_idle_connection_does_not_hold_it_up(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path) as router, connected(router.port) as connection:
        connection.sendall(request())
        assert read_reply(connection).status == 200
        start = time.monotonic()
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0
        assert time.monotonic() - start < 10
        assert connection.recv(1) == b""


def test_what_never_ends_is_cut_at_last(stub: Stub, tmp_path: Path) -> None:
    stub.answer = lambda asked: Behaviour.stream(stop_before=3, stop="hang")
    with started(stub, tmp_path, drain_s=1.0) as router, connected(router.port) as connection:
        connection.sendall(request(STREAM))
        status, headers, rest = read_head(connection)
        stub.wait_for(lambda stub: stub.in_progress == 1)
        start = time.monotonic()
        router.process.send_signal(signal.SIGTERM)
        reply = read_body(connection, status, headers, rest)
        assert router.process.wait(PATIENCE) == 0, router.said()
        assert 0.5 < time.monotonic() - start < 20
        if reply.whole:  # an end that says why, or none: never one that looks like success
            checked_error(reply.events[-1])
    stub.wait_for(lambda stub: not stub.in_progress)


def test_new_requests_are_taken_for_a_while(stub: Stub, tmp_path: Path) -> None:
    """A balancer that sees /ready say 503 has time to send them elsewhere; a second signal does not wait."""
    with started(stub, tmp_path, drain_delay_s=1000.0) as router:
        router.process.send_signal(signal.SIGTERM)
        wait_until_draining(router.port)
        assert ready(router.port) == 503
        reply = exchange(router.port, request())
        assert (reply.status, reply.body, reply.headers["connection"]) == (200, PLAIN, "close")
        assert router.process.poll() is None
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()


def test_after_that_while_it_ends_by_itself(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, drain_delay_s=0.5) as router:
        start = time.monotonic()
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()
        assert time.monotonic() - start >= 0.5
        assert '"message":"draining"' in router.said()
