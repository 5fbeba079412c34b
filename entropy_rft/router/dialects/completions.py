"""OpenAI's completions. A prompt is no conversation: an instruction before it would change what is continued."""

from __future__ import annotations

from typing import Any

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.router.dialects.base import Body, Dialect
from entropy_rft.router.dialects.chat import DONE, effort, limits_thinking, with_thinking_limit
from entropy_rft.router.errors import RouterError
from entropy_rft.router.tokenizing import Question


def given(body: Body) -> Any:
    """The prompt, or the embeddings that stand for it."""
    prompt = body.get("prompt")
    return body.get("prompt_embeds") if prompt is None else prompt


def check(body: Body) -> None:
    if body.get("prompt") is None and body.get("prompt_embeds") is not None:
        return
    if not isinstance(body.get("prompt"), str | list) or body["prompt"] == []:
        raise RouterError(400, "prompt must be text, token ids, or a list of them", "invalid_prompt", "prompt")


def unprobed(body: Body) -> str | None:
    if body.get("prompt_embeds") is not None:
        return "embeddings"
    prompt = body["prompt"]
    one = isinstance(prompt, str) or all(type(token) is int for token in prompt) or len(prompt) == 1
    return None if one else "several"


def question(body: Body) -> Question:
    prompt = body.get("prompt") or ""
    if isinstance(prompt, list) and not all(type(token) is int for token in prompt):
        prompt = prompt[0]
    return Question(text=prompt) if isinstance(prompt, str) else Question(token_ids=prompt)


def prompts(body: Body) -> int:
    prompt = given(body)
    return len(prompt) if isinstance(prompt, list) and not all(type(token) is int for token in prompt) else 1


def uninstructed(body: Body, instruction: str, placement: Placement) -> dict[str, Any]:
    return {}


def with_effort(body: Body, effort: str | None) -> dict[str, Any]:
    """A prompt has no template that could read an effort: the client's can be removed, and none is set."""
    return {"reasoning_effort": None} if effort is None else {}


COMPLETIONS = Dialect(
    name="completions",
    path="/v1/completions",
    check=check,
    unprobed=unprobed,
    turns=lambda body: [("user", given(body))],
    question=question,
    instructed=uninstructed,
    conversation=(),
    opens_with_system=lambda body: False,
    limits=("max_completion_tokens", "max_tokens"),
    short_by_default=True,  # 16 tokens in vLLM
    effort=effort,
    with_effort=with_effort,
    says_thinking=lambda body: False,
    with_thinking_limit=with_thinking_limit,
    limits_thinking=limits_thinking,
    prompts=prompts,
    stream_end=DONE,
)
