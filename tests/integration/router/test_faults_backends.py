"""Backends that fail in every way: a client gets an answer or an error in OpenAI's shape, and nothing stays behind."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import stub as stub_module
from processes import ServerProcess, free_port
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, stream_events
from wire import STREAM, checked_error, connected, exchange, get, read_body, read_head, read_reply, request

pytestmark = pytest.mark.integration

FAST = {
    "timeouts": {"connect_s": 2.0, "first_byte_s": 0.5, "between_bytes_s": 0.5},
    "retries": {"attempts": 3, "backoff_s": 0.01},
    "breaker": {"failures": 1000},
    "health": {"interval_s": 0.2, "timeout_s": 0.2},
}
LAST = len(stream_events()) - 1  # the piece [DONE]


@pytest.fixture
def other() -> Iterator[Stub]:
    with Stub() as other:
        yield other


@pytest.fixture
def router(stub: Stub) -> Iterator[RunningRouter]:
    """Before one backend."""
    with running_router([stub.url], **FAST) as router:
        yield router
        router.assert_idle()


@pytest.fixture
def pair(stub: Stub, other: Stub) -> Iterator[RunningRouter]:
    """Before two backends."""
    with running_router([stub.url, other.url], **FAST) as router:
        yield router
        router.assert_idle()


BROKEN = {
    "garbage": Behaviour(raw=b"\x16\x03\x01\x00\xff this is no HTTP\r\n\r\n" * 40),
    "half a head": Behaviour(raw=b"HTTP/1.1 200 OK\r\ncontent-type: appl"),
    "nothing": Behaviour(raw=b""),
    "reset": Behaviour(stop_before=HEAD, stop="abort"),
    "endless head": Behaviour(raw=b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000),
    "wrong length": Behaviour(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{}"),
    "silence": Behaviour(stop_before=HEAD, stop="hang"),
    "half a body": Behaviour((PLAIN[:40], PLAIN[40:]), stop_before=1, stop="abort"),
    "half a body, then silence": Behaviour((PLAIN[:40], PLAIN[40:]), stop_before=1, stop="hang"),
    "chunked and cut": replace(Behaviour((PLAIN[:40], PLAIN[40:]), framing="chunked"), stop_before=1, stop="close"),
    "500": Behaviour.error(500),
    "502 in HTML": Behaviour((b"<html>Bad gateway</html>",), 502, content_type="text/html"),
    "status 999": Behaviour(status=999),
    "status 600": Behaviour(status=600),
    "status 101": Behaviour(raw=b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"),
    "a header no server may send": Behaviour(raw=b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 2\r\n\r\n{}"),
}


DECLINED = {"429": Behaviour.error(429), "503": Behaviour.error(503), "a redirect": Behaviour(status=307)}
"""What a backend answers that has generated nothing, and never will of this request."""


def status_of(fault: str) -> int:
    return 504 if "silence" in fault else int(fault[:3]) if fault in ("429", "500", "503") else 502


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_generation_that_may_have_begun_is_begun_once(
    pair: RunningRouter, stub: Stub, other: Stub, fault: str, stream: bool
) -> None:
    """A request that kills an engine would kill them all: the client gets the error, and nobody else is asked."""
    stub.answer = other.answer = lambda request: BROKEN[fault]
    reply = exchange(pair.port, request(STREAM) if stream else request())
    assert (reply.status, reply.whole) == (status_of(fault), True)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-entropy-rft-difficulty"] == "normal"
    assert reply.headers["x-request-id"]
    assert reply.error
    assert len(stub.requests) + len(other.requests) == 1
    assert pair.metric("entropy_rft_retries_total") == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("fault", DECLINED)
def test_a_generation_that_was_declined_costs_no_request(
    pair: RunningRouter, stub: Stub, other: Stub, fault: str, stream: bool
) -> None:
    """Whichever is asked first declines; the other one answers."""
    declined = threading.Event()

    def once(request: object) -> Behaviour | None:
        if declined.is_set():
            return None
        declined.set()
        return DECLINED[fault]

    stub.answer = other.answer = once
    reply = exchange(pair.port, request(STREAM) if stream else request())
    assert (reply.status, reply.whole) == (200, True)
    assert len(stub.requests) == len(other.requests) == 1


@pytest.mark.parametrize("fault", DECLINED)
def test_a_backend_that_declines_alone(router: RunningRouter, stub: Stub, fault: str) -> None:
    stub.answer = lambda request: DECLINED[fault]
    reply = exchange(router.port, request())
    assert reply.status == status_of(fault)
    assert reply.error
    assert len(stub.requests) == 3  # as the settings say


@pytest.mark.parametrize("fault", ["500", "502 in HTML", "nothing", "garbage"])
def test_a_get_is_asked_again_after_any_failure(router: RunningRouter, stub: Stub, fault: str) -> None:
    """It generates nothing."""
    before = router.metric("entropy_rft_retries_total")
    stub.gets["/v1/models"] = BROKEN[fault]
    assert get(router.port, "/v1/models").status == status_of(fault)
    assert router.metric("entropy_rft_retries_total") - before == 2
    stub.gets.clear()
    assert get(router.port, "/v1/models").status == 200


def test_an_answer_after_two_refusals(router: RunningRouter, stub: Stub) -> None:
    stub.script(Behaviour.error(429), Behaviour.error(503))
    assert exchange(router.port, request()).body == PLAIN
    assert len(stub.requests) == 3


@pytest.mark.parametrize("fault", ["500", "silence", "reset"])
def test_a_backend_that_keeps_failing_is_left_alone(stub: Stub, other: Stub, fault: str) -> None:
    settings = {**FAST, "breaker": {"failures": 3, "cooldown_s": 1000}, "health": {"interval_s": 1000}}
    with running_router([stub.url, other.url], **settings) as router:
        stub.answer = lambda request: BROKEN[fault]
        statuses = [exchange(router.port, request()).status for _ in range(12)]
        assert statuses.count(status_of(fault)) == len(stub.requests) == 3
        assert statuses.count(200) == len(other.requests) == 9
        assert statuses[-6:] == [200] * 6
        assert router.metric("entropy_rft_backend_breaker_open") == 1
        router.assert_idle()


@pytest.mark.parametrize("stop", ["abort", "close"])
@pytest.mark.parametrize("at", [1, 5, LAST])
def test_death_in_mid_stream(pair: RunningRouter, stub: Stub, other: Stub, at: int, stop: str) -> None:
    pieces = stream_events()
    stub.answer = other.answer = lambda request: Behaviour.stream(stop_before=at, stop=stop)
    reply = exchange(pair.port, request(STREAM))
    assert (reply.status, reply.whole) == (200, True)
    assert reply.body.startswith(b"".join(pieces[:at]))
    *before, last = reply.events
    assert len(before) == at
    checked_error(last)
    assert b"[DONE]" not in reply.body
    assert len(stub.requests) + len(other.requests) == 1  # the client has seen a part: nobody else may answer
    assert pair.metric("entropy_rft_requests_total", 'status="stream_error"') == 1


def test_death_in_the_middle_of_an_event(router: RunningRouter, stub: Stub) -> None:
    first, second, *_ = stream_events()
    stub.script(Behaviour.stream((first, second[:30], b""), stop_before=2, stop="abort"))
    reply = exchange(router.port, request(STREAM))
    assert reply.whole
    assert reply.body.startswith(first)
    checked_error(reply.events[-1])  # every event is well-formed, so that a client can read the error


def test_death_in_an_event_too_long_to_be_held_back(router: RunningRouter, stub: Stub) -> None:
    first, *_ = stream_events()
    stub.script(Behaviour.stream((first, b"data: " + b"x" * 3 * 2**20, b""), stop_before=2, stop="abort"))
    reply = exchange(router.port, request(STREAM))
    assert reply.whole
    assert checked_error(reply.events[-1])["code"] == "backend_died"


def test_silence_in_mid_stream(router: RunningRouter, stub: Stub) -> None:
    stub.script(Behaviour.stream(stop_before=4, stop="hang"))
    reply = exchange(router.port, request(STREAM))
    assert reply.whole
    assert len(reply.events) == 5
    assert "timeout" in checked_error(reply.events[-1])["code"]
    stub.wait_for(lambda stub: stub.disconnects == 1)  # nobody goes on generating


def test_a_backend_killed_in_mid_stream(tmp_path: Path) -> None:
    command = [sys.executable, stub_module.__file__, "--port", "{port}", "--hang-at", "5"]
    with ServerProcess(command, tmp_path / "stub.log") as victim:
        victim.wait_until_ready()
        with running_router([victim.url]) as router:
            with connected(router.port) as connection:
                connection.sendall(request(STREAM))
                status, headers, rest = read_head(connection)
                while rest.count(b"data: ") < 5:
                    rest += connection.recv(65536)
                victim.kill()
                reply = read_body(connection, status, headers, rest)
                assert (reply.status, reply.whole) == (200, True)
                assert len(reply.events) == 6
                checked_error(reply.events[-1])
                connection.sendall(request())  # the same connection goes on
                refusal = read_reply(connection)
                assert refusal.status in (502, 503)
                assert refusal.error
            router.assert_idle()


def test_a_refusing_backend_costs_no_request(pair: RunningRouter, stub: Stub) -> None:
    stub.refuse()
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda _: exchange(pair.port, request()), range(200)))
    assert {reply.status for reply in replies} == {200}


def test_a_backend_that_restarts_costs_what_it_had_begun(pair: RunningRouter, stub: Stub, other: Stub) -> None:
    """It goes and comes ten times under load. What was under way there dies with it; no question is begun twice."""
    over = threading.Event()

    def ask(_: int) -> list[int]:
        found = []
        while not over.is_set():
            reply = exchange(pair.port, request())
            assert reply.status == 200 or reply.error["code"] == "backend_died"
            found.append(reply.status)
        return found

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(ask, number) for number in range(8)]
        for _ in range(10):
            seen = len(stub.requests)
            stub.refuse()
            stub.listen()
            stub.wait_for(lambda stub, seen=seen: len(stub.requests) > seen)
        over.set()
        statuses = [status for future in running for status in future.result()]
    assert set(statuses) <= {200, 502}
    assert statuses.count(502) <= 10 * 8
    assert len(stub.requests) + len(other.requests) <= len(statuses)


def test_a_backend_that_is_back_is_asked_before_the_next_check(stub: Stub, other: Stub) -> None:
    """It is the only one, its breaker is still open, and no check has found out that it is back."""
    settings = {**FAST, "breaker": {"failures": 2, "cooldown_s": 1000}, "health": {"interval_s": 1000}}
    with running_router([stub.url, other.url], **settings) as router:
        stub.refuse()
        assert {exchange(router.port, request()).status for _ in range(10)} == {200}
        assert router.metric("entropy_rft_backend_breaker_open") == 1
        stub.listen()
        other.refuse()
        assert {exchange(router.port, request(STREAM)).status for _ in range(10)} == {200}
        assert len(stub.requests) == 10
        assert router.metric("entropy_rft_backend_breaker_open") <= 1
        router.assert_idle()


def test_backends_that_stay_away_are_refused_at_once(stub: Stub, other: Stub) -> None:
    settings = {**FAST, "breaker": {"failures": 2, "cooldown_s": 1000}, "health": {"interval_s": 1000}}
    with running_router([stub.url, other.url], **settings) as router:
        stub.refuse()
        other.refuse()
        replies = [exchange(router.port, request()) for _ in range(10)]
        assert {reply.status for reply in replies} <= {502, 503}
        last = replies[-1]
        assert (last.status, last.error["code"]) == (503, "no_backend")
        assert int(last.headers["retry-after"]) >= 1
        router.assert_idle()


def test_a_standstill_of_the_router_is_no_fault_of_a_backend(stub: Stub) -> None:
    """A connection that takes long is given up, but its breaker opens only where the router was awake meanwhile."""
    settings = {**FAST, "breaker": {"failures": 1, "cooldown_s": 1000}, "health": {"interval_s": 1000}}
    settings["timeouts"] = {"connect_s": 0.3}
    stub.healthy = False  # so that the first check finds both down, and the weights decide
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        backends = [{"url": f"http://127.0.0.1:{full.getsockname()[1]}", "weight": 1000}, stub.url]
        with running_router(backends, **settings) as router, ThreadPoolExecutor() as threads:
            waiting = threads.submit(exchange, router.port, request())
            router.wait_for_metric(1, "entropy_rft_backend_outstanding")
            router.loop.call_soon_threadsafe(time.sleep, 1.0)
            assert waiting.result().status == 200
            assert router.metric("entropy_rft_retries_total") == 1
            assert router.metric("entropy_rft_backend_breaker_open") == 0
            assert exchange(router.port, request()).status == 200
            assert router.metric("entropy_rft_backend_breaker_open") == 1
            router.assert_idle()


def test_a_router_that_gets_little_of_the_cpu_still_connects(stub: Stub) -> None:
    """A new connection takes several turns of the loop, together longer than its time limit."""
    settings = {**FAST, "timeouts": {"connect_s": 0.15}, "retries": {"attempts": 1}}
    stub.answer = lambda request: Behaviour(head_after=0.3)
    with running_router([stub.url], **settings) as router, ThreadPoolExecutor(4) as threads:
        over = threading.Event()

        def slow() -> None:
            time.sleep(0.1)
            if not over.is_set():
                router.loop.call_soon(slow)

        router.loop.call_soon_threadsafe(slow)
        router._wait(lambda: router.server.router.pool.lag.seconds > 0.05, lambda: "the loop is not late")
        try:
            replies = list(threads.map(lambda _: exchange(router.port, request()), range(4)))
            assert [reply.status for reply in replies] == [200] * 4
        finally:
            over.set()
        router.assert_idle()


def test_no_backend_at_all(router: RunningRouter, stub: Stub) -> None:
    stub.refuse()
    start = time.monotonic()
    for body in (request(), request(STREAM)):
        reply = exchange(router.port, body)
        assert reply.status in (502, 503)
        assert reply.error
    assert time.monotonic() - start < 10
    stub.listen()
    router.wait_for_metric(1, "entropy_rft_backend_up")
    assert exchange(router.port, request()).status == 200


def test_an_idle_connection_that_the_backend_closed(router: RunningRouter, stub: Stub) -> None:
    """The backend ends each connection after an answer that had promised to keep it: it is not used again."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(PLAIN)
    stub.answer = lambda request: Behaviour(raw=head + PLAIN)
    for number in range(1, 101):
        assert exchange(router.port, request()).status == 200
        stub.wait_for(lambda stub, number=number: stub.closed == number)  # before the next request is sent


