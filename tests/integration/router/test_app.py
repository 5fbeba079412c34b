"""The router's surface, over real sockets: what a client gets, what a backend gets, and what neither does."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import Any

import httpx
import pytest
import uvicorn
from running import PATIENCE, FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import PLAIN, Behaviour, stream_events

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router.app import create_app
from entropy_rft.router.settings import load_settings

pytestmark = pytest.mark.integration

SECRET = "Where is the treasure?"
CHAT = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
EASY = FixedFeatures((0.9, 0.06, 0.04))
OURS = ("difficulty", "confidence", "reason", "routing-ms")


class Down(FixedFeatures):
    """A source that is not ready, and never answers."""

    def __init__(self) -> None:
        super().__init__((1.0, 0.0, 0.0))

    async def ready(self) -> bool:
        return False

    async def proba(self, request: Any) -> tuple[float, float, float]:
        raise RuntimeError("down")


def ask(router: RunningRouter, body: Any = CHAT, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(router.url + path, content=content, timeout=PATIENCE, **options)


def get(router: RunningRouter, path: str, **options: Any) -> httpx.Response:
    return httpx.get(router.url + path, timeout=PATIENCE, **options)


def test_a_question_gets_its_strategy(stub: Stub) -> None:
    with running_router([stub.url], features=EASY, max_tokens=1000) as router:
        answer = ask(router)
        assert answer.content == PLAIN
        assert answer.headers["x-entropy-rft-difficulty"] == "easy"
        assert answer.headers["x-entropy-rft-confidence"] == "0.9000"
        assert answer.headers["x-entropy-rft-reason"] == "probe"
        assert float(answer.headers["x-entropy-rft-routing-ms"]) < 10_000
        router.wait_for_metric(1, "entropy_rft_requests_total", 'difficulty="easy"', 'status="200"')
        assert router.metric("entropy_rft_tokens_total", 'kind="completion"', 'difficulty="easy"') == 12
        assert router.metric("entropy_rft_tokens_total", 'kind="prompt"') == 9
    easy = DEFAULT_STRATEGIES[Difficulty.EASY]
    assert stub.requests[-1].json == {
        "model": "m",
        "messages": easy.prompt(CHAT["messages"]),
        "temperature": easy.temperature,
        "max_tokens": 400,
    }


def test_every_answer_carries_an_id_and_the_decision(stub: Stub) -> None:
    with running_router([stub.url], features=EASY) as router:
        for answer in (ask(router), ask(router, {**CHAT, "stream": True}), ask(router, {**CHAT, "difficulty": "hard"})):
            assert answer.status_code == 200
            assert all(f"x-entropy-rft-{name}" in answer.headers for name in OURS)
        stub.script(Behaviour.error(500))
        failed = ask(router, headers={"x-request-id": "mine.1"})
        assert failed.status_code == 500
        assert failed.headers["x-request-id"] == "mine.1"
        assert all(f"x-entropy-rft-{name}" in failed.headers for name in OURS)
        assert stub.requests[-1].headers["x-request-id"] == "mine.1"
        made = [get(router, path).headers["x-request-id"] for path in ("/", "/health", "/nowhere", "/v1/models")]
        made.append(ask(router, b"{").headers["x-request-id"])
        made.append(ask(router, headers={"x-request-id": "not harmless"}).headers["x-request-id"])
        assert len(set(made)) == len(made)
        assert "not harmless" not in made


def test_without_a_probe_all_is_normal(stub: Stub) -> None:
    with running_router([stub.url]) as router:
        answer = ask(router)
        assert [answer.headers[f"x-entropy-rft-{name}"] for name in OURS[:3]] == ["normal", "0.0000", "no_probe"]
        assert router.metric("entropy_rft_fallbacks_total", 'reason="no_probe"') == 1
        assert ask(router, headers={"x-entropy-rft-difficulty": "hard"}).headers["x-entropy-rft-reason"] == "client"
    assert stub.requests[-1].json["temperature"] == DEFAULT_STRATEGIES[Difficulty.HARD].temperature


def test_a_limit_of_ours_that_does_not_fit_is_left_out(stub: Stub) -> None:
    """A long prompt leaves no room for the strategy's share: without us it would have been answered."""
    too_long = Behaviour.error(
        400, "This model's maximum context length is 100 tokens. However, you requested 'max_tokens'"
    )
    with running_router([stub.url], features=EASY, max_tokens=1000) as router:
        stub.script(too_long)
        assert ask(router).content == PLAIN
        assert [request.json.get("max_tokens") for request in stub.requests] == [400, None]
        stub.script(too_long)
        mine = ask(router, {**CHAT, "max_tokens": 99})  # the client's own mistake stays its own
        assert mine.status_code == 400
        assert "maximum context length" in mine.json()["error"]["message"]
        stub.script(Behaviour.error(400, "bad tools"))
        assert ask(router).json()["error"]["message"] == "bad tools"


