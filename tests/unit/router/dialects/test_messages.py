"""Anthropic's Messages: what is read for the probe, what a strategy changes, and the shape of errors."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router import policy
from entropy_rft.router.dialects.messages import COUNT_TOKENS, MESSAGES
from entropy_rft.router.errors import RouterError
from entropy_rft.router.policy import Budget

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
EXPLICIT = Budget(1000, explicit=True, of_client=False)
OF_CLIENT = Budget(1000, explicit=True, of_client=True)
USER = {"role": "user", "content": "What is 2 + 2?"}
TEXT = {"type": "text", "text": "it?"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "4"}


def asked(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 100, "messages": list(messages), **fields}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 1}, "messages"),
        ({"max_tokens": 1, "messages": []}, "messages"),
        ({"max_tokens": 1, "messages": ["hi"]}, "messages[0]"),
        ({"max_tokens": 1, "messages": [USER, {"content": "hi"}]}, "messages[1]"),
        ({"messages": [USER]}, "max_tokens"),
        ({"messages": [USER], "max_tokens": None}, "max_tokens"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "max_tokens": True}, "max_tokens"),
        ({"messages": [USER], "max_tokens": 1.5}, "max_tokens"),
    ],
)
def test_what_is_no_request(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RouterError) as caught:
        policy.check_request(body, "messages")
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_count_needs_no_limit() -> None:
    assert policy.check_request({"messages": [USER]}, "count_tokens")
    assert not COUNT_TOKENS.routed
    with pytest.raises(RouterError):
        policy.check_request({"messages": []}, "count_tokens")


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (asked(USER), [USER]),
        (asked(USER, system="Be terse."), [{"role": "system", "content": "Be terse."}, USER]),
        (
            asked(
                USER,
                system=[
                    {"type": "text", "text": "x-anthropic-billing-header: one-of-a-kind"},
                    {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "terse."},
                ],
            ),
            [{"role": "system", "content": "Be terse."}, USER],
        ),
        (asked(USER, {"role": "system", "content": "Now."}), [USER, {"role": "system", "content": "Now."}]),
        (asked({"role": "user", "content": [TEXT]}), [{"role": "user", "content": "it?"}]),
        (asked({"role": "user", "content": [TEXT, TEXT]}), [{"role": "user", "content": [TEXT, TEXT]}]),
        (
            asked(
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, TEXT, USE],
                },
                {"role": "user", "content": [RESULT, {**RESULT, "content": [TEXT, TEXT]}, TEXT]},
                {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, USE]},
                {"role": "user", "content": [RESULT]},
            ),
            [
                USER,
                {
                    "role": "assistant",
                    "reasoning": "hm",
                    "reasoning_content": "hm",
                    "content": "it?",
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}
                    ],
                },
                {"role": "tool", "content": "4", "tool_call_id": "t1"},
                {"role": "tool", "content": "it?\nit?", "tool_call_id": "t1"},
                {"role": "user", "content": "it?"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}
                    ],
                },
                {"role": "tool", "content": "4", "tool_call_id": "t1"},
            ],
        ),
    ],
)
def test_blocks_become_messages(body: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    before = deepcopy(body)
    assert MESSAGES.question(body).messages == messages
    assert body == before


def test_tools_reach_the_template() -> None:
    tools = [{"name": "add", "input_schema": {"type": "object"}}, {"type": "web_search_20250305", "name": "web_search"}]
    function = {"name": "add", "description": None, "parameters": {"type": "object"}}
    assert MESSAGES.question(asked(USER, tools=tools)).tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low", "enable_thinking": True}),
        (
            {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}},
            {"reasoning_effort": "none", "enable_thinking": False},
        ),
    ],
)
def test_effort_reaches_the_template(fields: dict[str, Any], variables: dict[str, Any] | None) -> None:
    assert MESSAGES.question(asked(USER, **fields)).chat_template_kwargs == variables


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], None),
        ([USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}], None),
        ([{"role": "user", "content": [TEXT, IMAGE]}], "image"),
        ([{"role": "user", "content": [{**RESULT, "content": [IMAGE]}]}], "image"),
        ([{"role": "user", "content": [{"type": "document", "source": {}}]}], "image"),
        ([USER, {"role": "assistant", "content": "It is"}], "prefill"),
        ([{"role": "user", "content": [3, {"type": ["text"]}]}], "image"),  # nothing of it may break the router
    ],
)
def test_what_the_probe_cannot_say(messages: list[Any], reason: str | None) -> None:
    assert policy.unprobed(asked(*messages), "messages") == reason


@pytest.mark.parametrize(
    ("body", "placement", "fields"),
    [
        (asked(USER), "system", {"system": "DO"}),
        (asked(USER, system="Be."), "system", {"system": "Be.\n\nDO"}),
        (asked(USER, system=[TEXT]), "system", {"system": [TEXT, {"type": "text", "text": "\n\nDO"}]}),
        (asked(USER, system={"x": 1}), "system", {"system": {"x": 1}}),  # the backend's to refuse
        (
            asked({"role": "system", "content": "Be."}, USER),
            "system",
            {"messages": [{"role": "system", "content": "Be.\n\nDO"}, USER]},
        ),
        (asked(USER), "user_end", {"messages": [{"role": "user", "content": "What is 2 + 2?\n\nDO"}]}),
        (  # results of tools are not the user's own word
            asked(
                {"role": "user", "content": [TEXT]},
                {"role": "assistant", "content": [USE]},
                {"role": "user", "content": [RESULT]},
            ),
            "user_end",
            {
                "messages": [
                    {"role": "user", "content": [TEXT, {"type": "text", "text": "\n\nDO"}]},
                    {"role": "assistant", "content": [USE]},
                    {"role": "user", "content": [RESULT]},
                ]
            },
        ),
        (asked({"role": "assistant", "content": "hi"}), "user_end", {}),
    ],
)
def test_where_the_instruction_goes(body: dict[str, Any], placement: Any, fields: dict[str, Any]) -> None:
    before = deepcopy(body)
    assert MESSAGES.instructed(body, "DO", placement) == fields
    assert body == before


def test_the_clients_own_values_win() -> None:
    own = asked(USER, temperature=0.0, thinking={"type": "enabled", "budget_tokens": 50})
    new, ours = policy.rewrite(own, EASY, EXPLICIT, "messages")
    assert not ours
    assert new == {**own, "system": EASY.instruction}
    assert policy.rewrite(asked(USER), EASY, EXPLICIT, "messages")[0]["temperature"] == EASY.temperature


@pytest.mark.parametrize(
    ("thinking", "limit"),
    [
        (None, 40),
        ({"type": "enabled", "budget_tokens": 20}, 40),
        ({"type": "enabled", "budget_tokens": 70}, 71),  # a limit must be above it
        ({"type": "enabled", "budget_tokens": 200}, 100),  # the client's mistake stays the client's
        ({"type": "enabled", "budget_tokens": "70"}, 40),
    ],
)
def test_a_share_of_the_clients_limit_leaves_room_to_think(thinking: Any, limit: int) -> None:
    body = asked(USER, thinking=thinking)
    assert policy.rewrite(body, EASY, OF_CLIENT, "messages")[0]["max_tokens"] == limit


@pytest.mark.parametrize(
    ("status", "sent", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (405, 405, "invalid_request_error"),
        (413, 413, "request_too_large"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (502, 502, "api_error"),
        (503, 529, "overloaded_error"),
        (504, 504, "timeout_error"),
    ],
)
def test_errors(status: int, sent: int, kind: str) -> None:
    body = RouterError(status, "no", "a_code", "a_field").body(MESSAGES.errors)
    assert json.loads(body) == {"type": "error", "error": {"type": kind, "message": "no"}}
    assert MESSAGES.errors.status(status) == sent
    event = MESSAGES.errors.event(status, "no", "a_code", b"")
    assert event == b"event: error\ndata: " + body + b"\n\n"


def test_a_backends_own_error_is_untouched() -> None:
    body = b'{"type": "error",  "error": {"type": "invalid_request_error", "message": "too long"}, "request_id": "r"}'
    assert MESSAGES.errors.backend(400, body) is body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"type":"error","error":{"type":"BadRequestError","message":"too long"}}', "too long"),  # vLLM's own
        (b'{"error":{"message":"too long","type":"Bad Request","param":"x","code":400}}', "too long"),
        (b'{"type":"error","error":{"type":["x"],"message":"too long"}}', "too long"),
        (b'{"detail":"too long"}', "too long"),
        (b"<h1>no</h1>", "the backend answered with status 400: <h1>no</h1>"),
        (b"", "the backend answered with status 400"),
    ],
)
def test_any_other_error_is_put_into_the_shape(body: bytes, message: str) -> None:
    error = json.loads(MESSAGES.errors.backend(400, body))
    assert error == {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (b'event: error\ndata: {"type":"error"}\n\n', True),
        (b'event: message_stop\ndata: {"type":"mess', False),
        (b'event: content_block_delta\ndata: {"text":"event: message_stop"}\n\n', False),
        (b'event: message_delta\ndata: {"usage":{"output_tokens":1}}\n\n', False),
    ],
)
def test_the_end_of_a_stream(stream: bytes, whole: bool) -> None:
    assert bool(MESSAGES.stream_end.search(stream)) is whole
