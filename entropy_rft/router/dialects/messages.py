"""Anthropic's Messages, and the count of a conversation's tokens, which is only passed on.

A conversation is `system` and `messages`, whose content may be text or a list of blocks. Blocks become the messages
that vLLM makes of them, so that the probe reads the prompt that the model gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
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
from entropy_rft.router.errors import ErrorShape, RouterError, backend_message
from entropy_rft.router.tokenizing import Question

_TEXT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "tool_reference")
_EXTRA = frozenset({"top_p", "top_k", "stop_sequences", "tool_choice", "metadata", "cache_salt", "vllm_xargs"})
_LEAST_THINKING = 1024  # tokens: the dialect allows no lower budget
# A line that some clients put into their system message: it differs in every request, and vLLM removes it.
_ATTRIBUTION = "x-anthropic-billing-header"

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_KNOWN_TYPES = (*_TYPES.values(), "invalid_request_error", "api_error")


def check_conversation(body: Body) -> None:
    check_list(body, "messages", "message", "role")


def check(body: Body) -> None:
    check_conversation(body)
    limit = body.get("max_tokens")
    # A number of more than 64 bits is a float here: the backend refuses it.
    if not (type(limit) is int or (type(limit) is float and limit.is_integer())) or limit < 1:
        raise RouterError(400, "max_tokens must be a whole number of at least 1", "invalid_max_tokens", "max_tokens")


def unprobed(body: Body) -> str | None:
    for message in body["messages"]:
        for block in _blocks(message.get("content")):
            inner = _blocks(block.get("content")) if block.get("type") == "tool_result" else ()
            if any(each.get("type", "text") not in _TEXT_BLOCKS for each in (block, *inner)):
                return "image"
    return "prefill" if body["messages"][-1]["role"] == "assistant" else None


def turns(body: Body) -> Iterator[tuple[str, Any]]:
    if body.get("system"):
        yield "system", _system_text(body["system"])
    for message in body["messages"]:
        content = message.get("content")
        yield message["role"], _system_text(content) if message["role"] == "system" else content


def question(body: Body) -> Question:
    return Question(
        messages=messages(body),
        tools=function_tools(body.get("tools"), "input_schema"),
        chat_template_kwargs=body_variables(body, effort(body)),
    )


def messages(body: Body) -> list[dict[str, Any]]:
    """The conversation as OpenAI's chat messages."""
    found: list[dict[str, Any]] = []
    for message in ({"role": "system", "content": body.get("system")}, *body["messages"]):
        role, content = message["role"], message.get("content")
        if role == "system":
            text = _system_text(content)
            found += [{"role": "system", "content": text}] if text else []
        elif isinstance(content, list):
            found += _turns(role, _blocks(content))
        else:
            found.append({"role": role, "content": content})
    return found


def _system_text(content: Any) -> str:
    texts = [content] if isinstance(content, str) else [block.get("text") for block in _blocks(content)]
    return "".join(text for text in texts if isinstance(text, str) and not text.startswith(_ATTRIBUTION))


