"""A feature source that is down, slow or odd: each request is answered as Normal, and that is counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, Request, pooled
from wire import Reply, exchange, request

pytestmark = pytest.mark.integration

DEADLINE_MS = 300.0


@pytest.fixture
def pooling() -> Iterator[Stub]:
    with Stub(answer=pooled) as pooling:
        yield pooling


@pytest.fixture
def router(stub: Stub, pooling: Stub) -> Iterator[RunningRouter]:
    features = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": DEADLINE_MS}
    with running_router([stub.url], probe="embedded", features=features, min_confidence=0.0) as router:
        yield router
        router.assert_idle()


def ask(router: RunningRouter, question: object) -> Reply:
    messages = [{"role": "user", "content": f"What is {question} + 1?"}]
    return exchange(router.port, request(json.dumps({"model": "m", "messages": messages}).encode()))


def assert_normal(reply: Reply, reason: str) -> None:
    assert (reply.status, reply.body) == (200, PLAIN)
    assert (reply.headers["x-entropy-rft-difficulty"], reply.headers["x-entropy-rft-reason"]) == ("normal", reason)


def test_a_healthy_source(router: RunningRouter, pooling: Stub) -> None:
    first, second = ask(router, 1), ask(router, 1)
    assert first.headers["x-entropy-rft-reason"] == second.headers["x-entropy-rft-reason"] == "probe"
    assert first.headers["x-entropy-rft-confidence"] == second.headers["x-entropy-rft-confidence"]
    asked = [each.json["input"] for each in pooling.requests]
    assert len(asked) == 2  # what it gives is looked at once, and the question; the second time it is remembered


def test_down(router: RunningRouter, pooling: Stub) -> None:
    ask(router, 1)
    pooling.refuse()
    assert_normal(ask(router, 2), "feature_error")
    assert ask(router, 1).headers["x-entropy-rft-reason"] == "probe"  # remembered
    assert router.metric("entropy_rft_fallbacks_total", 'reason="feature_error"') == 1
    pooling.listen()
    assert ask(router, 2).headers["x-entropy-rft-reason"] == "probe"


def test_down_from_the_start(stub: Stub, pooling: Stub) -> None:
    pooling.refuse()
    features = {"kind": "vllm_pooling", "url": pooling.url}
    with running_router([stub.url], probe="embedded", features=features, min_confidence=0.0) as router:
        assert_normal(ask(router, 1), "feature_error")
        pooling.listen()
        deadline = time.monotonic() + 30
        while (reply := ask(router, 1)).headers["x-entropy-rft-reason"] != "probe":
            assert_normal(reply, "feature_error")
            assert time.monotonic() < deadline
            time.sleep(0.1)  # a source that was never there is looked at once a second
        router.assert_idle()


def test_slow(router: RunningRouter, pooling: Stub) -> None:
    ask(router, 1)
    pooling.answer = lambda request: Behaviour(stop_before=HEAD, stop="hang")
    start = time.monotonic()
    assert_normal(ask(router, 2), "feature_timeout")
    assert DEADLINE_MS / 1000 <= time.monotonic() - start < DEADLINE_MS / 1000 + 5
    assert router.metric("entropy_rft_fallbacks_total", 'reason="feature_timeout"') == 1
    pooling.refuse()  # what hangs there is not waited for at the end


ODD = {
    "garbage": Behaviour(raw=b"\x16\x03 hello\r\n\r\n"),
    "no JSON": Behaviour((b"hello",)),
    "another JSON": Behaviour.json([1, 2]),
    "no states": Behaviour.json({"data": []}),
    "broken base64": Behaviour.json({"data": [{"index": 0, "data": "%%%"}]}),
    "an error": Behaviour.error(500),
    "a refusal": Behaviour.error(400, "too long"),
    "half an answer": Behaviour((b'{"da', b'ta": []}'), stop_before=1, stop="abort"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers(router: RunningRouter, pooling: Stub, name: str) -> None:
    ask(router, 1)
    pooling.answer = lambda request: ODD[name]
    assert_normal(ask(router, 2), "feature_error")
    pooling.answer = pooled
    assert ask(router, 2).headers["x-entropy-rft-reason"] == "probe"  # a failure is not remembered


def of_width(width: int, value: float | None = None) -> object:
    def answer(asked: Request) -> Behaviour:
        import base64
        import struct

        states = [struct.pack(f"<{width}f", *([0.5 if value is None else value] * width))] * len(asked.json["input"])
        entries = [{"index": i, "data": base64.b64encode(state).decode()} for i, state in enumerate(states)]
        return Behaviour.json({"data": entries})

    return answer


@pytest.mark.parametrize(("width", "value"), [(64, None), (128, float("nan")), (128, float("inf"))])
def test_states_that_the_probe_cannot_read(
    router: RunningRouter, pooling: Stub, width: int, value: float | None
) -> None:
    ask(router, 1)
    pooling.answer = of_width(width, value)
    assert_normal(ask(router, 2), "feature_error")


def test_a_hanging_source_under_load(router: RunningRouter, stub: Stub, pooling: Stub) -> None:
    """Two hundred new questions at once, while the source hangs, then dies: none fails, none waits for long."""
    ask(router, 0)
    seen = len(pooling.requests)
    pooling.answer = lambda request: Behaviour(stop_before=HEAD, stop="hang")
    with ThreadPoolExecutor(50) as threads:
        waiting = [threads.submit(ask, router, number) for number in range(1, 201)]
        pooling.wait_for(lambda pooling: len(pooling.requests) > seen)
        killer = threading.Timer(0.2, pooling.refuse)
        killer.start()
        replies = [future.result() for future in waiting]
        killer.join()
    assert {reply.status for reply in replies} == {200}
    assert {reply.headers["x-entropy-rft-reason"] for reply in replies} <= {"feature_error", "feature_timeout"}
    assert len(stub.requests) == 201


def test_a_client_that_leaves_while_the_source_thinks(router: RunningRouter, stub: Stub, pooling: Stub) -> None:
    from wire import connected

    ask(router, 1)
    count = len(pooling.requests)
    pooling.script(Behaviour(stop_before=HEAD))
    with connected(router.port) as connection:
        connection.sendall(request())
        pooling.wait_for(lambda pooling: len(pooling.requests) == count + 1)
    pooling.release()
    assert ask(router, 3).status == 200
    router.assert_idle()
    assert len(stub.requests) == 2  # for nobody no answer is asked
