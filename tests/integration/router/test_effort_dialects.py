"""A limit on the thinking, an effort and the system role, asked for in Messages and in Responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour, Request
from stub_dialects import answered
from wire import Reply, exchange, request

pytestmark = pytest.mark.integration

STRATEGIES: dict[str, Any] = {"easy": {"instruction": "Be brief.", "thinking_tokens": 2048, "reasoning_effort": "low"}}
SETTINGS: dict[str, Any] = {"strategies": STRATEGIES, "max_tokens": 8000, "client_max_tokens": "budget"}
USER = {"role": "user", "content": "What is 2 + 2?"}
OF_VLLM = "thinking_token_budget is set but reasoning_config is not configured."


def message(router: RunningRouter, **fields: Any) -> Reply:
    body = {"model": "m", "messages": [USER], "max_tokens": 4000, "difficulty": "easy", **fields}
    return exchange(router.port, request(json.dumps(body).encode(), path="/v1/messages"))


def response(router: RunningRouter, **fields: Any) -> Reply:
    return exchange(
        router.port, request(json.dumps({"model": "m", "input": "2?", **fields}).encode(), path="/v1/responses")
    )


def refusing(words: str) -> Any:
    def answer(asked: Request) -> Behaviour | None:
        return Behaviour.error(400, words) if "thinking" in asked.json else answered(asked)

    return answer


def limits(stub: Stub) -> list[tuple[Any, Any]]:
    return [(asked.json.get("thinking", {}).get("budget_tokens"), asked.json["max_tokens"]) for asked in stub.requests]


@pytest.mark.parametrize("words", [OF_VLLM, "unexpected field"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_without_a_limit_gets_the_share_of_a_message(stub: Stub, words: str, stream: bool) -> None:
    stub.answer = refusing(words)
    with running_router([stub.url], **SETTINGS) as router:
        for _ in range(2):
            reply = message(router, stream=stream)
            assert (reply.status, reply.whole) == (200, True)
            assert "max_tokens=1600" in reply.headers["x-entropy-rft-applied"]
            assert "thinking" not in reply.headers["x-entropy-rft-applied"]
        assert router.metric("entropy_rft_backend_limits_thinking") == 0
        router.assert_idle()
    assert limits(stub) == [(2048, 4000), (None, 1600), (None, 1600)]


def test_each_path_is_remembered_for_itself(stub: Stub) -> None:
    stub.answer = refusing(OF_VLLM)
    with running_router([stub.url], **SETTINGS) as router:
        assert message(router).status == 200
        body = json.dumps({"model": "m", "prompt": "2 +", "difficulty": "easy"}).encode()
        stub.answer = None
        assert exchange(router.port, request(body, path="/v1/completions")).status == 200
    assert stub.requests[-1].json["thinking_token_budget"] == 2048


def test_a_limit_that_is_known_is_shown(stub: Stub) -> None:
    stub.answer = answered
    with running_router([stub.url], **SETTINGS) as router:
        shown = message(router).headers["x-entropy-rft-applied"].split(", ")
        assert {"instruction=system", "thinking.budget_tokens=2048", "output_config.effort=low"} <= set(shown)
        assert router.metric("entropy_rft_backend_limits_thinking") == 1
        assert router.metric("entropy_rft_applied_total", 'field="thinking.budget_tokens"') == 1


def test_a_clients_thinking_that_is_refused_stays_refused(stub: Stub) -> None:
    stub.answer = refusing(OF_VLLM)
    with running_router([stub.url], **SETTINGS) as router:
        reply = message(router, thinking={"type": "enabled", "budget_tokens": 1024})
        assert (reply.status, json.loads(reply.body)["type"]) == (400, "error")
    # Once more only because the system message might have been the cause.
    assert limits(stub) == [(1024, 4000)] * 2
    assert ["system" in asked.json for asked in stub.requests] == [True, False]


def test_neither_the_limit_nor_the_system_role_of_a_message_is_known(stub: Stub) -> None:
    def answer(asked: Request) -> Behaviour | None:
        if "system" in asked.json:
            return Behaviour.error(400, "System role not supported")
        return refusing(OF_VLLM)(asked)  # type: ignore[no-any-return]

    stub.answer = answer
    with running_router([stub.url], **SETTINGS) as router:
        for _ in range(2):
            reply = message(router)
            assert reply.status == 200
            assert "instruction=user_end" in reply.headers["x-entropy-rft-applied"]
            before, asked = len(stub.requests), stub.requests[-1].json
            assert asked["messages"] == [{**USER, "content": "What is 2 + 2?\n\nBe brief."}]
            assert "system" not in asked
        assert message(router).status == 200
        assert len(stub.requests) == before + 1


def test_a_continued_response_gets_the_strategys_fields_from_its_holder(stub: Stub) -> None:
    with Stub(answer=answered) as other:
        stub.answer = answered
        with running_router([stub.url, other.url], client_reasoning_effort="difficulty", **SETTINGS) as router:
            first = response(router, reasoning={"effort": "low"})
            holder = stub if stub.requests else other
            assert (first.headers["x-entropy-rft-difficulty"], first.headers["x-entropy-rft-reason"]) == (
                "easy",
                "client",
            )
            for _ in range(4):
                previous = json.loads(first.body)["id"]
                reply = response(router, previous_response_id=previous, reasoning={"effort": "low", "summary": "auto"})
                assert reply.status == 200
            assert len(holder.requests) == 5
    assert holder.requests[-1].json["reasoning"] == {"summary": "auto", "effort": "low"}  # the strategy's
    assert holder.requests[-1].json["max_output_tokens"] == 3200
    assert holder.requests[-1].json["instructions"] == "Be brief."
