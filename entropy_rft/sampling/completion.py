"""What a sampler returns, and how a prompt becomes tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from entropy_rft.errors import UserTypeError, UserValueError

Prompt: TypeAlias = "str | list[dict[str, Any]]"
"""Plain text, or a conversation: a list of messages ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    Attributes:
        prompt_ids: the prompt's tokens, chat template included, without padding.
        token_ids: the sampled tokens, the end-of-sequence token included when the model wrote one.
        text: `token_ids` decoded, special tokens skipped, which is what TRL hands to a reward function.
        truncated: the token limit was reached before an end-of-sequence token.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    truncated: bool


def encode_prompt(tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Tokenize one prompt as TRL's GRPO trainer does.

    A conversation goes through the chat template with the generation prompt added; plain text is tokenized as it is,
    without a template.

    Raises:
        ValueError: the prompt has no tokens, or it is a conversation and the chat template is missing or refuses it.
        TypeError: the prompt is neither text nor a list of messages.
    """
    if isinstance(prompt, str):
        ids = tokenizer(text=prompt)["input_ids"]
    elif isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        if tokenizer.chat_template is None:
            raise UserValueError(
                "the prompt is a conversation but the tokenizer has no chat_template: set tokenizer.chat_template, or "
                "give the prompt as plain text"
            )
        try:
            encoded = tokenizer.apply_chat_template(
                conversation=prompt,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **(chat_template_kwargs or {}),
            )
        except Exception as error:  # a template is a program, and may raise anything
            roles = ", ".join(str(message.get("role")) for message in prompt)
            raise UserValueError(
                f"the chat template refuses a prompt of the roles {roles}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]} (write the prompts in the form that the template accepts, for "
                "instance with the instruction in the question, or give the tokenizer another template)"
            ) from error
        ids = encoded["input_ids"]
    else:
        raise UserTypeError(f"a prompt must be a string or a list of messages, got {type(prompt).__name__}")
    if not ids:
        raise UserValueError(f"prompt {prompt!r} has no tokens")
    return list(ids)


def check_prompts(
    tokenizer: Any, prompts: Iterable[Prompt], chat_template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Encode the first prompt of each form, that is of each sequence of roles; callers use it before slow work.

    Raises:
        ValueError, TypeError: one of them cannot be encoded; see `encode_prompt`.
    """
    seen = set()
    for prompt in prompts:
        form = None if isinstance(prompt, str) else tuple(str(message.get("role")) for message in prompt)
        if form not in seen:
            seen.add(form)
            encode_prompt(tokenizer, prompt, chat_template_kwargs)


def knows_system_role(tokenizer: Any) -> bool:
    """Whether the chat template shows the model what a system message says.

    Some templates raise an error (Gemma's), some leave the message out. True when there is no template, or when it
    renders no conversation at all: the error is raised later, where the template is used.
    """
    if tokenizer.chat_template is None:
        return True
    user, sign = {"role": "user", "content": "2 + 2?"}, "Be brief (7391)."

    def shown(*messages: dict[str, str]) -> str | None:
        try:
            return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
        except Exception:  # a template may raise anything
            return None

    if shown(user) is None:
        return True
    with_system = shown({"role": "system", "content": sign}, user)
    return with_system is not None and sign in with_system


def check_settings(
    samples: int = 1, temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = 1, batch_size: int = 1
) -> None:
    """Raise a ValueError that names the first setting which is out of range; callers use it before slow work."""
    for name, count in (("samples", samples), ("max_tokens", max_tokens), ("batch_size", batch_size)):
        if count < 1:
            raise UserValueError(f"{name} must be at least 1, got {count}")
    if not 0 <= temperature < float("inf"):
        raise UserValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserValueError(f"top_p must be above 0 and at most 1, got {top_p}")