def _turns(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message of blocks: the results of tools first, each a message of its own, then the rest."""
    results: list[dict[str, Any]] = []
    message: dict[str, Any] = {"role": role}
    texts = []
    for block in blocks:
        kind = block.get("type", "text")
        if kind == "text" and block.get("text"):
            texts.append({"type": "text", "text": block["text"]})
        elif kind == "thinking":
            message["reasoning"] = message.get("reasoning", "") + str(block.get("thinking") or "")
            message["reasoning_content"] = message["reasoning"]
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": orjson.dumps(block.get("input") or {}).decode()}
            call = {"id": block.get("id"), "type": "function", "function": function}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "tool_result":
            inner = block.get("content")
            if not isinstance(inner, str):
                inner = "\n".join(str(each.get("text") or "") for each in _blocks(inner))
            results.append({"role": "tool", "content": inner, "tool_call_id": block.get("tool_use_id")})
    if texts:
        message["content"] = texts[0]["text"] if len(texts) == 1 else texts
    return results if role == "user" and not texts else [*results, message]


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def with_instruction(body: Body, instruction: str, placement: Placement) -> dict[str, Any]:
    given, said = body.get("system"), body["messages"]
    if placement == "system":
        if given:
            return {"system": with_ending(given, instruction)}
        if not opens_with_system(body):
            return {"system": instruction}
        return {"messages": with_ending_of(said, 0, instruction)}
    last = next((index for index in reversed(range(len(said))) if _asks(said[index])), None)
    return {} if last is None else {"messages": with_ending_of(said, last, instruction)}


def _asks(message: dict[str, Any]) -> bool:
    """Whether it is the user's own word, and not only the results of tools."""
    content = message.get("content")
    return message["role"] == "user" and (
        not isinstance(content, list) or any(block.get("type") != "tool_result" for block in _blocks(content))
    )


def opens_with_system(body: Body) -> bool:
    return bool(body.get("system")) or body["messages"][0]["role"] == "system"


def effort(body: Body) -> Any:
    output = body.get("output_config")
    given = output.get("effort") if isinstance(output, dict) else None
    return "none" if _thinking(body, "type") == "disabled" else given


def with_effort(body: Body, effort: str | None) -> dict[str, Any]:
    """The dialect has no effort `none`, but can disable the thinking, unless the client says otherwise; `minimal` is
    its lowest, `low`."""
    if effort == "none":
        return {} if body.get("thinking") is not None else {"thinking": {"type": "disabled"}}
    return with_entry(body, "output_config", "effort", "low" if effort == "minimal" else effort)


def with_thinking_limit(body: Body, tokens: int) -> dict[str, Any]:
    own = body.get("thinking")
    if own is not None:
        return {"thinking": own} if limits_thinking(body) or _thinking(body, "type") == "disabled" else {}
    if not _LEAST_THINKING <= tokens < body["max_tokens"]:
        return {}
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


def limits_thinking(body: Body) -> bool:
    return _thinking(body, "budget_tokens") is not None


def _thinking(body: Body, key: str) -> Any:
    thinking = body.get("thinking")
    return thinking.get(key) if isinstance(thinking, dict) else None


def least_tokens(body: Body) -> int:
    """The client's own budget for thinking must be below the limit."""
    budget = _thinking(body, "budget_tokens")
    return budget + 1 if type(budget) is int and budget > 0 else 1


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """``{"type": "error", "error": {"type", "message"}}``; there is no place for the code and the field."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def error_event(status: int, message: str, code: str | None, tail: bytes) -> bytes:
    return b"event: error\ndata: " + error_body(status, message) + b"\n\n"


def backend_error(status: int, body: bytes) -> bytes:
    """A backend's error: unchanged where it is Anthropic's, else its text in that shape."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    error = data.get("error") if isinstance(data, dict) and data.get("type") == "error" else None
    # vLLM has the shape, but names of its own for the types.
    if isinstance(error, dict) and error.get("type") in _KNOWN_TYPES and isinstance(error.get("message"), str):
        return body
    return error_body(status, backend_message(status, body))


MESSAGES = Dialect(
    name="messages",
    path="/v1/messages",
    check=check,
    unprobed=unprobed,
    turns=turns,
    question=question,
    instructed=with_instruction,
    conversation=("system", "messages"),
    opens_with_system=opens_with_system,
    limits=("max_tokens",),
    least_tokens=least_tokens,
    effort=effort,
    with_effort=with_effort,
    says_thinking=lambda body: body.get("thinking") is not None or effort(body) is not None,
    with_thinking_limit=with_thinking_limit,
    limits_thinking=limits_thinking,
    objects=("thinking", "output_config"),
    extra=_EXTRA,
    stream_end=re.compile(rb"^event: ?(?:message_stop|error)\r?\ndata: ?\{.*\}\r?\n", re.MULTILINE),
    # 529 is Anthropic's status for a server that is busy.
    errors=ErrorShape(error_body, error_event, backend_error, {503: 529}),
)
COUNT_TOKENS = replace(
    MESSAGES, name="count_tokens", path="/v1/messages/count_tokens", check=check_conversation, routed=False
)
