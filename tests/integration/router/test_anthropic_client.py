"""The official anthropic client through the router: what it gets is what the backend sent, byte for byte."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest
from running import PATIENCE, FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour
from stub_dialects import ANSWER, ARGUMENTS, INPUT_TOKENS, OUTPUT_TOKENS, answered

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty

pytestmark = pytest.mark.integration

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
HARD = DEFAULT_STRATEGIES[Difficulty.HARD]
QUESTION: Any = [{"role": "user", "content": "What is 2 + 2?"}]
TOOL: Any = {"name": "add", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
KEY = "the-client's"
FEATURES = FixedFeatures((0.9, 0.06, 0.04))


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub(answer=answered) as stub:
        yield stub


@pytest.fixture(scope="module")
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], features=FEATURES, max_tokens=1000) as router:
        yield router


@pytest.fixture
def client(router: RunningRouter, stub: Stub) -> Iterator[anthropic.Anthropic]:
    stub.requests.clear()
    with connect(router) as client:
        yield client


def connect(router: RunningRouter, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=router.url, **{"api_key": KEY, "max_retries": 0, **options})


def post(router: RunningRouter, body: Any, path: str = "/v1/messages") -> httpx.Response:
    return httpx.post(router.url + path, json=body, timeout=PATIENCE)


def test_plain(client: anthropic.Anthropic, stub: Stub, router: RunningRouter) -> None:
    before = [router.metric("entropy_rft_tokens_total", f'kind="{kind}"') for kind in ("prompt", "completion")]
    raw = client.messages.with_raw_response.create(model="m", max_tokens=100, messages=QUESTION)
    assert b'\n   "x_unknown": 1.5' in raw.read()  # as the backend wrote it
    answer = raw.parse()
    assert answer.content[0].text == ANSWER
    assert raw.headers["x-entropy-rft-difficulty"] == "easy"
    assert raw.headers["x-entropy-rft-reason"] == "probe"
    asked = stub.requests[-1]
    assert asked.path == "/v1/messages"
    assert asked.json == {
        "model": "m",
        "max_tokens": 100,
        "messages": QUESTION,
        "system": EASY.instruction,
        "temperature": EASY.temperature,
    }
    assert "x-api-key" not in asked.headers
    assert KEY not in str(asked.headers)
    after = [router.metric("entropy_rft_tokens_total", f'kind="{kind}"') for kind in ("prompt", "completion")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [INPUT_TOKENS, OUTPUT_TOKENS]
    router.wait_for_metric(1, "entropy_rft_requests_total", 'endpoint="messages"', 'status="200"')


def test_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="m", max_tokens=100, messages=QUESTION) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", OUTPUT_TOKENS)


def test_a_stream_is_passed_on_byte_for_byte(router: RunningRouter, stub: Stub) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
    post(router, body)
    sent = answered(stub.requests[-1])
    stub.script(sent)
    answer = post(router, body)
    assert answer.content == b"".join(sent.pieces)
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_async(router: RunningRouter) -> None:
    async def ask() -> None:
        async with anthropic.AsyncAnthropic(base_url=router.url, api_key=KEY, max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.messages.create(model=f"m{i}", max_tokens=9, messages=QUESTION) for i in range(20))
            )
            assert [answer.model for answer in answers] == [f"m{i}" for i in range(20)]

    asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
def test_tools_over_several_turns(client: anthropic.Anthropic, stub: Stub, stream: bool) -> None:
    system: Any = [{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}]
    given: dict[str, Any] = {"model": "m", "max_tokens": 100, "system": system, "tools": [TOOL]}
    if stream:
        with client.messages.stream(messages=QUESTION, **given) as events:
            first = events.get_final_message()
    else:
        first = client.messages.create(messages=QUESTION, **given)
    (block,) = first.content
    assert block.type == "tool_use"
    assert (first.stop_reason, block.name, block.input) == ("tool_use", "add", json.loads(ARGUMENTS))
    assert stub.requests[-1].json["tools"] == [TOOL]
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "4"}
    turns: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(messages=turns, **given)
    assert second.content[0].text == ANSWER
    asked = stub.requests[-1].json
    assert asked["system"] == [*system, {"type": "text", "text": f"\n\n{EASY.instruction}"}]
    assert asked["messages"] == turns


def test_the_clients_values_win(client: anthropic.Anthropic, stub: Stub) -> None:
    own: dict[str, Any] = {
        "max_tokens": 2000,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["\n"],
        "metadata": {"user_id": "é"},
    }
    more = {"temperature": 0.0, "größe": [1]}  # the client's newest versions have no name for a temperature
    client.messages.create(model="m", messages=QUESTION, extra_body=more, **own)
    asked = stub.requests[-1].json
    assert {name: asked[name] for name in (*own, *more)} == own | more


def test_a_share_of_the_clients_limit(stub: Stub) -> None:
    settings: dict[str, Any] = {"features": FEATURES, "client_max_tokens": "budget"}
    with running_router([stub.url], **settings) as router, connect(router) as client:
        client.messages.create(model="m", max_tokens=2000, messages=QUESTION)
        assert stub.requests[-1].json["max_tokens"] == EASY.max_tokens(2000)
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        client.messages.create(model="m", max_tokens=2000, messages=QUESTION, thinking=thinking)
        assert stub.requests[-1].json["max_tokens"] == 1025
        assert stub.requests[-1].json["thinking"] == thinking


@pytest.mark.parametrize("where", ["body", "header"])
def test_the_client_says_the_difficulty(client: anthropic.Anthropic, stub: Stub, where: str) -> None:
    said: dict[str, Any] = (
        {"extra_body": {"difficulty": "hard"}}
        if where == "body"
        else {"extra_headers": {"x-entropy-rft-difficulty": "hard"}}
    )
    raw = client.messages.with_raw_response.create(model="m", max_tokens=9, messages=QUESTION, **said)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("hard", "client")
    assert "difficulty" not in stub.requests[-1].json
    assert stub.requests[-1].json["system"] == HARD.instruction


def test_an_image_is_normal(client: anthropic.Anthropic, stub: Stub) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    turns: Any = [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]}
    ]
    raw = client.messages.with_raw_response.create(model="m", max_tokens=9, messages=turns)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("normal", "image")
    assert stub.requests[-1].json["messages"] == turns


def test_a_count_is_passed_on(client: anthropic.Anthropic, stub: Stub, router: RunningRouter) -> None:
    raw = client.messages.with_raw_response.count_tokens(model="m", messages=QUESTION, system="Be terse.")
    assert raw.parse().input_tokens == INPUT_TOKENS
    assert not any(name.startswith("x-entropy-rft") for name in raw.headers)
    asked = stub.requests[-1]
    assert asked.path == "/v1/messages/count_tokens"
    assert asked.json == {"model": "m", "messages": QUESTION, "system": "Be terse."}
    labels = ('endpoint="count_tokens"', 'difficulty="none"')
    router.wait_for_metric(1, "entropy_rft_requests_total", *labels)


def test_a_query_changes_nothing(client: anthropic.Anthropic, stub: Stub) -> None:
    """Clients of beta features add one; vLLM reads none."""
    answer = client.beta.messages.create(model="m", max_tokens=9, messages=QUESTION, betas=["files-api-2025-04-14"])
    assert answer.content[0].text == ANSWER
    assert stub.requests[-1].path == "/v1/messages"
    assert "anthropic-beta" not in stub.requests[-1].headers


def test_the_backends_name_of_the_model(stub: Stub) -> None:
    with running_router([stub.url], served_model_name="theirs") as router, connect(router) as client:
        client.messages.create(model="mine", max_tokens=9, messages=QUESTION)
        client.messages.count_tokens(model="mine", messages=QUESTION)
    assert [request.json["model"] for request in stub.requests[-2:]] == ["theirs", "theirs"]


def test_keys(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As x-api-key or as a bearer token; neither reaches a backend, which gets its own."""
    monkeypatch.setenv("CLIENT_KEYS", KEY)
    monkeypatch.setenv("BACKEND_KEY", "the-backend's")
    backend = {"url": stub.url, "api_key_env": "BACKEND_KEY"}
    with running_router([backend], auth={"keys_env": "CLIENT_KEYS"}) as router:
        for given in ({"api_key": KEY}, {"api_key": None, "auth_token": KEY}):
            with connect(router, **given) as client:
                client.messages.create(model="m", max_tokens=9, messages=QUESTION)
                client.messages.count_tokens(model="m", messages=QUESTION)
            assert stub.requests[-1].headers["authorization"] == "Bearer the-backend's"
            assert KEY not in str(stub.requests[-1].headers)
        before = len(stub.requests)
        with connect(router, api_key="wrong") as client:
            for ask in (
                lambda: client.messages.create(model="m", max_tokens=9, messages=QUESTION),
                lambda: client.messages.count_tokens(model="m", messages=QUESTION),
            ):
                with pytest.raises(anthropic.AuthenticationError, match="give a valid key") as refusal:
                    ask()
                assert refusal.value.type == "authentication_error"
        assert len(stub.requests) == before


