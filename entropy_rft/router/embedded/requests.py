"""Checks a client's requests to the embedded engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from entropy_rft.router.batching import FeatureError
from entropy_rft.router.embedded.engine import Generation
from entropy_rft.router.tokenizing import Question

MAX_COMPLETIONS = 128
MAX_TOP_LOGPROBS = 20
# Fields that would change the answer and are not supported: they are refused, not ignored.
_UNSUPPORTED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("presence_penalty", (None, 0)),
    ("frequency_penalty", (None, 0)),
    ("logit_bias", (None, {})),
    ("functions", (None, [])),
    ("suffix", (None, "")),
    ("echo", (None, False)),
    ("response_format", (None, {"type": "text"})),
    ("tool_choice", (None, "auto", "none")),
    ("thinking_token_budget", (None, -1)),
)


class RequestError(Exception):
    """A request that cannot be answered; becomes an error in OpenAI's shape."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits and defaults of the served model."""

    name: str
    context: int
    vocabulary: int
    temperature: float  # where a client gives none


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: what to write, and how to answer."""

    generation: Generation
    stream: bool
    include_usage: bool
    return_token_ids: bool


Tokenize = Callable[[Question], list[int]]


def chat_request(body: Any, tokenize: Tokenize, limits: Limits) -> Asked:
    """A body of /v1/chat/completions; raises RequestError."""
    _common(body, limits)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{index}] must be an object with a role", f"messages[{index}]")
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(f"messages[{index}].content must be text or parts of text", f"messages[{index}].content")
    tools, variables = body.get("tools"), body.get("chat_template_kwargs")
    if tools is not None and not isinstance(tools, list):
        raise RequestError("tools must be a list", "tools")
    if variables is not None and not isinstance(variables, dict):
        raise RequestError("chat_template_kwargs must be an object", "chat_template_kwargs")
    try:
        prompt = tokenize(Question(messages=messages, tools=tools, chat_template_kwargs=variables))
    except FeatureError as error:
        raise RequestError(f"messages: {error}", "messages") from error
    top = None
    if _flag(body, "logprobs"):
        top = _integer(body, "top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    elif body.get("top_logprobs") not in (None, 0):
        raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _asked(body, [prompt], _integer(body, field, None, 1), top, limits, "messages")


def completion_request(body: Any, tokenize: Tokenize, limits: Limits) -> Asked:
    """A body of /v1/completions; raises RequestError."""
    _common(body, limits)
    given = body.get("prompt")
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    prompts = given if isinstance(given, list) and several else [given]
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            question = Question(text=prompt)
        elif isinstance(prompt, list) and prompt and all(_is_integer(token) for token in prompt):
            if not 0 <= min(prompt) <= max(prompt) < limits.vocabulary:
                raise RequestError(f"prompt holds a token outside 0 to {limits.vocabulary - 1}", "prompt")
            question = Question(token_ids=prompt)
        else:
            raise RequestError("prompt must be text, tokens, or a list of either", "prompt")
        try:
            encoded.append(tokenize(question))
        except FeatureError as error:
            raise RequestError("prompt has no tokens", "prompt") from error
    top = None if body.get("logprobs") is None else _integer(body, "logprobs", 0, 0, MAX_TOP_LOGPROBS)
    best_of = body.get("best_of")
    if best_of is not None and best_of != (1 if body.get("n") is None else body["n"]):
        raise RequestError("best_of is not supported by the embedded engine", "best_of")
    return _asked(body, encoded, _integer(body, "max_tokens", 16, 1), top, limits, "prompt")


def _common(body: Any, limits: Limits) -> None:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    model = body.get("model")
    if model is not None and model != limits.name:
        shown = repr(model)[:100]
        raise RequestError(f"there is no model {shown}, only {limits.name!r}", "model", "model_not_found", 404)
    for field, harmless in _UNSUPPORTED:
        value = body.get(field)
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in harmless):
            raise RequestError(f"{field} is not supported by the embedded engine: leave it out", field, "unsupported")


def _asked(
    body: dict[str, Any], prompts: list[list[int]], wanted: int | None, top: int | None, limits: Limits, where: str
) -> Asked:
    for prompt in prompts:
        if len(prompt) >= limits.context:
            raise RequestError(
                f"{where}: {len(prompt)} tokens leave no room for an answer in this model's {limits.context}",
                where,
                "context_length_exceeded",
            )
    n = _integer(body, "n", 1, 1, MAX_COMPLETIONS)
    assert n is not None
    if n * len(prompts) > MAX_COMPLETIONS:
        raise RequestError(f"n times the prompts must be at most {MAX_COMPLETIONS}, got {n * len(prompts)}", "n")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(text, str) and text for text in stops):
        raise RequestError("stop must be a text or a list of at most 16", "stop")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options must be an object", "stream_options")
    stream = _flag(body, "stream")
    if options is not None and not stream:
        raise RequestError("stream_options needs stream to be true", "stream_options")
    # A limit beyond the context is lowered to it: the router's budget may be larger than this model's context.
    rooms = [limits.context - len(prompt) for prompt in prompts]
    generation = Generation(
        prompts=prompts,
        max_tokens=[room if wanted is None else min(wanted, room) for room in rooms],
        n=n,
        temperature=_number(body, "temperature", limits.temperature, 0, 2),
        top_p=_number(body, "top_p", 1.0, 0, 1, above=True),
        top_k=max(0, _integer(body, "top_k", 0, -1) or 0),
        seed=_integer(body, "seed", None),
        stop=tuple(stops),
        top_logprobs=top,
        ignore_eos=_flag(body, "ignore_eos"),
    )
    return Asked(
        generation, stream, _flag(options or {}, "include_usage", "stream_options."), _flag(body, "return_token_ids")
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, low: float = -math.inf, high: float = math.inf
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not _is_integer(value) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number{_range(low, high)}, got {repr(value)[:100]}", name)
    return int(value)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float, above: bool = False) -> float:
    value = body.get(name)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or (above and value == low):
        raise RequestError(f"{name} must be a number{_range(low, high, above)}, got {repr(value)[:100]}", name)
    return float(value)


def _range(low: float, high: float, above: bool = False) -> str:
    if low == -math.inf:
        return ""
    if high == math.inf:
        return f" of at least {low:g}"
    return f" {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}"


def _flag(body: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{prefix}{name} must be true or false, got {repr(value)[:100]}", f"{prefix}{name}")
    return bool(value)
