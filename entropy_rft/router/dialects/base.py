"""What the router must know of an interface to route its requests; everything else is the same for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.router.errors import OPENAI, ErrorShape, RouterError
from entropy_rft.router.tokenizing import Question

Endpoint = Literal["chat", "completions", "responses", "messages", "count_tokens"]
Body = Mapping[str, Any]
"""A request's body, which was checked."""


def nothing(body: Body) -> None:
    """For a dialect that has no such thing."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One interface.

    Attributes:
        name: in metrics and logs.
        path: that a client posts to, and the backend's.
        check: raises `RouterError` where a body has no conversation or prompt. Anything else is the backend's to check.
        unprobed: why the probe cannot be used for a body (one of `policy.REASONS`), or ``None`` if it can.
        question: of a body, in the form that the chat template gets from the backend.
        instructed: the fields of a body that change when an instruction is added where the placement says.
        conversation: all the fields that `instructed` may change.
        opens_with_system: whether a body's conversation begins with a system message.
        limits: the fields in which a client may set its token limit; the router sets its own in the last one.
        least_tokens: the lowest limit with which a body is valid.
        short_by_default: without a limit an answer is short, so that a share of the context would be longer than no
            limit at all.
        prompts: how many prompts a body holds.
        stream_end: pattern of a line that only the last event of a stream has.
        errors: their shape.
        routed: a request gets a strategy; else it is only passed on.
        continues: the id of the stored answer that a body continues, if any: the backend that holds it must be asked.
        answer_id: pattern of an answer's id, where an answer may be stored.
    """

    name: Endpoint
    path: str
    check: Callable[[Body], None]
    unprobed: Callable[[Body], str | None] = nothing
    question: Callable[[Body], Question]
    instructed: Callable[[Body, str, Placement], dict[str, Any]]
    conversation: tuple[str, ...]
    opens_with_system: Callable[[Body], bool]
    limits: tuple[str, ...]
    least_tokens: Callable[[Body], int] = lambda body: 1
    short_by_default: bool = False
    prompts: Callable[[Body], int] = lambda body: 1
    stream_end: re.Pattern[bytes]
    errors: ErrorShape = OPENAI
    routed: bool = True
    continues: Callable[[Body], str | None] = nothing
    answer_id: re.Pattern[bytes] | None = None


def check_list(body: Body, field: str, what: str, key: str | None = None) -> None:
    """Refuse a body whose `field` is not a list of at least one object, each with text under `key`."""
    items = body.get(field)
    if not isinstance(items, list) or not items:
        raise RouterError(400, f"{field} must be a list of at least one {what}", f"invalid_{field}", field)
    for index, item in enumerate(items):
        if not isinstance(item, dict) or (key is not None and not isinstance(item.get(key), str)):
            where = f"{field}[{index}]"
            wanted = "an object" if key is None else f"an object with a {key}"
            raise RouterError(400, f"{where} must be {wanted}", f"invalid_{field}", where)


def with_ending(content: Any, text: str, kind: str = "text") -> Any:
    """A content, text or a list of parts, with `text` at its end; a new part is of the type `kind`.

    Anything else is returned as it is: it is the backend's to refuse.
    """
    if isinstance(content, list):
        return [*content, {"type": kind, "text": f"\n\n{text}" if content else text}]
    if content is None or isinstance(content, str):
        return f"{content}\n\n{text}" if content else text
    return content


def template_variables(body: Body, effort: Any) -> dict[str, Any] | None:
    """The chat template's variables: the client's `chat_template_kwargs`, and what an effort of reasoning becomes.

    As vLLM does it for every interface: `reasoning_effort`, and `enable_thinking` where the client does not set it.
    """
    given = body.get("chat_template_kwargs")
    if not isinstance(effort, str):
        return given if isinstance(given, dict) else None
    return {
        "enable_thinking": effort != "none",
        **(given if isinstance(given, dict) else {}),
        "reasoning_effort": effort,
    }


def function_tools(tools: Any, parameters: str) -> list[Any] | None:
    """Functions in the form that chat templates get them.

    Args:
        tools: objects with a name, a description and a schema; others, such as built-in tools, are left out.
        parameters: the field of the schema.
    """
    if not isinstance(tools, list):
        return None
    found = []
    for tool in tools:
        if isinstance(tool, dict) and isinstance(tool.get("name"), str) and parameters in tool:
            function = {"name": tool["name"], "description": tool.get("description"), "parameters": tool[parameters]}
            found.append({"type": "function", "function": function})
    return found or None
