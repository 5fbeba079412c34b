"""The official openai client speaks Responses through the router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from running import PATIENCE, FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour
from stub_dialects import ANSWER, ARGUMENTS, INPUT_TOKENS, OUTPUT_TOKENS, answered
from wire import exchange, get, request

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty

pytestmark = pytest.mark.integration

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
HARD = DEFAULT_STRATEGIES[Difficulty.HARD]
QUESTION = "What is 2 + 2?"
TOOL: Any = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub(answer=answered) as stub:
        yield stub


@pytest.fixture(scope="module")
def router(stub: Stub) -> Iterator[RunningRouter]:
    with running_router([stub.url], features=FixedFeatures((0.9, 0.06, 0.04)), max_tokens=1000) as router:
        yield router


@pytest.fixture
def client(router: RunningRouter, stub: Stub) -> Iterator[openai.OpenAI]:
    stub.requests.clear()
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="the-client's", max_retries=0) as client:
        yield client


def test_plain(client: openai.OpenAI, stub: Stub, router: RunningRouter) -> None:
    before = [router.metric("entropy_rft_tokens_total", f'kind="{kind}"') for kind in ("prompt", "completion")]
    raw = client.responses.with_raw_response.create(model="m", input=QUESTION)
    assert b'"x_unknown": 1.5' in raw.content  # indented by 3: as the backend wrote it
    assert b'\n   "id"' in raw.content
    assert raw.parse().output_text == ANSWER
    assert raw.headers["x-entropy-rft-difficulty"] == "easy"
    assert raw.headers["x-entropy-rft-reason"] == "probe"
    asked = stub.requests[-1]
    assert asked.path == "/v1/responses"
    assert asked.json == {
        "model": "m",
        "input": QUESTION,
        "instructions": EASY.instruction,
        "temperature": EASY.temperature,
        "max_output_tokens": EASY.max_tokens(1000),
    }
    assert "the-client's" not in str(asked.headers)
    after = [router.metric("entropy_rft_tokens_total", f'kind="{kind}"') for kind in ("prompt", "completion")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [INPUT_TOKENS, OUTPUT_TOKENS]
    router.wait_for_metric(1, "entropy_rft_requests_total", 'endpoint="responses"', 'status="200"')


def test_streamed(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert final.output_text == ANSWER
    assert final.usage is not None
    assert final.usage.output_tokens == OUTPUT_TOKENS


def test_a_stream_is_passed_on_byte_for_byte(router: RunningRouter, stub: Stub) -> None:
    sent = answered(stub_request(stub, router))
    body = {"model": "m", "input": QUESTION, "stream": True}
    stub.script(sent)
    answer = httpx.post(f"{router.url}/v1/responses", json=body, timeout=PATIENCE)
    assert answer.content == b"".join(sent.pieces)
    assert answer.headers["content-type"].startswith("text/event-stream")


def stub_request(stub: Stub, router: RunningRouter) -> Any:
    httpx.post(f"{router.url}/v1/responses", json={"input": QUESTION, "stream": True}, timeout=PATIENCE)
    return stub.requests[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_over_several_turns(client: openai.OpenAI, stub: Stub, stream: bool) -> None:
    given: list[Any] = [{"role": "developer", "content": "Be terse."}, {"role": "user", "content": QUESTION}]
    if stream:
        with client.responses.stream(model="m", input=given, tools=[TOOL]) as events:
            first: Any = events.get_final_response()
    else:
        first = client.responses.create(model="m", input=given, tools=[TOOL])
    (call,) = first.output
    assert (call.name, call.arguments) == ("add", ARGUMENTS)
    assert stub.requests[-1].json["tools"] == [TOOL]
    own = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    given += [own, {"type": "function_call_output", "call_id": call.call_id, "output": "4"}]
    assert client.responses.create(model="m", input=given, tools=[TOOL]).output_text == ANSWER
    passed = stub.requests[-1].json["input"]
    assert passed == [{"role": "developer", "content": f"Be terse.\n\n{EASY.instruction}"}, *given[1:]]
    assert "instructions" not in stub.requests[-1].json


def test_the_clients_values_win(client: openai.OpenAI, stub: Stub) -> None:
    own: dict[str, Any] = {
        "temperature": 0.0,
        "max_output_tokens": 77,
        "reasoning": {"effort": "low"},
        "metadata": {"größe": "1"},
        "previous_response_id": "resp_of_old",
    }
    client.responses.create(model="m", input=QUESTION, instructions="Be kind.", **own)
    asked = stub.requests[-1].json
    assert {name: asked[name] for name in own} == own
    assert asked["instructions"] == f"Be kind.\n\n{EASY.instruction}"


@pytest.mark.parametrize("where", ["body", "header"])
def test_the_client_says_the_difficulty(client: openai.OpenAI, stub: Stub, where: str) -> None:
    said: dict[str, Any] = (
        {"extra_body": {"difficulty": "hard"}}
        if where == "body"
        else {"extra_headers": {"x-entropy-rft-difficulty": "hard"}}
    )
    raw = client.responses.with_raw_response.create(model="m", input=QUESTION, **said)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("hard", "client")
    assert "difficulty" not in stub.requests[-1].json
    assert stub.requests[-1].json["instructions"] == HARD.instruction


def test_an_image_is_normal(client: openai.OpenAI, stub: Stub) -> None:
    parts = [{"type": "input_text", "text": "it?"}, {"type": "input_image", "image_url": "data:x", "detail": "auto"}]
    given: Any = [{"role": "user", "content": parts}]
    raw = client.responses.with_raw_response.create(model="m", input=given)
    assert (raw.headers["x-entropy-rft-difficulty"], raw.headers["x-entropy-rft-reason"]) == ("normal", "image")
    assert stub.requests[-1].json["input"] == given


def test_a_limit_of_ours_that_does_not_fit_is_left_out(client: openai.OpenAI, stub: Stub) -> None:
    stub.script(Behaviour.error(400, "max_output_tokens=400 cannot be greater than max_model_len=100."))
    assert client.responses.create(model="m", input=QUESTION).output_text == ANSWER
    assert [request.json.get("max_output_tokens") for request in stub.requests] == [400, None]


def test_a_template_without_a_system_role(stub: Stub) -> None:
    """The instruction moves to the end of the user's turn, here too, and what is learned holds for every dialect."""
    refusal = Behaviour.error(400, "System role not supported")
    with running_router([stub.url]) as router:
        stub.requests.clear()
        stub.script(refusal)
        body: dict[str, Any] = {"input": QUESTION}
        answers = [httpx.post(f"{router.url}/v1/responses", json=body, timeout=PATIENCE) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        asked = [request.json for request in stub.requests]
        assert ["instructions" in each for each in asked] == [True, False, False]
        normal = DEFAULT_STRATEGIES[Difficulty.NORMAL].instruction
        assert asked[1]["input"] == asked[2]["input"] == f"{QUESTION}\n\n{normal}"
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": QUESTION}]}
        assert httpx.post(f"{router.url}/v1/messages", json=body, timeout=PATIENCE).status_code == 200
        assert stub.requests[-1].json["messages"] == [{"role": "user", "content": f"{QUESTION}\n\n{normal}"}]


def test_a_users_mistake_is_the_backends_word(client: openai.OpenAI, stub: Stub) -> None:
    stub.script(Behaviour.error(400, "top_p must be in (0, 1]"))
    with pytest.raises(openai.BadRequestError, match="top_p must be in"):
        client.responses.create(model="m", input=QUESTION, top_p=0.5)
    assert len(stub.requests) == 1


def test_errors_have_openais_shape(client: openai.OpenAI, stub: Stub) -> None:
    with pytest.raises(openai.BadRequestError, match="input must be") as refusal:
        client.responses.create(model="m", input=[])
    assert (refusal.value.param, refusal.value.type) == ("input", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="difficulty"):
        client.responses.create(model="m", input=QUESTION, extra_body={"difficulty": "esay"})
    assert not stub.requests


def test_a_backend_that_dies_in_the_middle(client: openai.OpenAI, stub: Stub, router: RunningRouter) -> None:
    whole = answered(stub_request(stub, router))
    stub.script(replace(whole, stop_before=5, stop="abort"))
    events = list(client.responses.create(model="m", input=QUESTION, stream=True))
    *before, last = events
    assert [event.type for event in before[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert last.type == "error"
    assert (last.code, last.sequence_number) == ("backend_died", before[-1].sequence_number + 1)
    stub.script(replace(whole, stop_before=len(whole.pieces), stop="abort"))  # after its last event: nothing is lost
    events = list(client.responses.create(model="m", input=QUESTION, stream=True))
    assert events[-1].type == "response.completed"


def nothing_stored(request: Any) -> Behaviour:
    return Behaviour.error(404, "Response not found.")


def busy(request: Any) -> Behaviour:
    return Behaviour.error(429)


def test_an_answer_is_continued_where_it_is_stored() -> None:
    with (
        Stub(answer=answered) as holder,
        Stub(answer=busy) as other,
        running_router([holder.url, other.url]) as router,
        openai.OpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for stream in (False, True):
            other.answer = busy
            given: Any = client.responses.create(model="m", input=QUESTION, stream=stream)
            stored = next(iter(list(given))).response.id if stream else given.id
            other.answer = nothing_stored
            others = len(other.requests)
            for _ in range(4):
                client.responses.create(model="m", input="And times two?", previous_response_id=stored)
            assert holder.requests[-1].json["previous_response_id"] == stored
            assert len(other.requests) == others
        router.assert_idle()


def test_an_answer_that_no_backend_has() -> None:
    with (
        Stub(answer=nothing_stored) as first,
        Stub(answer=nothing_stored) as second,
        running_router([first.url, second.url]) as router,
    ):
        with (
            openai.OpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.NotFoundError, match="Response not found"),
        ):
            client.responses.create(model="m", input="And?", previous_response_id="resp_nowhere")
        assert [len(stub.requests) for stub in (first, second)] == [1, 1]
        router.assert_idle()


def test_a_router_that_does_not_know_the_holder_finds_it() -> None:
    with Stub(answer=nothing_stored) as first, Stub(answer=nothing_stored) as second, Stub(answer=answered) as holder:
        for stub in (first, second):
            stub.gets["/v1/responses/resp_7"] = Behaviour.error(404, "not found")
        holder.gets["/v1/responses/resp_7"] = Behaviour.json({"id": "resp_7", "object": "response", "output": []})
        with running_router([first.url, second.url, holder.url]) as router:
            with openai.OpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as client:
                assert client.responses.retrieve("resp_7").id == "resp_7"
                for _ in range(5):
                    client.responses.create(model="m", input="And?", previous_response_id="resp_7")
                assert len(holder.requests) == 5
                assert not first.requests
                assert not second.requests
                client.responses.cancel("resp_7")
                assert holder.requests[-1].path == "/v1/responses/resp_7/cancel"
                client.responses.delete("resp_7")
                assert (holder.requests[-1].method, holder.requests[-1].path) == ("DELETE", "/v1/responses/resp_7")
                holder.refuse()  # only it could answer: nobody else is asked
                with pytest.raises((openai.InternalServerError, openai.APIStatusError)) as refusal:
                    client.responses.create(model="m", input="And?", previous_response_id="resp_7")
                assert refusal.value.status_code in (502, 503)
                assert not first.requests
            holder.listen()
            router.assert_idle()


@pytest.mark.parametrize("answer", ["..%2fmetrics", "%2e%2e", ".", "a%20b", "r%3Fx", "r" * 201])
def test_paths_of_stored_answers_lead_nowhere_else(router: RunningRouter, answer: str) -> None:
    reply = get(router.port, f"/v1/responses/{answer}")
    assert (reply.status, reply.error["code"]) == (404, "not_found")


def test_a_query_reaches_the_backend_that_holds_the_answer(router: RunningRouter, stub: Stub) -> None:
    stub.gets["/v1/responses/resp_1?starting_after=3&include[]=x"] = Behaviour.json({"id": "the one"})
    reply = get(router.port, "/v1/responses/resp_1?starting_after=3&include[]=x")
    assert json.loads(reply.body) == {"id": "the one"}


def test_methods_of_stored_answers(router: RunningRouter) -> None:
    reply = exchange(router.port, request(b"", path="/v1/responses/resp_1"))
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
