"""The router as a middleware around an application that answers as vLLM does (`test_vllm_one_engine.py` has the real
one): what the client gets, what the application gets, and what it gets without the middleware's doing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import FixedFeatures
from stub_answers import MODELS, Behaviour, Request, stream_events
from stub_app import METRICS, Client, Reply, StubApp, in_any_dialect, live

from entropy_rft.assets import DEFAULT_PROBE
from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty, DifficultyProbe
from entropy_rft.difficulty.served import ENV
from entropy_rft.difficulty.served.wire import MARK, STATUS_OK, encoded
from entropy_rft.router.features import Question
from entropy_rft.router.middleware import RouterMiddleware
from entropy_rft.router.middleware_settings import CONFIG_ENV, load_middleware_settings

pytestmark = pytest.mark.integration

USER = {"role": "user", "content": "What is 2 + 2?"}
CHAT = {"model": "m", "messages": [USER]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "2 + 2 ="},
    "/v1/responses": {"model": "m", "input": "What is 2 + 2?"},
    "/v1/messages": {"model": "m", "max_tokens": 99, "messages": [USER]},
}
EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
OURS = ("difficulty", "confidence", "reason", "applied", "routing-ms")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets what the server is started with; by default only clients choose, until features are given."""
    logger = logging.getLogger("entropy_rft.router")
    before = logger.handlers, logger.level, logger.propagate
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def set_up(probe: str = "", **settings: Any) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(settings))
        monkeypatch.setenv(ENV, probe)
        monkeypatch.setenv(CONFIG_ENV, str(config))

    set_up(features={"kind": "none"})
    yield set_up
    logger.handlers, logger.level, logger.propagate = before