def test_vllms_errors_get_anthropics_types(client: anthropic.Anthropic, stub: Stub) -> None:
    words = {"type": "error", "error": {"type": "BadRequestError", "message": "top_k must be at least -1"}}
    stub.script(Behaviour.json(words, status=400), Behaviour.error(404, "no such model"))
    with pytest.raises(anthropic.BadRequestError, match="top_k must be") as refusal:
        client.messages.create(model="m", max_tokens=9, messages=QUESTION, extra_body={"top_k": -7})
    assert refusal.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError, match="no such model") as missing:
        client.messages.create(model="m", max_tokens=9, messages=QUESTION)
    assert missing.value.type == "not_found_error"


def test_the_routers_own_errors(client: anthropic.Anthropic, stub: Stub, router: RunningRouter) -> None:
    with pytest.raises(anthropic.BadRequestError, match="difficulty must be") as refusal:
        client.messages.create(model="m", max_tokens=9, messages=QUESTION, extra_body={"difficulty": "esay"})
    assert refusal.value.type == "invalid_request_error"
    for answer, status, kind in (
        (post(router, {"model": "m", "messages": QUESTION}), 400, "invalid_request_error"),
        (httpx.get(f"{router.url}/v1/messages", timeout=PATIENCE), 405, "invalid_request_error"),
        (post(router, {}, "/v1/messages/batches"), 404, "not_found_error"),
    ):
        assert answer.status_code == status
        assert answer.json() == {"type": "error", "error": {"type": kind, "message": answer.json()["error"]["message"]}}
    assert not stub.requests


