"""OpenAI's Responses.

A conversation is `instructions` and `input`: text, or a list of items. Items become the messages that vLLM makes of
them, so that the probe reads the prompt that the model gets. A stored answer (`previous_response_id`) is known to its
backend alone: the probe reads only the new items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.router.dialects.base import (
    Body,
    Dialect,
    body_variables,
    check_list,
    function_tools,
    with_ending,
    with_ending_of,
    with_entry,
)
from entropy_rft.router.errors import OPENAI, ErrorShape, RouterError
from entropy_rft.router.tokenizing import Question

_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
_SYSTEM = ("system", "developer")
_UNFINISHED = ("in_progress", "incomplete")
_EXTRA = frozenset({
    "top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "stop",
    "include_stop_str_in_output", "skip_special_tokens", "ignore_eos", "structured_outputs", "text", "tool_choice",
    "parallel_tool_calls", "max_tool_calls", "top_logprobs", "include_reasoning", "truncation", "service_tier",
    "priority", "cache_salt", "metadata", "user", "vllm_xargs", "mm_processor_kwargs", "media_io_kwargs",
})  # fmt: skip
_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,12})')


def check(body: Body) -> None:
    given = body.get("input")
    if isinstance(given, list):
        check_list(body, "input", "item")
    elif not isinstance(given, str):
        raise RouterError(400, "input must be text or a list of items", "invalid_input", "input")


def unprobed(body: Body) -> str | None:
    items = body["input"]
    if isinstance(items, str):
        return None
    for item in items:
        kind = item.get("type") or "message"
        if kind not in _ITEMS or (kind == "message" and not isinstance(item.get("role"), str)):
            return "item"
        parts = item.get("content") if kind == "message" else item.get("output")
        if isinstance(parts, list):
            for part in parts:
                if isinstance(part, dict) and part.get("type", "text") not in _TEXT_PARTS:
                    return "image"
    last = items[-1]
    unfinished = last.get("type", "message") in ("message", "reasoning") and last.get("status") in _UNFINISHED
    return "prefill" if unfinished else None


def turns(body: Body) -> Iterator[tuple[str, Any]]:
    if body.get("instructions"):
        yield "system", body["instructions"]
    items = body["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        kind = str(item.get("type") or "message")
        yield (str(item.get("role")), item.get("content")) if kind == "message" else (kind, None)


def question(body: Body) -> Question:
    return Question(
        messages=messages(body),
        tools=function_tools(body.get("tools"), "parameters"),
        chat_template_kwargs=body_variables(body, effort(body)),
    )


def messages(body: Body) -> list[dict[str, Any]]:
    """The conversation as OpenAI's chat messages, as far as the request itself holds it.

    An item that the probe cannot read has its place, and no content.
    """
    found: list[dict[str, Any]] = []
    if body.get("instructions"):
        found.append({"role": "system", "content": body["instructions"]})
    items = body["input"]
    if isinstance(items, str):
        return [*found, {"role": "user", "content": items}]
    for item in items:
        kind = item.get("type") or "message"
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _turn(found).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            found.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
        elif kind == "reasoning":
            text = _first_text(item.get("content")) or _first_text(item.get("summary"))
            _turn(found, "reasoning").update(reasoning=text, reasoning_content=text)
        elif kind != "message" or not isinstance(item.get("role"), str):
            found.append({"role": str(kind)})
        elif item["role"] == "assistant":
            content = item.get("content")
            _turn(found, "content")["content"] = content if isinstance(content, str) else _first_text(content)
        else:
            found.append({"role": item["role"], "content": item.get("content")})
    return found


def _turn(found: list[dict[str, Any]], without: str | None = None) -> dict[str, Any]:
    """The assistant's turn at the end, if it lacks the field `without`; else a new one. An answer is several items."""
    if not found or found[-1]["role"] != "assistant" or (without is not None and without in found[-1]):
        found.append({"role": "assistant"})
    return found[-1]


def _first_text(parts: Any) -> str:
    first = parts[0] if isinstance(parts, list) and parts else None
    text = first.get("text") if isinstance(first, dict) else None
    return text if isinstance(text, str) else ""


def with_instruction(body: Body, instruction: str, placement: Placement) -> dict[str, Any]:
    given, items = body.get("instructions"), body["input"]
    if placement == "system":
        if given:
            return {"instructions": with_ending(given, instruction, "input_text")}
        if not opens_with_system(body):
            return {"instructions": instruction}
        return {"input": with_ending_of(items, 0, instruction, "input_text")}
    if isinstance(items, str):
        return {"input": with_ending(items, instruction)}
    last = next((index for index in reversed(range(len(items))) if _role(items[index]) == "user"), None)
    return {} if last is None else {"input": with_ending_of(items, last, instruction, "input_text")}


def _role(item: dict[str, Any]) -> Any:
    return item.get("role") if item.get("type", "message") == "message" else None


def opens_with_system(body: Body) -> bool:
    items = body["input"]
    return bool(body.get("instructions")) or (isinstance(items, list) and _role(items[0]) in _SYSTEM)


def effort(body: Body) -> Any:
    reasoning = body.get("reasoning")
    return reasoning.get("effort") if isinstance(reasoning, dict) else None


def continues(body: Body) -> str | None:
    previous = body.get("previous_response_id")
    return previous if isinstance(previous, str) and previous else None


def error_event(status: int, message: str, code: str | None, tail: bytes) -> bytes:
    """The `error` event, numbered after the last event in `tail`."""
    numbers = _SEQUENCE.findall(tail)
    number = int(numbers[-1]) + 1 if numbers else 0
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number}
    return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"


RESPONSES = Dialect(
    name="responses",
    path="/v1/responses",
    check=check,
    unprobed=unprobed,
    turns=turns,
    question=question,
    instructed=with_instruction,
    conversation=("instructions", "input"),
    opens_with_system=opens_with_system,
    limits=("max_output_tokens",),
    effort=effort,
    with_effort=lambda body, effort: with_entry(body, "reasoning", "effort", effort),
    says_thinking=lambda body: effort(body) is not None,
    objects=("reasoning",),
    extra=_EXTRA,
    stream_end=re.compile(
        rb"^event: ?(?:response\.(?:completed|incomplete|failed|cancelled)|error)\r?\ndata: ?\{.*\}\r?\n", re.MULTILINE
    ),
    errors=ErrorShape(OPENAI.body, error_event, OPENAI.backend),
    continues=continues,
    answer_id=re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"'),
)
