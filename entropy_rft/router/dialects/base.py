"""What the router must know of an interface to route its requests; everything else is the same for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.effort import template_variables
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
        turns: role and content of each entry of a body's conversation, in its order, as the client gives them.
        question: of a body, in the form that the chat template gets from the backend.
        instructed: the fields of a body that change when an instruction is added where the placement says.
        conversation: all the fields that `instructed` may change; none where a body has no conversation.
        opens_with_system: whether a body's conversation begins with a system message.
        limits: the fields in which a client may set its token limit; the router sets its own in the last one.
        least_tokens: the lowest limit with which a body is valid.
        short_by_default: without a limit an answer is short, so that a share of the context would be longer than no
            limit at all.
        effort: the client's effort of reasoning, as OpenAI names it; ``None`` where it gives none.
        with_effort: the fields of a body without an effort that change when one is set, or of one with an effort when
            it is removed (``None``). A field that is ``None`` is to be left out.
        says_thinking: whether the client itself says if the model thinks; `enable_thinking` is then not the strategy's.
        with_thinking_limit: the fields that limit the thinking to so many tokens, the client's own where it has one;
            empty where the dialect cannot do it for this body.
        limits_thinking: whether a body has a limit on the thinking.
        objects: the fields that hold several settings, of which the router may set some.
        extra: the fields that a strategy's `extra_body` may set; ``None``: all. The endpoint would ignore others.
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
    turns: Callable[[Body], Iterable[tuple[str, Any]]]
    question: Callable[[Body], Question]
    instructed: Callable[[Body, str, Placement], dict[str, Any]]
    conversation: tuple[str, ...]
    opens_with_system: Callable[[Body], bool]
    limits: tuple[str, ...]
    least_tokens: Callable[[Body], int] = lambda body: 1
    short_by_default: bool = False
    effort: Callable[[Body], Any]
    with_effort: Callable[[Body, str | None], dict[str, Any]]
    says_thinking: Callable[[Body], bool]
    with_thinking_limit: Callable[[Body, int], dict[str, Any]] = lambda body, tokens: {}
    limits_thinking: Callable[[Body], bool] = lambda body: False
    objects: tuple[str, ...] = ()
    extra: frozenset[str] | None = None
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


def with_entry(body: Body, field: str, key: str, value: Any) -> dict[str, Any]:
    """`body[field]`, an object, with `value` under `key`, or without that key where the value is ``None``.

    The result is as `Dialect.with_effort` gives it. A field that is no object is the backend's to refuse.
    """
    own = body.get(field)
    if own is not None and not isinstance(own, dict):
        return {}
    changed = {name: each for name, each in (own or {}).items() if name != key}
    return {field: {**changed, **({} if value is None else {key: value})} or None}


def with_ending(content: Any, text: str, kind: str = "text") -> Any:
    """A content, text or a list of parts, with `text` at its end; a new part is of the type `kind`.

    Anything else is returned as it is: it is the backend's to refuse.
    """
    if isinstance(content, list):
        return [*content, {"type": kind, "text": f"\n\n{text}" if content else text}]
    if content is None or isinstance(content, str):
        return f"{content}\n\n{text}" if content else text
    return content


def with_ending_of(entries: list[Any], index: int, text: str, kind: str = "text") -> list[Any]:
    """The messages or items with `text` at the end of the content of one of them; see `with_ending`."""
    ended = {**entries[index], "content": with_ending(entries[index].get("content"), text, kind)}
    return [*entries[:index], ended, *entries[index + 1 :]]


def body_variables(body: Body, effort: Any) -> dict[str, Any] | None:
    """The chat template's variables: the client's `chat_template_kwargs`, and what an effort of reasoning becomes."""
    given = body.get("chat_template_kwargs")
    own = given if isinstance(given, dict) else None
    return template_variables(effort, own) if isinstance(effort, str) else own


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