def run(app: StubApp, test: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with live(RouterMiddleware(app, **options), app) as client:
            await test(client)

    asyncio.run(main())


FOUND_EASY = {"features": FixedFeatures((0.9, 0.06, 0.04))}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_question_gets_its_strategy_in_each_dialect(path: str, stream: bool) -> None:
    app, body = StubApp(), {**BODIES[path], "stream": stream}

    async def test(client: Client) -> None:
        reply = await client.ask(body, path, headers={"traceparent": "00-1-2-01", "x-request-id": "mine"})
        (asked,) = app.requests
        plain = await client.ask({**asked.json, "id": "again"}, path)  # the stub numbers its answers
        assert reply.status == 200
        assert reply.complete
        assert len(reply.body) == len(plain.body)
        assert reply.headers["x-entropy-rft-difficulty"] == "easy"
        assert all(f"x-entropy-rft-{name}" in reply.headers for name in OURS)
        assert reply.headers["x-request-id"] == "mine"
        assert asked.json["temperature"] == EASY.temperature
        if path != "/v1/completions":
            assert EASY.instruction in asked.body.decode()
        assert asked.headers["traceparent"] == "00-1-2-01"
        assert asked.headers["x-request-id"] == "mine"
        assert int(asked.headers["content-length"]) == len(asked.body)
        assert app.scopes[0]["client"] == ("192.0.2.7", 1234)
        assert app.scopes[0]["app"] is app
        assert await client.metric("entropy_rft_requests_total", 'difficulty="easy"', 'status="200"') == 2

    run(app, test, **FOUND_EASY)


def test_an_answer_is_the_applications_byte_for_byte() -> None:
    answer = Behaviour((b'{"choices":  [1.50]}',), headers=(("x-own", "1"), ("access-control-allow-origin", "*")))
    app = StubApp(lambda request: answer)

    async def test(client: Client) -> None:
        reply = await client.ask(CHAT)
        assert reply.body == answer.pieces[0]
        assert reply.headers["content-length"] == str(len(reply.body))
        assert reply.headers["x-own"] == "1"
        assert reply.headers["access-control-allow-origin"] == "*"

    run(app, test)


def test_a_stream_is_not_buffered() -> None:
    events = stream_events(3)
    app = StubApp(lambda request: Behaviour.stream(events))

    async def test(client: Client) -> None:
        app.step, reply = asyncio.Semaphore(0), Reply()
        asking = asyncio.create_task(client.ask({**CHAT, "stream": True}, reply=reply))
        for count in range(1, len(events) + 1):
            app.step.release()
            await reply.wait_for(lambda reply, count=count: len(reply.pieces) == count)
            assert tuple(reply.pieces) == events[:count]
        await asking
        assert reply.complete

    run(app, test)


def test_an_answer_larger_than_any_buffer() -> None:
    pieces = tuple(bytes([65 + n % 26]) * 100_000 for n in range(150))
    app = StubApp(lambda request: Behaviour(pieces))

    async def test(client: Client) -> None:
        assert (await client.ask(CHAT)).body == b"".join(pieces)

    run(app, test)


class Counted(tuple[bytes, ...]):
    """Pieces of an answer; `taken` of them have been begun."""

    taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in super().__iter__():
            self.taken += 1
            yield piece


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_a_client_that_does_not_read_stops_the_application(content_type: str, environment: Callable[..., None]) -> None:
    """What is held for it is bounded, whatever the answer's length is; and it gets all of it when it reads."""
    environment(features={"kind": "none"}, limits={"max_buffered_bytes": 2**18})
    pieces = Counted([b"data: " + b"x" * 65_000 + b"\n\n"] * 400)  # 26 MB
    app = StubApp(lambda request: Behaviour(pieces, content_type=content_type, framing="chunked"))

    async def test(client: Client) -> None:
        reply = Reply()
        async with reply.arrived:  # what is sent to the client waits for this
            asking = asyncio.create_task(client.ask({**CHAT, "stream": True}, reply=reply))
            unchanged, taken = 0, 0
            while unchanged < 100 or not taken:  # everything is in this loop: nothing happens later
                await asyncio.sleep(0)
                unchanged, taken = (unchanged + 1 if pieces.taken == taken else 0), pieces.taken
            held = taken * len(pieces[0])
            assert held <= 2**20
        await asking
        assert reply.body == b"".join(pieces)
        print(f"{content_type}: {held / 2**20:.2f} MiB held")

    run(app, test)


@pytest.mark.parametrize("stop_before", [-1, 2])
def test_a_disconnect_reaches_the_application(stop_before: int) -> None:
    app = StubApp(lambda request: Behaviour.stream(stop_before=stop_before, stop="hang"))

    async def test(client: Client) -> None:
        leave, reply = asyncio.Event(), Reply()
        asking = asyncio.create_task(client.ask({**CHAT, "stream": True}, reply=reply, leave=leave))
        if stop_before > 0:
            await reply.wait_for(lambda reply: reply.body.count(b"data: ") == stop_before)
        else:
            while not app.requests:
                await asyncio.sleep(0)
        leave.set()
        await asking
        while not app.disconnects:
            await asyncio.sleep(0)
        assert not reply.complete
        assert await client.metric("entropy_rft_requests_total", 'status="499"') == 1
        assert await client.metric("entropy_rft_in_flight") == 0
        assert await client.metric("entropy_rft_backend_outstanding") == 0

    run(app, test)


def test_an_application_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    behaviours = [
        Behaviour(stop_before=-1, stop="abort"),
        Behaviour.stream(stop_before=2, stop="abort"),
        Behaviour.error(500, "no"),
        Behaviour.error(429, "slowly", (("retry-after", "7"),)),
        Behaviour(),
    ]
    app = StubApp(lambda request: behaviours[len(app.requests) - 1])

    async def test(client: Client) -> None:
        failed = await client.ask(CHAT)
        assert (failed.status, failed.json["error"]["message"]) == (500, "the server failed to answer")
        broken = await client.ask({**CHAT, "stream": True})
        assert broken.complete
        assert b"error" in broken.pieces[-1]
        refused = await client.ask(CHAT)
        assert (refused.status, refused.json["error"]["message"]) == (500, "no")
        busy = await client.ask(CHAT)
        assert (busy.status, busy.headers["retry-after"]) == (429, "7")
        assert (await client.ask(CHAT)).status == 200  # whatever went before, the next request is sent
        assert len(app.requests) == len(behaviours)  # and each of them once

    run(app, test)


def test_a_limit_that_the_server_does_not_know_is_replaced(environment: Callable[..., None]) -> None:
    environment(
        strategies={"easy": {"instruction": "", "thinking_tokens": 64}}, max_tokens=1000, features={"kind": "none"}
    )

    def answer(request: Request) -> Behaviour:
        known = "thinking_token_budget" not in request.json
        return in_any_dialect(request) if known else Behaviour.error(400, "thinking_token_budget is unknown")

    app = StubApp(answer)

    async def test(client: Client) -> None:
        reply = await client.ask({**CHAT, "difficulty": "easy"})
        assert reply.status == 200
        assert reply.headers["x-entropy-rft-applied"] == "temperature=0.5, max_tokens=400"
        assert [request.json.get("thinking_token_budget") for request in app.requests] == [64, None]

    run(app, test)


class Broken(FixedFeatures):
    """A source that fails, or never answers."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__((1.0, 0.0, 0.0))
        self.error = error

    async def proba(self, request: Question) -> tuple[float, float, float]:
        if self.error is None:
            await asyncio.Event().wait()
        raise self.error or AssertionError


@pytest.mark.parametrize(("error", "reason"), [(RuntimeError("down"), "feature_error"), (None, "feature_timeout")])
def test_a_probe_that_fails_loses_no_request(
    error: Exception | None, reason: str, environment: Callable[..., None]
) -> None:
    environment(features={"kind": "none", "deadline_ms": 20})
    app = StubApp()

    async def test(client: Client) -> None:
        reply = await client.ask(CHAT)
        assert (reply.status, reply.headers["x-entropy-rft-difficulty"]) == (200, "normal")
        assert reply.headers["x-entropy-rft-reason"] == reason
        assert await client.metric("entropy_rft_fallbacks_total", f'reason="{reason}"') == 1

    run(app, test, features=Broken(error))


def test_other_requests_are_not_touched() -> None:
    app, seen = StubApp(lambda request: Behaviour()), []

    async def below(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))
        await app(scope, receive, send)

    async def test(client: Client) -> None:
        for method, path in (("GET", "/v1/models"), ("POST", "/tokenize"), ("OPTIONS", "/v1/chat/completions")):
            seen.clear()
            scope: Any = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}

            async def receive() -> Any:
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: Any) -> None:
                pass

            await client.app(scope, receive, send)
            assert [id(each) for each in seen[0]] == [id(scope), id(receive), id(send)]
        assert (await client.ask(path="/v1/models", method="GET")).body == MODELS
        await client.app({"type": "websocket", "path": "/v1/chat/completions"}, None, send)
        assert seen[-1][0]["type"] == "websocket"

    async def main() -> None:
        async with live(RouterMiddleware(below), app) as client:
            await test(client)

    asyncio.run(main())


def test_below_a_root_path() -> None:
    app = StubApp()

    async def test(client: Client) -> None:
        reply = await client.ask(CHAT, "/api/v1/chat/completions", root_path="/api")
        assert reply.headers["x-entropy-rft-difficulty"] == "easy"

    run(app, test, **FOUND_EASY)


def test_metrics_stand_beside_the_servers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    app = StubApp()

    async def test(client: Client) -> None:
        await client.ask(CHAT)
        reply = await client.ask(path="/metrics", method="GET", headers={"accept": "application/openmetrics-text"})
        assert reply.headers["content-length"] == str(len(reply.body))
        lines = reply.body.split(b"\n")
        assert tuple(lines[:2]) == tuple(METRICS.split(b"\n"))
        assert any(line.startswith(b"entropy_rft_requests_total{") for line in lines)
        assert not any(line.startswith((b"process_", b"python_")) for line in lines)  # the server has them already
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")  # then the server's registry has ours already
        assert (await client.ask(path="/metrics", method="GET")).body == METRICS

    run(app, test)


# ---- the key of the server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer second"}, 200),
        ({"x-api-key": "second"}, 200),
    ],
)
def test_the_servers_keys_are_the_clients(headers: dict[str, str], status: int) -> None:
    app = StubApp(keys=("first", "second"))

    async def test(client: Client) -> None:
        reply = await client.ask(CHAT, headers=headers)
        assert reply.status == status
        # Without a key nothing is asked of the server; with one it is the client's own, where the server can read it.
        given = "Bearer second" if "authorization" in headers else "Bearer first"
        assert [request.headers["authorization"] for request in app.requests] == [given] * (status == 200)
        assert all("x-api-key" not in request.headers for request in app.requests)

    run(app, test, **FOUND_EASY)


def test_without_keys_a_clients_own_is_passed_on() -> None:
    """Another middleware may want it."""
    app = StubApp()

    async def test(client: Client) -> None:
        await client.ask(CHAT, headers={"authorization": "Bearer mine", "x-api-key": "other"})
        assert app.requests[0].headers["authorization"] == "Bearer mine"
        assert app.requests[0].headers["x-api-key"] == "other"

    run(app, test)


# ---- the probe inside the engine


def with_probe(digest: str, scores: tuple[float, float, float] = (0.1, 0.1, 0.8)) -> Callable[[Request], Behaviour]:
    def answer(request: Request) -> Behaviour:
        if MARK not in (request.json.get("vllm_xargs") or {}):
            return in_any_dialect(request)
        logits = encoded(torch.tensor([scores]), torch.tensor([STATUS_OK]), digest)[0].log_softmax(-1)
        top = {f"token_id:{token}": score for token, score in enumerate(logits.tolist())}
        return Behaviour.json({"choices": [{"logprobs": {"top_logprobs": [top]}}]})

    return answer


@pytest.fixture(scope="module")
def digest() -> str:
    return DifficultyProbe.from_pretrained(DEFAULT_PROBE).digest()


def test_the_engine_is_asked_in_the_same_process(digest: str, environment: Callable[..., None]) -> None:
    environment(probe="embedded", features={"deadline_ms": 20_000})
    app = StubApp(with_probe(digest), keys=("secret",))

    async def test(client: Client) -> None:
        app.requests.clear()
        for path, body in BODIES.items():
            reply = await client.ask(body, path, headers={"authorization": "Bearer secret"})
            assert (reply.status, reply.headers["x-entropy-rft-reason"]) == (200, "probe"), reply.body
            assert reply.headers["x-entropy-rft-difficulty"] == "hard"
            assert reply.headers["x-entropy-rft-confidence"] == "0.8000"
        marked = [request for request in app.requests if MARK in (request.json.get("vllm_xargs") or {})]
        assert len(marked) == 2  # three of the dialects ask the same question, a completion another one
        assert {request.json["max_tokens"] for request in marked} == {1}
        assert {request.headers["authorization"] for request in marked} == {"Bearer secret"}
        assert await client.metric("entropy_rft_feature_cache_total", 'result="miss"') == 2
        assert await client.metric("entropy_rft_feature_up") == 1

    run(app, test)


def test_strategies_are_reloaded_but_not_the_engines_probe(
    tmp_path: Path, environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine could not follow another probe."""
    probe = DifficultyProbe.from_pretrained(DEFAULT_PROBE)
    probe.save_pretrained(tmp_path / "probe")
    app = StubApp(with_probe(probe.digest()))

    def set_up(temperature: float) -> None:
        strategies = {"hard": {"instruction": "", "temperature": temperature}}
        environment(probe=str(tmp_path / "probe"), features={"deadline_ms": 20_000}, strategies=strategies)

    async def main() -> None:
        middleware = RouterMiddleware(app)
        async with live(middleware, app) as client:
            assert middleware.reloader.listens is False  # a signal ends vLLM as ever, unless `reload` says otherwise
            await client.ask(CHAT)
            assert app.requests[-1].json["temperature"] == 0.5
            set_up(0.75)
            assert await middleware.reloader.reload()
            reply = await client.ask(CHAT)
            assert reply.headers["x-entropy-rft-reason"] == "probe"
            assert app.requests[-1].json["temperature"] == 0.75
            asked = len(app.requests)
            probe.temperature = 3.0
            probe.save_pretrained(tmp_path / "probe")
            set_up(1.0)
            assert not await middleware.reloader.reload()
            await client.ask(CHAT)
            assert app.requests[-1].json["temperature"] == 0.75
            assert len(app.requests) == asked + 1  # the question is still in the cache
            assert await client.metric("entropy_rft_reloads_total", 'result="ok"') == 1
            assert await client.metric("entropy_rft_reloads_total", 'result="error"') == 1

    set_up(0.5)
    asyncio.run(main())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not reloaded" in line]
    assert "features.kind is vllm" in line


def test_an_engine_that_fails_the_probes_request(digest: str, environment: Callable[..., None]) -> None:
    environment(probe="embedded", features={"deadline_ms": 20_000})
    good, broken = with_probe(digest), False

    def answer(request: Request) -> Behaviour:
        if broken and MARK in (request.json.get("vllm_xargs") or {}):
            return Behaviour(stop_before=-1, stop="abort")
        return good(request)

    app = StubApp(answer)

    async def test(client: Client) -> None:
        nonlocal broken
        broken = True
        reply = await client.ask(CHAT)
        assert (reply.status, reply.headers["x-entropy-rft-reason"]) == (200, "feature_error")
        broken = False
        assert (await client.ask(CHAT)).headers["x-entropy-rft-reason"] == "probe"

    run(app, test)


# ---- mistakes end the start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ENTROPY_RFT_PROBE is not set: name the probe's directory"),
        ({"features": {"kind": "vllm"}}, "ENTROPY_RFT_PROBE is not set|probe is missing"),
        ({"probe": "/nowhere"}, "/nowhere"),
        ({"probe": "embedded", "backends": ["http://a"]}, "backends is not a setting of the middleware"),
        (
            {"probe": "embedded", "limits": {"keep_alive_s": 3}},
            "limits.keep_alive_s is not a setting of the middleware",
        ),
        (
            {"probe": "embedded", "min_confidnce": 1},
            "there is no setting 'min_confidnce'; did you mean min_confidence?",
        ),
        ({"probe": "embedded"}, "evaluates the probe ffffff, but the router has"),
    ],
)
def test_a_mistake_is_one_line_before_the_server_is_ready(
    options: dict[str, Any], message: str, environment: Callable[..., None]
) -> None:
    environment(**options)
    app = StubApp(with_probe("ffffff"))

    async def main() -> None:
        try:
            async with live(RouterMiddleware(app), app):
                raise AssertionError("it has started")
        finally:
            await asyncio.wait_for(app.ended.wait(), 10)  # what it had started it has ended

    with pytest.raises(AssertionError, match=message) as failure:
        asyncio.run(main())
    assert str(failure.value).splitlines()[0].startswith("entropy_rft: ")


def test_an_engine_without_the_probe_is_such_a_mistake(environment: Callable[..., None]) -> None:
    environment(probe="embedded")
    app = StubApp()

    async def main() -> None:
        async with live(RouterMiddleware(app), app):
            raise AssertionError("it has started")

    with pytest.raises(AssertionError, match=r"entropy_rft: .*this-server"):
        asyncio.run(main())


def test_what_it_does_is_one_line(
    digest: str, environment: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environment(probe="embedded")

    async def test(client: Client) -> None: ...

    run(StubApp(with_probe(digest)), test)
    lines = [line for line in capsys.readouterr().err.splitlines() if "questions get the strategy" in line]
    assert len(lines) == 1
    assert f"the probe embedded ({digest[:6]})" in lines[0]
    assert "instructions go to system, so answers do not reuse their question's prefill" in lines[0]


def test_the_environments_settings_count(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    environment(probe="somewhere", min_confidence=0.2)
    monkeypatch.setenv("ENTROPY_RFT_ROUTER_MIN_CONFIDENCE", "0.3")
    settings = load_middleware_settings()
    assert (settings.probe, settings.features.kind, settings.min_confidence) == ("somewhere", "vllm", 0.3)