def test_a_large_body(stub: Stub) -> None:
    with running_router([stub.url], limits={"max_body_bytes": 100}) as router:
        answer = post(router, {"model": "m", "max_tokens": 9, "messages": QUESTION * 9})
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


def test_no_backend_is_an_overload() -> None:
    """529 is Anthropic's status for it; the client tries again later."""
    with Stub(answer=answered) as stub, running_router([stub.url], retries={"attempts": 1}) as router:
        stub.answer = lambda request: Behaviour.error(503, "engine is full")
        with connect(router) as client, pytest.raises(anthropic.OverloadedError, match="engine is full") as refusal:
            client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        assert (refusal.value.status_code, refusal.value.type) == (529, "overloaded_error")
        router.wait_for_metric(1, "entropy_rft_requests_total", 'endpoint="messages"', 'status="529"')
        stub.answer = lambda request: Behaviour.error(429, "slow down", headers=(("retry-after", "7"),))
        with connect(router) as client, pytest.raises(anthropic.RateLimitError, match="slow down") as limited:
            client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        assert limited.value.response.headers["retry-after"] == "7"
        router.assert_idle()


def test_a_backend_that_dies_in_the_middle(client: anthropic.Anthropic, stub: Stub, router: RunningRouter) -> None:
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
    post(router, body)
    whole = answered(stub.requests[-1])
    stub.script(replace(whole, stop_before=5, stop="abort"))
    stream, events = client.messages.create(**body), []
    with pytest.raises(anthropic.APIStatusError, match="died in the middle") as failure:
        events.extend(event.type for event in stream)
    assert failure.value.type == "api_error"
    assert events == ["message_start", "content_block_start", "content_block_delta", "content_block_delta"]
    stub.script(replace(whole, stop_before=5, stop="abort"))
    answer = post(router, body)
    assert answer.content.startswith(b"".join(whole.pieces[:5]))
    name, data, *rest = answer.content.removeprefix(b"".join(whole.pieces[:5])).split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "api_error"
    stub.script(replace(whole, stop_before=len(whole.pieces), stop="abort"))  # after its last event: nothing is lost
    assert [event.type for event in client.messages.create(**body)][-1] == "message_stop"
    router.wait_for_metric(2, "entropy_rft_requests_total", 'endpoint="messages"', 'status="stream_error"')
    router.assert_idle()


def test_a_silent_stream_ends_with_a_timeout(stub: Stub) -> None:
    with running_router([stub.url], timeouts={"between_bytes_s": 0.3}) as router, connect(router) as client:
        body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": QUESTION, "stream": True}
        post(router, body)
        stub.script(replace(answered(stub.requests[-1]), stop_before=4, stop="hang"))
        with pytest.raises(anthropic.APIStatusError, match="nothing for too long") as failure:
            list(client.messages.create(**body))
        assert failure.value.type == "timeout_error"


def test_no_question_and_no_key_in_the_log(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "entropy_rft.router")
    with running_router([stub.url], log_requests=True) as router, connect(router) as client:
        client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        stub.script(Behaviour.error(500, "What is 2 + 2?"))
        with pytest.raises(anthropic.InternalServerError):
            client.messages.create(model="m", max_tokens=9, messages=QUESTION)
        router.wait_for_metric(2, "entropy_rft_requests_total", 'endpoint="messages"')
    said = " ".join(str(vars(record)) for record in caplog.records)
    assert "'endpoint': 'messages'" in said
    assert KEY not in said
    assert "2 + 2" not in said
