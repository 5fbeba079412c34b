"""Answers as an OpenAI-compatible server words them, to whatever the openai client asks."""

from __future__ import annotations

import json
from typing import Any

from stub_answers import Behaviour, Request

ANSWER = "The sum is 4."
JSON_ANSWER = '{"sum": 4}'
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
TOOL_CALL = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}


def realistic(request: Request) -> Behaviour:
    """Chat and text completions: tools, `n`, JSON mode, logprobs, usage; streamed a word at a time."""
    body = request.json
    chat = request.path.endswith("/chat/completions")
    choices = [_choice(body, index, chat) for index in range(body.get("n") or 1)]
    kind = "chat.completion" if chat else "text_completion"
    common = {"id": "cmpl-é", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        # Spaces, key order and escapes that no other program would choose: they show whether it was written anew.
        value = {**common, "object": kind, "choices": choices, "usage": USAGE, "x_unknown": 1.50}
        return Behaviour((json.dumps(value, indent=3, ensure_ascii=False).encode(),))
    events = [
        {**common, "object": f"{kind}.chunk" if chat else kind, "choices": [piece]}
        for choice in choices
        for piece in _pieces(choice, chat)
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append({**common, "object": f"{kind}.chunk", "choices": [], "usage": USAGE})
    lines = [b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
    return Behaviour.stream((b": a comment\n\n", *lines, b"data: [DONE]\n\n"))


def _choice(body: dict[str, Any], index: int, chat: bool) -> dict[str, Any]:
    text = JSON_ANSWER if (body.get("response_format") or {}).get("type") == "json_object" else ANSWER
    logprobs = None
    if body.get("logprobs"):
        tokens = [{"token": word, "logprob": -0.25, "bytes": None, "top_logprobs": []} for word in text.split()]
        logprobs = {"content": tokens, "refusal": None}
    if not chat:
        return {"index": index, "text": text, "finish_reason": "stop", "logprobs": None}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calling = bool(body.get("tools")) and body["messages"][-1]["role"] != "tool"
    if calling:
        message |= {"content": None, "tool_calls": [TOOL_CALL]}
    finish = "tool_calls" if calling else "stop"
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs}


def _pieces(choice: dict[str, Any], chat: bool) -> list[dict[str, Any]]:
    """The choice in deltas."""
    index, finish = choice["index"], choice["finish_reason"]
    if not chat:
        words = choice["text"].split(" ")
        return [
            {"index": index, "text": word if i == 0 else f" {word}", "finish_reason": None}
            for i, word in enumerate(words)
        ] + [{"index": index, "text": "", "finish_reason": finish}]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if "tool_calls" in message:
        deltas.append({"tool_calls": [{**TOOL_CALL, "index": 0}]})
    else:
        words = message["content"].split(" ")
        deltas += [{"content": word if i == 0 else f" {word}"} for i, word in enumerate(words)]
    return [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas] + [
        {"index": index, "delta": {}, "finish_reason": finish}
    ]