def test_429_goes_to_another_backend(pair: RunningRouter, stub: Stub, other: Stub) -> None:
    stub.answer = lambda request: Behaviour.error(429, headers=(("retry-after", "30"),))
    replies = [exchange(pair.port, request()) for _ in range(20)]
    assert {reply.status for reply in replies} == {200}
    assert len(stub.requests) == 1  # it asked to be left alone
    assert len(other.requests) == 20


def test_429_of_all_backends_is_passed_on(pair: RunningRouter, stub: Stub, other: Stub) -> None:
    stub.answer = other.answer = lambda request: Behaviour.error(429, "slow down", headers=(("retry-after", "7"),))
    reply = exchange(pair.port, request())
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")
    assert reply.error["message"] == "slow down"
    again = exchange(pair.port, request())
    assert again.status == 429
    assert 1 <= int(again.headers["retry-after"]) <= 7
    assert again.error["type"] == "rate_limit_error"


def test_429_with_a_pause_that_is_none(router: RunningRouter, stub: Stub) -> None:
    stub.answer = lambda request: Behaviour(
        raw=b"HTTP/1.1 429 Slow Down\r\nretry-after: \xb2\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert exchange(router.port, request()).status == 429  # and nothing is left of it, as the fixture looks


def test_a_mistake_of_ours_keeps_no_place_at_a_backend(
    router: RunningRouter, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> float:
        raise KeyError("a mistake")

    monkeypatch.setattr("entropy_rft.router.proxy.retry_after_s", mistaken)
    stub.script(Behaviour.error(429))
    reply = exchange(router.port, request())
    assert (reply.status, reply.error["code"]) == (500, "internal_error")


def test_the_breaker_keeps_requests_away(stub: Stub, other: Stub) -> None:
    settings = {**FAST, "breaker": {"failures": 3, "cooldown_s": 1000}, "health": {"interval_s": 1000}}
    with running_router([stub.url, other.url], **settings) as router:
        stub.answer = lambda request: Behaviour.error(503)
        assert {exchange(router.port, request()).status for _ in range(30)} == {200}
        assert len(stub.requests) == 3
        assert router.metric("entropy_rft_backend_breaker_open") == 1
        router.assert_idle()


def test_the_breaker_closes_again(stub: Stub, other: Stub) -> None:
    settings = {**FAST, "breaker": {"failures": 1, "cooldown_s": 0.2}, "health": {"interval_s": 1000}}
    with running_router([stub.url, other.url], **settings) as router:
        stub.script(Behaviour.error(503))
        while not stub.requests:
            assert exchange(router.port, request()).status == 200
        router.wait_for_metric(0.5, "entropy_rft_backend_breaker_open")
        for _ in range(10):
            assert exchange(router.port, request()).status == 200
        assert len(stub.requests) > 1
        assert router.metric("entropy_rft_backend_breaker_open") == 0
        router.assert_idle()


def test_a_sick_backend_is_left_alone_until_it_is_well(pair: RunningRouter, stub: Stub, other: Stub) -> None:
    stub.healthy = False
    pair.wait_for_metric(1, "entropy_rft_backend_up")
    assert {exchange(pair.port, request()).status for _ in range(10)} == {200}
    assert not stub.requests
    stub.healthy = True
    pair.wait_for_metric(2, "entropy_rft_backend_up")
    for _ in range(10):
        exchange(pair.port, request())
    assert stub.requests


def test_a_full_backend(stub: Stub, other: Stub) -> None:
    backends = [{"url": stub.url, "max_outstanding": 2}, {"url": other.url, "max_outstanding": 3}]
    with running_router(backends) as router, ThreadPoolExecutor(5) as threads:
        stub.answer = other.answer = lambda request: Behaviour(stop_before=HEAD)
        waiting = [threads.submit(exchange, router.port, request()) for _ in range(5)]
        stub.wait_for(lambda stub: stub.in_progress == 2)
        other.wait_for(lambda other: other.in_progress == 3)
        reply = exchange(router.port, request())
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.error
        stub.release()
        other.release()
        assert [future.result().status for future in waiting] == [200] * 5
        router.assert_idle()


def test_a_backend_on_a_port_where_nothing_listens() -> None:
    with running_router([f"http://127.0.0.1:{free_port()}"], **FAST) as router:
        assert exchange(router.port, request()).status in (502, 503)
        assert get(router.port, "/ready").status == 503
        assert get(router.port, "/health").status == 200
