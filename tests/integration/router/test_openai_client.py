"""The official openai client through the router: what it gets is what the backend sent, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from running import FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour
from stub_openai import ANSWER, JSON_ANSWER, TOOL_CALL, USAGE, realistic

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty

pytestmark = pytest.mark.integration

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
HARD = DEFAULT_STRATEGIES[Difficulty.HARD]
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub(answer=realistic) as stub:
        yield stub


@pytest.fixture(scope="module")
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], features=FixedFeatures((0.9, 0.06, 0.04)), max_tokens=1000) as router:
        yield router


@pytest.fixture
def client(router: RunningRouter, stub: Stub) -> Iterator[Any]:
    stub.requests.clear()
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="the-client's", max_retries=0) as client:
        yield client


def sent(stub: Stub) -> bytes:
    """The body that the stub gave to its last request."""
    return b"".join(realistic(stub.requests[-1]).pieces)


def test_plain(client: Any, stub: Stub) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
    assert raw.content == sent(stub)
    assert raw.parse().choices[0].message.content == ANSWER
    assert raw.headers["x-entropy-rft-difficulty"] == "easy"
    assert float(raw.headers["x-entropy-rft-confidence"]) == pytest.approx(0.9, abs=1e-3)
    assert 0 <= float(raw.headers["x-entropy-rft-routing-ms"]) < 10_000
    assert raw.headers["x-entropy-rft-reason"] == "probe"
    assert raw.headers["x-request-id"]
    asked = stub.requests[-1]
    assert asked.path == "/v1/chat/completions"
    assert asked.json == {
        "model": "m",
        "messages": [{"role": "system", "content": EASY.instruction}, *QUESTION],
        "temperature": EASY.temperature,
        "max_tokens": EASY.max_tokens(1000),
    }
    assert "the-client's" not in str(asked.headers)


def test_streamed(client: Any, stub: Stub) -> None:
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION, stream=True) as raw:
        assert raw.headers["x-entropy-rft-difficulty"] == "easy"
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert b"".join(raw.iter_bytes()) == sent(stub)
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER


def test_usage_at_the_end_of_a_stream(client: Any, stub: Stub) -> None:
    chunks = list(
        client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert stub.requests[-1].json["stream_options"] == {"include_usage": True}
    assert chunks[-1].usage.completion_tokens == USAGE["completion_tokens"]


def test_async(router: RunningRouter, stub: Stub) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model=f"m{i}", messages=QUESTION) for i in range(20))
            )
            assert [answer.model for answer in answers] == [f"m{i}" for i in range(20)]
            stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == ANSWER

    asyncio.run(ask())


def test_tools_over_several_turns(client: Any, stub: Stub) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be terse."}, *QUESTION]
    first = client.chat.completions.create(model="m", messages=messages, tools=[TOOL], tool_choice="auto")
    call = first.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("add", TOOL_CALL["function"]["arguments"])
    assert stub.requests[-1].json["tools"] == [TOOL]
    assert stub.requests[-1].json["tool_choice"] == "auto"

    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "4"},
    ]
    second = client.chat.completions.create(model="m", messages=messages, tools=[TOOL])
    assert second.choices[0].message.content == ANSWER
    passed = stub.requests[-1].json["messages"]
    assert passed[0] == {"role": "system", "content": f"Be terse.\n\n{EASY.instruction}"}
    assert passed[1:] == messages[1:]


def test_tools_streamed(client: Any) -> None:
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["add"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(client: Any, stub: Stub, stream: bool) -> None:
    answer = client.chat.completions.create(model="m", messages=QUESTION, n=3, stream=stream)
    if stream:
        assert {choice.index for chunk in answer for choice in chunk.choices} == {0, 1, 2}
    else:
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert stub.requests[-1].json["n"] == 3


def test_json_mode(client: Any, stub: Stub) -> None:
    answer = client.chat.completions.create(model="m", messages=QUESTION, response_format={"type": "json_object"})
    assert answer.choices[0].message.content == JSON_ANSWER
    assert stub.requests[-1].json["response_format"] == {"type": "json_object"}


def test_logprobs(client: Any, stub: Stub) -> None:
    answer = client.chat.completions.create(model="m", messages=QUESTION, logprobs=True, top_logprobs=2)
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ANSWER.split()
    assert (stub.requests[-1].json["logprobs"], stub.requests[-1].json["top_logprobs"]) == (True, 2)


def test_fields_that_nobody_knows_go_through(client: Any, stub: Stub) -> None:
    extra = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}, "größe": [1, {"x": None}], "seed": 2**62}
    client.chat.completions.create(model="m", messages=QUESTION, extra_body=extra)
    assert {key: stub.requests[-1].json[key] for key in extra} == extra


@pytest.mark.parametrize("where", ["body", "header"])
def test_the_client_says_the_difficulty(client: Any, stub: Stub, where: str) -> None:
    said: dict[str, Any] = (
        {"extra_body": {"difficulty": "hard"}}
        if where == "body"
        else {"extra_headers": {"x-entropy-rft-difficulty": "hard"}}
    )
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION, **said)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("hard", "client")
    asked = stub.requests[-1].json
    assert "difficulty" not in asked
    assert asked["temperature"] == HARD.temperature
    assert asked["messages"][0]["content"] == HARD.instruction


def test_the_clients_values_win(client: Any, stub: Stub) -> None:
    client.chat.completions.create(model="m", messages=QUESTION, temperature=0.0, max_completion_tokens=77)
    asked = stub.requests[-1].json
    assert (asked["temperature"], asked["max_completion_tokens"]) == (0.0, 77)
    assert "max_tokens" not in asked


def test_an_image_is_normal(client: Any, stub: Stub) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}]
    raw = client.chat.completions.with_raw_response.create(model="m", messages=messages)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("normal", "image")
    assert stub.requests[-1].json["messages"][-1] == messages[0]


@pytest.mark.parametrize("stream", [False, True])
def test_text_completions(client: Any, stub: Stub, stream: bool) -> None:
    answer = client.completions.create(model="m", prompt="2 + 2 =", stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == ANSWER
    asked = stub.requests[-1]
    assert (asked.path, asked.json["prompt"]) == ("/v1/completions", "2 + 2 =")
    assert asked.json["temperature"] == EASY.temperature


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["stub"]


def test_a_users_mistake_is_the_backends_word(client: Any, stub: Stub) -> None:
    stub.script(Behaviour.error(400, "top_p must be in (0, 1]"))
    with pytest.raises(openai.BadRequestError, match="top_p must be in") as refusal:
        client.chat.completions.create(model="m", messages=QUESTION, top_p=0.5)
    assert refusal.value.response.headers["x-request-id"]
    assert len(stub.requests) == 1  # nobody tries that again


def test_a_mistake_about_the_difficulty(client: Any, stub: Stub) -> None:
    with pytest.raises(openai.BadRequestError, match="difficulty") as refusal:
        client.chat.completions.create(model="m", messages=QUESTION, extra_body={"difficulty": "esay"})
    assert refusal.value.param == "difficulty"
    assert refusal.value.type == "invalid_request_error"
    assert not stub.requests


def test_an_unknown_path_is_an_openai_error(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.embeddings.create(model="m", input="x")
    assert refusal.value.body["message"]
