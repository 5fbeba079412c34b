"""A limit on the thinking before backends that know it, and before those that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import PLAIN, Behaviour, Request
from wire import Reply, exchange, request

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.router.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

USER = {"role": "user", "content": "What is 2 + 2?"}
LIMITED = {"strategies": {"easy": {"instruction": "", "thinking_tokens": 64}}, "max_tokens": 1000}
OF_VLLM = (  # vLLM 0.31 without --reasoning-parser
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/or "
    "--reasoning-config to use thinking_token_budget."
)


def unknown(message: str = OF_VLLM, status: int = 400) -> Any:
    def answer(asked: Request) -> Behaviour | None:
        return Behaviour.error(status, message) if "thinking_token_budget" in asked.json else None

    return answer


def ask(router: RunningRouter, difficulty: str = "easy", **fields: Any) -> Reply:
    body = {"model": "m", "messages": [USER], "difficulty": difficulty, **fields}
    return exchange(router.port, request(json.dumps(body).encode()))


def limits(stub: Stub) -> list[tuple[Any, Any]]:
    return [(asked.json.get("thinking_token_budget"), asked.json.get("max_tokens")) for asked in stub.requests]


def test_a_backend_that_knows_the_limit_gets_it(stub: Stub) -> None:
    with running_router([stub.url], **LIMITED) as router:
        reply = ask(router)
        assert (reply.status, reply.body) == (200, PLAIN)
        assert reply.headers["x-entropy-rft-applied"] == "temperature=0.5, thinking_token_budget=64, max_tokens=1000"
        assert router.metric("entropy_rft_applied_total", 'field="thinking_token_budget"', 'difficulty="easy"') == 1
        assert router.metric("entropy_rft_backend_limits_thinking") == 1
        assert "thinking_token_budget" not in ask(router, "normal").headers["x-entropy-rft-applied"]
    assert limits(stub) == [(64, 1000), (None, 1000)]


@pytest.mark.parametrize(("message", "status"), [(OF_VLLM, 400), ("unexpected field", 400), ("Extra inputs", 422)])
@pytest.mark.parametrize("stream", [False, True])
def test_one_that_does_not_is_asked_again_once(stub: Stub, message: str, status: int, stream: bool) -> None:
    stub.answer = unknown(message, status)
    with running_router([stub.url], **LIMITED) as router:
        for _ in range(3):
            reply = ask(router, stream=stream)
            assert (reply.status, reply.whole) == (200, True)
            assert reply.headers["x-entropy-rft-applied"] == "temperature=0.5, max_tokens=400"
        assert router.metric("entropy_rft_backend_limits_thinking") == 0
        assert router.metric("entropy_rft_requests_total", 'status="200"') == 3
        assert router.metric("entropy_rft_applied_total", 'field="thinking_token_budget"') == 0
        router.assert_idle()
    assert limits(stub) == [(64, 1000), (None, 400), (None, 400), (None, 400)]


def test_each_backend_is_remembered_for_itself(stub: Stub) -> None:
    with Stub() as other, running_router([stub.url, other.url], **LIMITED) as router:
        stub.answer = unknown()
        assert [ask(router).status for _ in range(6)] == [200] * 6
        assert {limit for limit, _ in limits(other)} == {64}
        assert [limit for limit, _ in limits(stub)].count(64) == 1
        assert {tokens for _, tokens in limits(other)} == {1000}


def test_a_refusal_for_another_reason_stays_one(stub: Stub) -> None:
    stub.answer = lambda asked: Behaviour.error(400, "no such thing")
    with running_router([stub.url], **LIMITED) as router:
        reply = ask(router)
        assert (reply.status, reply.error["message"]) == (400, "no such thing")
        assert len(stub.requests) == 2  # it might have been the limit
        stub.answer = None
        assert ask(router).status == 200  # now it is known that the limit is not the cause, so that …
        stub.answer = lambda asked: Behaviour.error(400, "no such thing")
        assert ask(router).status == 400
        assert len(stub.requests) == 4  # … nothing is asked twice
        router.assert_idle()


def test_a_backend_that_loses_the_limit_is_noticed(stub: Stub) -> None:
    """It was started again without a reasoning parser, before a health check saw it down."""
    with running_router([stub.url], **LIMITED) as router:
        assert ask(router).status == 200
        stub.answer = unknown()
        assert ask(router).status == 200
    assert limits(stub) == [(64, 1000), (64, 1000), (None, 400)]


def test_a_clients_own_limit_is_its_own(stub: Stub) -> None:
    stub.answer = unknown()
    with running_router([stub.url], **LIMITED) as router:
        assert ask(router, thinking_token_budget=5).status == 400
        assert len(stub.requests) == 1


def test_neither_the_limit_nor_the_system_role_is_known(stub: Stub) -> None:
    """Each refusal leaves one thing less; the answer comes, and nothing is asked in vain again."""

    def answer(asked: Request) -> Behaviour | None:
        if asked.json["messages"][0]["role"] == "system":
            return Behaviour.error(400, "System role not supported")
        return unknown()(asked)

    stub.answer = answer
    strategies = {"easy": {"instruction": "Be brief.", "thinking_tokens": 64}}
    with running_router([stub.url], strategies=strategies, max_tokens=1000) as router:
        reply = ask(router)
        assert (reply.status, reply.body) == (200, PLAIN)
        shown = "instruction=user_end, temperature=0.5, max_tokens=400"
        assert reply.headers["x-entropy-rft-applied"] == shown
        before = len(stub.requests)
        assert ask(router).headers["x-entropy-rft-applied"] == shown
        assert len(stub.requests) == before + 1


def test_no_limit_of_ours_fits_into_the_context(stub: Stub) -> None:
    def answer(asked: Request) -> Behaviour | None:
        too_long = Behaviour.error(400, "max_tokens is too large: the context length is 512")
        return too_long if "max_tokens" in asked.json else unknown()(asked)

    stub.answer = answer
    with running_router([stub.url], **LIMITED) as router:
        assert ask(router).status == 200
        assert "max_tokens" not in stub.requests[-1].json
        assert "thinking_token_budget" not in stub.requests[-1].json


def test_the_embedded_server_refuses_it_and_answers(stub: Stub) -> None:
    with EmbeddedServer() as server, running_router([server.start()], **LIMITED) as router:
        reply = ask(router, model=DEFAULT_MODEL)
        assert reply.status == 200
        assert reply.headers["x-entropy-rft-applied"] == "temperature=0.5, max_tokens=400"


def test_an_effort_that_stands_for_a_difficulty(stub: Stub) -> None:
    with running_router([stub.url], client_reasoning_effort="difficulty", **LIMITED) as router:
        body = {"model": "m", "messages": [USER], "reasoning_effort": "low"}
        reply = exchange(router.port, request(json.dumps(body).encode()))
        assert (reply.headers["x-entropy-rft-difficulty"], reply.headers["x-entropy-rft-reason"]) == ("easy", "client")
    assert "reasoning_effort" not in stub.requests[0].json


def test_an_instruction_at_the_end_of_the_last_user_message(stub: Stub) -> None:
    with running_router([stub.url], placement="user_end") as router:
        reply = ask(router, "normal")
        assert reply.headers["x-entropy-rft-applied"].startswith("instruction=user_end")
        assert router.metric("entropy_rft_applied_total", 'field="instruction"') == 1
    assert stub.requests[0].json["messages"] == [{**USER, "content": "What is 2 + 2?\n\nThink step by step."}]