def test_the_context_length_is_the_budget(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stub.MODELS", b'{"object": "list", "data": [{"id": "m", "max_model_len": 5000}]}')
    with running_router([stub.url], features=EASY) as router:
        ask(router)
    assert stub.requests[-1].json["max_tokens"] == 2000


def test_text_completions_keep_the_backends_limit(stub: Stub) -> None:
    """It is 16 tokens of vLLM's: no easy question may get more than a normal one."""
    with running_router([stub.url], features=EASY) as router:
        for difficulty in ("easy", "normal", "hard"):
            ask(router, {"prompt": "2 + 2 =", "difficulty": difficulty}, "/v1/completions")
            assert "max_tokens" not in stub.requests[-1].json
        ask(router, {"prompt": "2 + 2 =", "max_tokens": 7}, "/v1/completions")
        assert stub.requests[-1].json["max_tokens"] == 7


def test_keys(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sesame,open")
    monkeypatch.setenv("BACKEND_KEY", "the-backends-own")
    backend = {"url": stub.url, "api_key_env": "BACKEND_KEY"}
    with running_router([backend], auth={"keys_env": "CLIENT_KEYS"}) as router:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}):
            refused = ask(router, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert get(router, "/v1/models", headers=headers).status_code == 401
            assert get(router, "/status.json", headers=headers).status_code == 401
        assert stub.requests == []
        assert ask(router, headers={"authorization": "Bearer open", "cookie": "a=b"}).status_code == 200
        assert get(router, "/v1/models", headers={"authorization": "Bearer sesame"}).json()["data"][0]["id"] == "stub"
        assert [get(router, path).status_code for path in ("/", "/health", "/ready", "/metrics", "/openapi.json")] == [
            200
        ] * 5
    for request in stub.requests:
        assert request.headers["authorization"] == "Bearer the-backends-own"
        assert "cookie" not in request.headers


def test_a_clients_key_goes_nowhere(stub: Stub) -> None:
    with running_router([stub.url]) as router:
        ask(router, headers={"authorization": "Bearer sesame", "traceparent": "00-1-2-01"})
    assert "authorization" not in stub.requests[-1].headers
    assert stub.requests[-1].headers["traceparent"] == "00-1-2-01"


def test_nothing_of_a_question_or_a_key_reaches_the_log(
    stub: Stub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sesame")
    caplog.set_level(logging.DEBUG, "entropy_rft.router")
    key = {"authorization": "Bearer sesame"}
    auth = {"keys_env": "CLIENT_KEYS"}
    with running_router([stub.url], features=Down(), log_requests=True, auth=auth) as router:
        stub.script(Behaviour.error(503), Behaviour(raw=b"garbage"))
        assert ask(router, headers=key).status_code == 502
        assert ask(router, {"prompt": SECRET}, "/v1/completions", headers=key).status_code == 200
        ask(router, json.dumps(CHAT).encode()[:-1], headers=key)
        ask(router, headers={"authorization": f"Bearer {SECRET}"})
        metrics = get(router, "/metrics").text
    lines = [str(vars(record)) for record in caplog.records]
    assert any("feature_error" in line for line in lines)
    assert any("answered" in line for line in lines)
    assert not [line for line in lines if "treasure" in line or "sesame" in line]
    assert "treasure" not in metrics

    caplog.clear()
    with running_router([stub.url], log_prompts=True) as router:
        ask(router)
    assert any(SECRET in str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("needed", [True, False])
def test_ready_and_health(stub: Stub, needed: bool) -> None:
    health = {"interval_s": 0.05, "timeout_s": 5}
    with running_router([stub.url], features=Down(), health=health, ready_needs_features=needed) as router:
        answer = get(router, "/ready")
        assert answer.json() == {"status": "not ready" if needed else "degraded", "missing": ["features"]}
        assert answer.status_code == (503 if needed else 200)
        assert router.metric("entropy_rft_ready") == (0 if needed else 1)
        assert ask(router).headers["x-entropy-rft-reason"] == "feature_error"
        stub.refuse()
        router.wait_for_metric(0, "entropy_rft_backend_up")
        answer = get(router, "/ready")
        assert (answer.status_code, answer.json()["missing"]) == (503, ["backends", "features"])
        assert get(router, "/health").json() == {"status": "ok"}
        stub.listen()
        router.wait_for_metric(1, "entropy_rft_backend_up")


def test_a_router_that_goes_down_says_so(stub: Stub) -> None:
    with running_router([stub.url], features=EASY) as router:
        assert get(router, "/ready").status_code == 200
        router.server.router.draining = True
        assert (get(router, "/ready").status_code, get(router, "/ready").json()["missing"]) == (503, ["draining"])
        answer = ask(router)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_cors_is_off_by_default(stub: Stub) -> None:
    page = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with running_router([stub.url]) as router:
        stub.script(Behaviour(headers=(("access-control-allow-origin", "*"), ("set-cookie", "a=b"))))
        answer = ask(router, headers=page)
        assert "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert httpx.options(f"{router.url}/v1/chat/completions", headers=page).status_code == 405
    with running_router([stub.url], cors_origins=["https://page.example"]) as router:
        preflight = httpx.options(f"{router.url}/v1/chat/completions", headers=page)
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        answer = ask(router, headers=page)
        assert answer.content == PLAIN
        assert "x-entropy-rft-difficulty" in answer.headers["access-control-expose-headers"]
        other = ask(router, headers={"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_redirect_is_not_followed(stub: Stub) -> None:
    with Stub() as elsewhere, running_router([stub.url]) as router:
        stub.script(*[Behaviour(status=307, headers=(("location", elsewhere.url),))] * 3)
        answer = ask(router)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_garbled")
        assert elsewhere.requests == []


def test_an_answer_that_ends_with_its_connection(stub: Stub) -> None:
    """HTTP/1.0's way: whole ones pass, and a death in the middle is not taken for an end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n\r\n"
    plain, stream = head % b"application/json", head % b"text/event-stream"
    events = b"".join(stream_events(3))
    with running_router([stub.url], retries={"attempts": 2, "backoff_s": 0.01}) as router:
        stub.script(Behaviour(raw=plain + PLAIN))
        assert ask(router).content == PLAIN
        stub.script(Behaviour(raw=plain + PLAIN[:-9]))
        assert ask(router).json()["error"]["code"] == "backend_died"
        stub.script(Behaviour(raw=stream + events))
        assert ask(router, {**CHAT, "stream": True}).content == events
        stub.script(Behaviour(raw=stream + events[:-20]))
        cut = ask(router, {**CHAT, "stream": True}).text
        assert json.loads(cut.rstrip().rsplit("data: ", 1)[1])["error"]["code"] == "backend_died"
        router.wait_for_metric(1, "entropy_rft_requests_total", 'status="stream_error"')


def test_a_long_answer_that_dies_is_not_taken_for_whole(stub: Stub) -> None:
    """Too long to be held back: its head was sent, so the connection is cut."""
    long = Behaviour((PLAIN, b" " * 100_000, b" "), framing="chunked")
    with running_router([stub.url], limits={"max_buffered_bytes": 1000}) as router:
        stub.script(long)
        assert len(ask(router).content) == len(PLAIN) + 100_001
        stub.script(Behaviour(long.pieces, framing="chunked", stop_before=2, stop="abort"))
        with pytest.raises(httpx.RemoteProtocolError):
            ask(router)
        router.assert_idle()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health"])
def test_an_address_with_a_slash_too_many(stub: Stub, path: str) -> None:
    """No redirect: it would name the address that a client wrote in Host, and behind TLS one without."""
    with running_router([stub.url]) as router:
        for method in ("POST", "GET"):
            answer = httpx.request(method, f"{router.url}{path}/", json=CHAT, timeout=PATIENCE)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert answer.headers["x-request-id"]
    assert not stub.requests


def test_the_model_is_renamed(stub: Stub) -> None:
    with running_router([stub.url], served_model_name="theirs") as router:
        ask(router)
    assert stub.requests[-1].json["model"] == "theirs"


def test_busy(stub: Stub) -> None:
    with running_router([stub.url], limits={"max_requests": 1}) as router:
        stub.script(Behaviour(stop_before=0))
        first = threading.Thread(target=ask, args=(router,))
        first.start()
        stub.wait_for(lambda stub: stub.in_progress == 1)
        refused = ask(router)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "router_busy")
        assert refused.headers["retry-after"] == "1"
        stub.release()
        first.join(PATIENCE)
        assert ask(router).status_code == 200


def test_under_another_server_too(stub: Stub) -> None:
    """Mounted in a plain uvicorn: without our connection class a client that leaves still ends its request."""
    settings = load_settings(None, {"backends": stub.url})
    app = create_app(settings, features=EASY)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    RunningRouter._wait(lambda: server.started, lambda: "not started")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
    assert httpx.post(url, json=CHAT, timeout=PATIENCE).content == PLAIN
    stub.script(Behaviour.stream(stop_before=2, stop="hang"))
    with httpx.stream("POST", url, json={**CHAT, "stream": True}, timeout=PATIENCE) as response:
        next(response.iter_bytes())
    stub.wait_for(lambda stub: stub.disconnects == 1)
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--port", "x"], "port: input should be a valid integer"),
        (["--config", "/nowhere.yaml"], "configuration '/nowhere.yaml' cannot be read: No such file or directory"),
        (["--check", "--backends", "http://a", "--probe", "/nowhere"], "features.kind is missing"),
        (["--backends", "http://127.0.0.1:9", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 8000"),
        (
            ["--check", "--backends", "http://a", "--strategies", "/nowhere.yaml"],
            "strategies '/nowhere.yaml' cannot be",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "entropy_rft", "serve", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("entropy-rft: error: ")
    assert message in line
