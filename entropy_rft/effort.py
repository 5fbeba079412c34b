"""How much a model is asked to think: the fields of a strategy that servers and samplers have in common.

| field | what a server gets |
| --- | --- |
| `thinking_tokens` | `thinking_token_budget` (vLLM): the thinking ends after so many tokens |
| `reasoning_effort` | the same name, as OpenAI's |
| `chat_template_kwargs` | the same name (vLLM, SGLang): variables of the chat template, such as `enable_thinking` |
| `extra_body` | its fields, at the top of the request |

These are the names in OpenAI's chat completions; the router's dialects have their own (`entropy_rft.router.dialects`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.suggestions import did_you_mean

EFFORT_FIELDS = ("thinking_tokens", "reasoning_effort", "chat_template_kwargs", "extra_body")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""Values of `reasoning_effort`, as vLLM has them; OpenAI's are among them."""

# What `extra_body` may not hold: it belongs to the client or to the router, or a strategy has another field for it.
_OF_THE_REQUEST = ("model", "messages", "prompt", "stream", "stream_options", "n", "seed", "difficulty")
_OWN_FIELD = {
    "temperature": "temperature",
    "max_tokens": "max_tokens_fraction",
    "max_completion_tokens": "max_tokens_fraction",
    "thinking_token_budget": "thinking_tokens",
    "reasoning_effort": "reasoning_effort",
    "chat_template_kwargs": "chat_template_kwargs",
}
# Arguments of transformers' `apply_chat_template`; as variables they would change what is encoded, not the template.
_NO_VARIABLES = (
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip


def checked_effort(
    thinking_tokens: Any = None,
    reasoning_effort: Any = None,
    chat_template_kwargs: Any = None,
    extra_body: Any = None,
) -> dict[str, Any]:
    """The fields that are set, as plain JSON values; ``None`` and an empty mapping set nothing.

    Raises:
        ValueError, TypeError: a field is out of range or of another type; one line that names it.
    """
    found: dict[str, Any] = {}
    if thinking_tokens is not None:
        if isinstance(thinking_tokens, bool) or not isinstance(thinking_tokens, int):
            raise UserTypeError(f"thinking_tokens must be a whole number, not {thinking_tokens!r}")
        if thinking_tokens < 0:
            raise UserValueError(f"thinking_tokens must be 0 or more, got {thinking_tokens}: leave it out for no limit")
        found["thinking_tokens"] = thinking_tokens
    if reasoning_effort is not None:
        if reasoning_effort not in EFFORTS:
            raise UserValueError(
                f"reasoning_effort must be one of {', '.join(EFFORTS)}, not {reasoning_effort!r}"
                f"{did_you_mean(reasoning_effort, EFFORTS)}"
            )
        found["reasoning_effort"] = reasoning_effort
    for name, value in (("chat_template_kwargs", chat_template_kwargs), ("extra_body", extra_body)):
        if value is None:
            continue
        plain = _plain_object(name, value)
        for key in plain:
            if name == "extra_body":
                _check_body_field(key)
            elif key in _NO_VARIABLES:
                raise UserValueError(f"chat_template_kwargs must not set {key!r}: it is not a variable of the template")
        if plain:
            found[name] = plain
    return found


def template_variables(
    reasoning_effort: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The variables of the chat template, as vLLM makes them of a request's two fields.

    `enable_thinking` follows the effort where `chat_template_kwargs` has none. A `reasoning_effort` there gives way to
    the field, unless that is "auto".
    """
    given = dict(chat_template_kwargs or {})
    if reasoning_effort is None:
        return given
    variables = {"enable_thinking": reasoning_effort != "none", **given}
    return variables if reasoning_effort == "auto" else {**variables, "reasoning_effort": reasoning_effort}


def _plain_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserTypeError(f"{name} must map names to values, not be {value!r}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserTypeError(f"{name} must hold JSON values: {error}") from None
    return plain


def _check_body_field(key: str) -> None:
    if key in _OWN_FIELD:
        raise UserValueError(f"extra_body must not set {key!r}: use the strategy's {_OWN_FIELD[key]}")
    if key in _OF_THE_REQUEST:
        raise UserValueError(f"extra_body must not set {key!r}: it is not a strategy's to choose")
