"""Answers as vLLM words them in OpenAI's Responses and in Anthropic's Messages."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from stub_answers import Behaviour, Request

ANSWER = "The sum is 4."
ARGUMENTS = '{"a": 2, "b": 2}'
INPUT_TOKENS, OUTPUT_TOKENS = 9, 5
_ids = count(1)


def answered(request: Request) -> Behaviour:
    """The answer to any request in one of the two."""
    if request.method != "POST" or request.path.endswith("/cancel"):
        return Behaviour.json({"id": request.path.split("/")[3], "object": "response", "status": "completed"})
    if request.path == "/v1/messages/count_tokens":
        return Behaviour.json({"input_tokens": INPUT_TOKENS})
    return response(request) if request.path == "/v1/responses" else message(request)


def _named(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def response(request: Request) -> Behaviour:
    body = request.json
    calling = bool(body.get("tools")) and not any(
        item.get("type") == "function_call_output" for item in body["input"] if isinstance(item, dict)
    )
    item: dict[str, Any] = {"id": "msg_é", "type": "message", "role": "assistant", "status": "completed"}
    item["content"] = [{"type": "output_text", "text": ANSWER, "annotations": []}]
    if calling:
        item = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "add", "status": "completed"}
        item["arguments"] = ARGUMENTS
    usage = {
        "input_tokens": INPUT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUTPUT_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }
    value = {
        "id": f"resp_{next(_ids)}",
        "created_at": 1,
        "object": "response",
        "model": body.get("model") or "stub",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "completed",
        "usage": usage,
        "x_unknown": 1.50,
    }
    if not body.get("stream"):
        return Behaviour((json.dumps(value, indent=3, ensure_ascii=False).encode(),))
    started = {**value, "output": [], "usage": None, "status": "in_progress"}
    where: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    if calling:
        begun = {**item, "arguments": "", "status": "in_progress"}
        middle = [
            {"type": "response.function_call_arguments.delta", **where, "delta": ARGUMENTS[:5]},
            {"type": "response.function_call_arguments.delta", **where, "delta": ARGUMENTS[5:]},
            {"type": "response.function_call_arguments.done", **where, "name": "add", "arguments": ARGUMENTS},
        ]
    else:
        begun = {**item, "content": [], "status": "in_progress"}
        where["content_index"] = 0
        part = item["content"][0]
        middle = [
            {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
            *({"type": "response.output_text.delta", **where, "delta": word, "logprobs": []} for word in words()),
            {"type": "response.output_text.done", **where, "text": ANSWER, "logprobs": []},
            {"type": "response.content_part.done", **where, "part": part},
        ]
    events = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *middle,
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": value},
    ]
    return Behaviour.stream(tuple(_named({**event, "sequence_number": n}) for n, event in enumerate(events)))


def message(request: Request) -> Behaviour:
    body = request.json
    last = body["messages"][-1]["content"]
    calling = bool(body.get("tools")) and not (isinstance(last, list) and last[0].get("type") == "tool_result")
    block: dict[str, Any] = {"type": "text", "text": ANSWER}
    if calling:
        block = {"type": "tool_use", "id": "toolu_é", "name": "add", "input": json.loads(ARGUMENTS)}
    value = {
        "id": f"msg_{next(_ids)}",
        "type": "message",
        "role": "assistant",
        "content": [block],
        "model": body["model"],
        "stop_reason": "tool_use" if calling else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
        "x_unknown": 1.50,
    }
    if not body.get("stream"):
        return Behaviour((json.dumps(value, indent=3, ensure_ascii=False).encode(),))
    begun: dict[str, Any] = {**block, "input": {}} if calling else {**block, "text": ""}
    pieces = (ARGUMENTS[:5], ARGUMENTS[5:]) if calling else words()
    kind, field = ("input_json_delta", "partial_json") if calling else ("text_delta", "text")
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": 0}
    events = [
        {"type": "message_start", "message": {**value, "content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: piece}} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": value["stop_reason"], "stop_sequence": None},
            "usage": value["usage"],
        },
        {"type": "message_stop"},
    ]
    return Behaviour.stream((b'event: ping\ndata: {"type": "ping"}\n\n', *map(_named, events)))


def words() -> list[str]:
    return [word if i == 0 else f" {word}" for i, word in enumerate(ANSWER.split(" "))]
