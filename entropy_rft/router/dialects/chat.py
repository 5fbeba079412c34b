"""OpenAI's chat completions."""

from __future__ import annotations

import re
from typing import Any

from entropy_rft.difficulty.strategies import Placement, instructed
from entropy_rft.router.dialects.base import Body, Dialect, body_variables, check_list
from entropy_rft.router.tokenizing import Question

DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
THINKING_BUDGET = "thinking_token_budget"  # vLLM's field
_TEXT_PARTS = ("text", "refusal", "thinking", "reasoning")


def unprobed(body: Body) -> str | None:
    if body.get("continue_final_message"):
        return "prefill"
    for message in body["messages"]:
        content = message.get("content")
        if type(content) is list:
            for part in content:
                if isinstance(part, dict) and part.get("type", "text") not in _TEXT_PARTS:
                    return "image"
    return None


def question(body: Body) -> Question:
    variables = body_variables(body, effort(body))
    return Question(messages=body["messages"], tools=body.get("tools"), chat_template_kwargs=variables)


def with_instruction(body: Body, instruction: str, placement: Placement) -> dict[str, Any]:
    return {"messages": instructed(body["messages"], instruction, placement)}


def opens_with_system(body: Body) -> bool:
    return body["messages"][0]["role"] in ("system", "developer")


def effort(body: Body) -> Any:
    return body.get("reasoning_effort")


def with_thinking_limit(body: Body, tokens: int) -> dict[str, Any]:
    own = body.get(THINKING_BUDGET)
    return {THINKING_BUDGET: tokens if own is None else own}


def limits_thinking(body: Body) -> bool:
    return body.get(THINKING_BUDGET) is not None


CHAT = Dialect(
    name="chat",
    path="/v1/chat/completions",
    check=lambda body: check_list(body, "messages", "message", "role"),
    unprobed=unprobed,
    turns=lambda body: ((message["role"], message.get("content")) for message in body["messages"]),
    question=question,
    instructed=with_instruction,
    conversation=("messages",),
    opens_with_system=opens_with_system,
    limits=("max_completion_tokens", "max_tokens"),
    effort=effort,
    with_effort=lambda body, effort: {"reasoning_effort": effort},
    says_thinking=lambda body: effort(body) is not None,
    with_thinking_limit=with_thinking_limit,
    limits_thinking=limits_thinking,
    stream_end=DONE,
)
