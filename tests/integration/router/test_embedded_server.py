"""The embedded engine over HTTP: the official client, plain requests, and a probe's traces collected from it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.models.sources import model_source
from entropy_rft.router.embedded import EmbeddedServer
from entropy_rft.tasks import load_task

pytestmark = pytest.mark.integration

MODEL = DEFAULT_MODEL
QUESTIONS: list[Any] = [row["prompt"] for row in load_task(DEFAULT_TASK, split="test", limit=9).dataset]
MESSAGES = QUESTIONS[0]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(model_source(DEFAULT_MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> str:
    return server.start()  # again: the same


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Greedy answers to QUESTIONS by `model.generate`."""
    from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer

    sampler = TransformersSampler(*load_model_and_tokenizer(MODEL, device="cpu"))
    return [group[0].text for group in sampler.sample(QUESTIONS, temperature=0, max_tokens=120, progress=False)]


def wait_until_idle(server: EmbeddedServer, limit: float = 60) -> None:
    assert server.engine is not None
    deadline = time.monotonic() + limit
    while server.engine.engine.running:
        assert time.monotonic() < deadline, "the engine goes on writing for a client that has gone"
        time.sleep(0.01)  # the engine announces this nowhere


def test_the_model(client: openai.OpenAI, url: str) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.model_extra) == (MODEL, {"max_model_len": 4096})
    assert httpx.get(f"{url}/health").status_code == 200


def test_plain(client: openai.OpenAI, expected: list[str]) -> None:
    for question, text in zip(QUESTIONS[:2], expected, strict=False):
        answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=120)
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", text)
        assert choice.finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed(client: openai.OpenAI, expected: list[str]) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            max_completion_tokens=120,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected[0]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens >= len(chunks) - 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_at_once(url: str, expected: list[str]) -> None:
    """Plain and streamed, more than fit into one batch; nobody's answer depends on the others."""

    async def ask(client: openai.AsyncOpenAI, question: Any, stream: bool) -> str:
        fields: dict[str, Any] = {
            "model": MODEL,
            "messages": question,
            "temperature": 0,
            "max_tokens": 120,
        }
        if not stream:
            return (await client.chat.completions.create(**fields)).choices[0].message.content
        parts = await client.chat.completions.create(**fields, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in parts])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client:
            asked = [ask(client, QUESTIONS[i % len(QUESTIONS)], i % 2 == 0) for i in range(5 * len(QUESTIONS))]
            return await asyncio.gather(*asked)

    assert asyncio.run(main()) == expected * 5


def test_options(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=MESSAGES, **{"max_tokens": 40} | fields)

    several = ask(n=3, seed=7, temperature=1.0)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in several.choices]
    assert texts == [choice.message.content for choice in ask(n=3, seed=7, temperature=1.0).choices]
    assert len(set(texts)) > 1

    short = ask(temperature=0, max_tokens=3).choices[0]
    assert short.finish_reason == "length"

    stopped = ask(temperature=0, stop=["="]).choices[0]
    whole = ask(temperature=0).choices[0].message.content
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index("=")], "stop")

    told = ask(temperature=0, logprobs=True, top_logprobs=3, max_tokens=5)
    content = told.choices[0].logprobs.content
    assert len(content) == told.usage.completion_tokens == 5
    assert all(entry.logprob == max(top.logprob for top in entry.top_logprobs) for entry in content)  # greedy

    text = client.completions.create(model=MODEL, prompt="17+2=", max_tokens=4, logprobs=1)
    assert text.object == "text_completion"
    assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens


def test_instructions_change_the_answer(client: openai.OpenAI) -> None:
    """What the router adds is really seen."""
    from entropy_rft.tasks import DIRECT

    fields: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 160}
    long = client.chat.completions.create(messages=MESSAGES, **fields)
    short = client.chat.completions.create(messages=[{"role": "system", "content": DIRECT}, *MESSAGES], **fields)
    assert short.usage.completion_tokens < long.usage.completion_tokens


def test_errors_in_openais_shape(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    for response, status in (
        (httpx.post(f"{url}/v1/chat/completions", content=b"\xff{"), 400),
        (httpx.post(f"{url}/v1/chat/completions", content=b"[" * 100_000), 400),
        (httpx.post(f"{url}/v1/chat/completions", json=[]), 400),
        (httpx.post(f"{url}/v1/chat/completions", content=b" " * (33 * 2**20)), 413),
        (httpx.get(f"{url}/v1/chat/completions"), 405),
        (httpx.get(f"{url}/nowhere"), 404),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_stream_on_the_wire(url: str) -> None:
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 4, "temperature": 0}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert "error" not in json.loads(event.removeprefix("data: "))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_completions(server: EmbeddedServer, url: str, stream: bool) -> None:
    assert server.engine is not None
    wait_until_idle(server)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": MESSAGES, "stream": stream, "max_tokens": 4000, "ignore_eos": True, "n": 4}).encode()
    before = server.engine.engine.steps
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        if stream:
            assert b"200 OK" in connection.recv(4096)
        else:
            while not server.engine.engine.running:
                time.sleep(0.001)
    wait_until_idle(server)
    assert server.engine.engine.steps - before < 3500


def test_traces_can_be_collected_from_it(url: str) -> None:
    """`OpenAISampler` gets the tokens themselves: greedy, the same as from the model."""
    from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer
    from entropy_rft.sampling.openai_sampler import OpenAISampler

    model, tokenizer = load_model_and_tokenizer(MODEL, device="cpu")
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "progress": False}
    ours = TransformersSampler(model, tokenizer).sample(QUESTIONS[:3], **settings)
    assert OpenAISampler(url, tokenizer).sample(QUESTIONS[:3], **settings) == ours


def test_closing_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with EmbeddedServer(MODEL, served_model_name="other") as running:
        address = running.url
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "other"
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("embedded")]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/v1/models")
    running.close()  # again: nothing


def test_a_model_that_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        EmbeddedServer("/no/such/place").start()
