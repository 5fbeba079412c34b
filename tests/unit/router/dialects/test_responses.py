"""OpenAI's Responses: what is read for the probe, and what a strategy changes."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router import policy
from entropy_rft.router.dialects.responses import RESPONSES
from entropy_rft.router.errors import RouterError
from entropy_rft.router.policy import Budget

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
DEFAULT = Budget(1000, explicit=False, of_client=False)
OF_CLIENT = Budget(1000, explicit=True, of_client=True)
USER = {"role": "user", "content": "What is 2 + 2?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 2}'}
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


def said(kind: str, *texts: str) -> list[dict[str, str]]:
    return [{"type": kind, "text": text} for text in texts]


def thinks(text: str) -> dict[str, str]:
    return {"reasoning": text, "reasoning_content": text}


@pytest.mark.parametrize(
    "body", [{}, {"input": None}, {"input": []}, {"input": ["hi"]}, {"input": {"role": "user"}}, {"input": 3}]
)
def test_no_conversation(body: dict[str, Any]) -> None:
    with pytest.raises(RouterError) as caught:
        policy.check_request(body, "responses")
    assert (caught.value.status, str(caught.value.param)[:5]) == (400, "input")


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"input": "hi"}, [{"role": "user", "content": "hi"}]),
        (
            {"instructions": "Be terse.", "input": [USER]},
            [{"role": "system", "content": "Be terse."}, USER],
        ),
        (
            {"input": [{"type": "message", "role": "developer", "content": said("input_text", "a", "b")}]},
            [{"role": "developer", "content": said("input_text", "a", "b")}],
        ),
        (  # one turn of the assistant is several items
            {
                "input": [
                    USER,
                    {"type": "reasoning", "id": "r", "summary": [], "content": said("reasoning_text", "hm")},
                    {"type": "message", "role": "assistant", "content": said("output_text", "I add.")},
                    CALL,
                    {**CALL, "call_id": "c2"},
                    {"type": "function_call_output", "call_id": "c1", "output": "4"},
                ]
            },
            [
                USER,
                {
                    "role": "assistant",
                    **thinks("hm"),
                    "content": "I add.",
                    "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": "c2"}],
                },
                {"role": "tool", "content": "4", "tool_call_id": "c1"},
            ],
        ),
        (
            {"input": [{"type": "reasoning", "summary": said("summary_text", "short")}, CALL]},
            [{"role": "assistant", **thinks("short"), "tool_calls": [TOOL_CALL]}],
        ),
        (
            {"input": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
    ],
)
def test_items_become_messages(body: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    before = deepcopy(body)
    assert policy.check_request(body, "responses") is body
    assert RESPONSES.question(body).messages == messages
    assert body == before


def test_tools_and_effort_reach_the_template() -> None:
    tool = {"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object"}, "strict": True}
    body = {
        "input": "hi",
        "tools": [tool, {"type": "web_search"}],
        "reasoning": {"effort": "none"},
        "chat_template_kwargs": {"custom": 1},
    }
    asked = RESPONSES.question(body)
    function = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    assert asked.tools == [{"type": "function", "function": function}]
    assert asked.chat_template_kwargs == {"custom": 1, "reasoning_effort": "none", "enable_thinking": False}
    plain = RESPONSES.question({"input": "hi", "reasoning": {"summary": "auto"}})
    assert (plain.tools, plain.chat_template_kwargs) == (None, None)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (USER, None),
        (CALL, None),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "image"),
        ({"role": "user", "content": [*said("input_text", "it?"), {"type": "input_file", "file_id": "f"}]}, "image"),
        ({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}, "image"),
        ({"type": "item_reference", "id": "m"}, "item"),
        ({"type": "web_search_call", "id": "w"}, "item"),
        ({"content": "without a role"}, "item"),
        ({"type": "message", "role": "assistant", "content": said("output_text", "4"), "status": "completed"}, None),
        ({"type": "message", "role": "assistant", "content": [], "status": "in_progress"}, "prefill"),
    ],
)
def test_what_the_probe_cannot_say(item: dict[str, Any], reason: str | None) -> None:
    assert policy.unprobed({"input": [USER, item]}, "responses") == reason
    assert reason is None or reason in policy.REASONS


@pytest.mark.parametrize(
    ("body", "placement", "fields"),
    [
        ({"input": "hi"}, "system", {"instructions": "DO"}),
        ({"input": "hi", "instructions": None}, "system", {"instructions": "DO"}),
        ({"input": "hi", "instructions": "Be."}, "system", {"instructions": "Be.\n\nDO"}),
        ({"input": "hi", "instructions": 7}, "system", {"instructions": 7}),  # the backend's to refuse
        (
            {"input": [{"role": "developer", "content": "Be."}, USER]},
            "system",
            {"input": [{"role": "developer", "content": "Be.\n\nDO"}, USER]},
        ),
        (
            {"input": [{"role": "system", "content": said("input_text", "Be.")}, USER]},
            "system",
            {"input": [{"role": "system", "content": said("input_text", "Be.", "\n\nDO")}, USER]},
        ),
        ({"input": "hi", "instructions": "Be."}, "user_end", {"input": "hi\n\nDO"}),
        (
            {"input": [USER, CALL, {"type": "function_call_output", "call_id": "c1", "output": "4"}]},
            "user_end",
            {
                "input": [
                    {"role": "user", "content": "What is 2 + 2?\n\nDO"},
                    CALL,
                    {"type": "function_call_output", "call_id": "c1", "output": "4"},
                ]
            },
        ),
        ({"input": [CALL]}, "user_end", {}),
    ],
)
def test_where_the_instruction_goes(body: dict[str, Any], placement: Any, fields: dict[str, Any]) -> None:
    before = deepcopy(body)
    assert RESPONSES.instructed(body, "DO", placement) == fields
    assert set(fields) <= set(RESPONSES.conversation)
    assert body == before


def test_a_strategy_and_the_clients_own_values() -> None:
    new, ours = policy.rewrite({"input": "hi", "difficulty": "easy"}, EASY, DEFAULT, "responses")
    assert ours
    assert new == {
        "input": "hi",
        "instructions": EASY.instruction,
        "temperature": EASY.temperature,
        "max_output_tokens": EASY.max_tokens(1000),
    }
    own = {"input": "hi", "temperature": 0.0, "max_output_tokens": 7, "reasoning": {"effort": "high"}}
    new, ours = policy.rewrite(own, EASY, DEFAULT, "responses")
    assert not ours
    assert new == {**own, "instructions": EASY.instruction}
    assert policy.rewrite({**own, "max_output_tokens": 100}, EASY, OF_CLIENT, "responses")[0]["max_output_tokens"] == 40


@pytest.mark.parametrize(("given", "found"), [("resp_1", "resp_1"), (None, None), ("", None), (7, None)])
def test_what_it_continues(given: Any, found: str | None) -> None:
    assert RESPONSES.continues({"input": "hi", "previous_response_id": given}) == found


@pytest.mark.parametrize(
    "answer",
    [
        b'{\n  "id": "resp_1", "object": "response", "output": [{"id": "msg_1"}]}',
        b'event: response.created\ndata: {"response":{"id":"resp_1","model":"m"},"sequence_number":0}\n\n',
    ],
)
def test_the_answers_id(answer: bytes) -> None:
    assert RESPONSES.answer_id is not None
    found = RESPONSES.answer_id.search(answer)
    assert found is not None
    assert found[1] == b"resp_1"


@pytest.mark.parametrize(
    ("tail", "number"), [(b"", 0), (b'data: {"sequence_number":6}\n\ndata: {"sequence_number": 41, "x": 1}\n\n', 42)]
)
def test_the_error_event_is_numbered(tail: bytes, number: int) -> None:
    event = RESPONSES.errors.event(502, "it died\n", "backend_died", tail)
    name, data, *rest = event.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "code": "backend_died",
        "message": "it died\n",
        "param": None,
        "sequence_number": number,
    }


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        (b'event: response.completed\ndata: {"type":"response.completed"}\n\n', True),
        (b'data: {}\n\nevent: response.incomplete\r\ndata: {"a":{}}\r\n\r\n', True),
        (b'event: error\ndata: {"type":"error"}\n\n', True),
        (b'event: response.completed\ndata: {"response":{"output":[{}', False),  # broken in the middle of the event
        (b'event: response.output_text.delta\ndata: {"delta":"event: response.completed"}\n\n', False),
        (b'event: response.output_item.done\ndata: {"item":{}}\n\n', False),
    ],
)
def test_the_end_of_a_stream(stream: bytes, whole: bool) -> None:
    assert bool(RESPONSES.stream_end.search(stream)) is whole
