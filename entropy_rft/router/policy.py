"""Decides the difficulty of a request, and rewrites it for the strategy. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES, Difficulty, Placement, Strategy, instructed
from entropy_rft.router.errors import RouterError
from entropy_rft.suggestions import did_you_mean

if TYPE_CHECKING:
    from entropy_rft.router.backends import Backend

Endpoint = Literal["chat", "completions"]
AUTO = "auto"
DIFFICULTY_HEADER = "x-entropy-rft-difficulty"
CHOICES = (AUTO, *NAMES)
_LIMITS = ("max_completion_tokens", "max_tokens")
_TEXT_PARTS = ("text", "refusal", "thinking", "reasoning")

REASONS = (
    "probe",  # the probe was asked and its confidence is high enough
    "client",  # the request gives its difficulty itself
    "low_confidence",
    "image",  # a part of a message is not text: the probe is not trained for it
    "several",  # several prompts in one request: there is one strategy for all
    "prefill",  # the request continues an unfinished answer
    "no_probe",
    "feature_timeout",
    "feature_error",
)
"""Why a request got its difficulty; all but the first two mean Normal because there is no other choice."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A difficulty and why.

    Attributes:
        difficulty: chosen.
        confidence: the probability that the probe gave its first choice; 1 where the client chose; ``None`` where
            the probe was not asked.
        reason: one of `REASONS`.
        backend: that was asked for the difficulty, and is to answer: it has the question in its prefix cache.
    """

    difficulty: Difficulty
    confidence: float | None
    reason: str
    backend: Backend | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How token limits are set; see `RouterSettings.max_tokens` and `client_max_tokens`.

    Attributes:
        tokens: the whole budget where the client gives no limit.
        explicit: it is set in the settings, so that it also limits a strategy with a fraction of 1.
        of_client: a client's limit is a budget too, instead of an override.
    """

    tokens: int
    explicit: bool
    of_client: bool


def normal(reason: str) -> Decision:
    """Normal, because there is no other choice."""
    return Decision(Difficulty.NORMAL, None, reason)


def from_probabilities(proba: Sequence[float], min_confidence: float) -> Decision:
    """The most probable of EASY, NORMAL and HARD, or Normal below `min_confidence`."""
    confidence = max(proba)
    if not confidence >= min_confidence:
        return Decision(Difficulty.NORMAL, confidence, "low_confidence")
    return Decision(DIFFICULTIES[proba.index(confidence)], confidence, "probe")


def check_request(body: Any, endpoint: Endpoint) -> dict[str, Any]:
    """`body` if the router can handle it; other checks are left to the backend.

    Raises:
        RouterError: it is not an object, or has no conversation or prompt.
    """
    if not isinstance(body, dict):
        raise RouterError(400, "the body must be a JSON object", "invalid_body")
    if endpoint == "chat":
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise RouterError(400, "messages must be a list of at least one message", "invalid_messages", "messages")
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise RouterError(
                    400, f"messages[{index}] must be an object with a role", "invalid_messages", f"messages[{index}]"
                )
    elif not isinstance(body.get("prompt"), str | list) or body["prompt"] == []:
        raise RouterError(400, "prompt must be text, token ids, or a list of them", "invalid_prompt", "prompt")
    return body


def asked_difficulty(body: Mapping[str, Any], header: str | None) -> Difficulty | None:
    """What the client wants: the body's `difficulty`, else the header's; ``None`` for auto.

    Raises:
        RouterError: one of them is not a difficulty, even where the other one is used.
    """
    in_body = body.get("difficulty")
    if in_body is not None:
        _check_choice(in_body, "difficulty")
    if header is not None:
        header = header.strip().lower()
        _check_choice(header, DIFFICULTY_HEADER)
    value = header if in_body is None else in_body
    return None if value is None or value == AUTO else Difficulty(value)


def _check_choice(value: Any, where: str) -> None:
    if value not in CHOICES:
        shown = str(value)[:40]
        hint = did_you_mean(shown, CHOICES)
        raise RouterError(
            400, f"{where} must be auto, easy, normal or hard, not {shown!r}{hint}", "invalid_difficulty", where
        )


def unprobed(body: Mapping[str, Any], endpoint: Endpoint) -> str | None:
    """Why the probe cannot be used for this request, or ``None`` if it can."""
    if endpoint == "completions":
        prompt = body["prompt"]
        one = isinstance(prompt, str) or all(type(token) is int for token in prompt) or _one_of_one(prompt)
        return None if one else "several"
    if body.get("continue_final_message"):
        return "prefill"
    for message in body["messages"]:
        content = message.get("content")
        if type(content) is list:
            for part in content:
                if isinstance(part, dict) and part.get("type", "text") not in _TEXT_PARTS:
                    return "image"
    return None


def _one_of_one(prompt: list[Any]) -> bool:
    return len(prompt) == 1


def rewrite(
    body: Mapping[str, Any],
    strategy: Strategy,
    budget: Budget,
    endpoint: Endpoint,
    model: str | None = None,
    placement: Placement = "system",
) -> tuple[dict[str, Any], bool]:
    """The request for the backend: the strategy's instruction, temperature and share of the budget.

    The client's own values override the strategy's: its temperature, and its token limit unless that is a budget. A
    prompt of /v1/completions gets no instruction: it is not a conversation, and text put before it would change what
    is continued. `body` is not changed.

    Args:
        body: checked by `check_request`.
        strategy: of the chosen difficulty.
        budget: of tokens.
        endpoint: of the request.
        model: replaces the request's.
        placement: of the instruction; see `instructed`.

    Returns:
        The new request, and whether only the router set its token limit, so that it may be left out if it does not fit.
    """
    new = dict(body)
    new.pop("difficulty", None)
    if model is not None:
        new["model"] = model
    if endpoint == "chat" and strategy.instruction:
        new["messages"] = instructed(body["messages"], strategy.instruction, placement)
    if body.get("temperature") is None and not (strategy.temperature == 0 and _count(body) > 1):
        new["temperature"] = strategy.temperature  # backends refuse n greedy answers, which would all be the same
    given = next((name for name in _LIMITS if body.get(name) is not None), None)
    if given is not None:
        limit = body[given]
        if budget.of_client and type(limit) is int and limit > 0:
            new[given] = strategy.max_tokens(limit)
        return new, False
    # A prompt of /v1/completions has a short limit by default (16 tokens in vLLM). A share of the context would give an
    # easy question more than a normal one gets.
    if not budget.explicit and (strategy.max_tokens_fraction == 1 or endpoint == "completions"):
        return new, False
    new["max_tokens"] = strategy.max_tokens(budget.tokens)
    return new, True


def _count(body: Mapping[str, Any]) -> int:
    """Answers that the request wants."""
    n = body.get("n")
    return n if type(n) is int and n > 1 else 1


def answers_wanted(body: Mapping[str, Any], endpoint: Endpoint) -> int:
    """Answers in total: `n` for each prompt."""
    prompt = body.get("prompt")
    several = endpoint == "completions" and isinstance(prompt, list) and not all(type(token) is int for token in prompt)
    return _count(body) * (len(prompt) if several and isinstance(prompt, list) else 1)
