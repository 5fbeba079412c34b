"""Decides the difficulty of a request, and rewrites it for the strategy. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES, Difficulty, Placement, Strategy
from entropy_rft.router.dialects import DIALECTS, Dialect, Endpoint
from entropy_rft.router.errors import RouterError
from entropy_rft.suggestions import did_you_mean

if TYPE_CHECKING:
    from entropy_rft.router.backends import Backend
    from entropy_rft.router.experiment import Arm

AUTO = "auto"
DIFFICULTY_HEADER = "x-entropy-rft-difficulty"
CHOICES = (AUTO, *NAMES)
EFFORT_DIFFICULTIES = {"low": Difficulty.EASY, "medium": Difficulty.NORMAL, "high": Difficulty.HARD}
"""What a client's effort of reasoning stands for where the settings say that it stands for a difficulty."""

REASONS = (
    "probe",  # the probe was asked and its confidence is high enough
    "client",  # the request gives its difficulty itself
    "turn",  # an earlier request of the same turn was harder; see turns.py
    "low_confidence",
    "image",  # a part of a message is not text: the probe is not trained for it
    "item",  # an item of the input is neither a message, a call of a function or its result, nor reasoning
    "several",  # several prompts in one request: there is one strategy for all
    "embeddings",  # the prompt is given as embeddings: there is no text to ask the probe about
    "prefill",  # the request continues an unfinished answer
    "no_probe",
    "feature_timeout",
    "feature_error",
    "control",  # the conversation is in the arm without strategies
)
"""Why a request got its difficulty; all but the first three mean Normal because there is no other choice, and `control`
that nothing was decided."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A difficulty and why.

    Attributes:
        difficulty: chosen.
        confidence: the probability that the probe gave its first choice; 1 where the client chose; ``None`` where
            the probe was not asked.
        reason: one of `REASONS`.
        backend: that was asked for the difficulty, and is to answer: it has the question in its prefix cache.
        arm: of the conversation; see `experiment`.
        place: of the conversation, where it has one.
    """

    difficulty: Difficulty
    confidence: float | None
    reason: str
    backend: Backend | None = None
    arm: Arm = "treatment"
    place: float | None = None

    @property
    def label(self) -> str:
        """The difficulty in metrics and logs; `none` where nothing was decided."""
        return "none" if self.arm == "control" else self.difficulty.value


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
    DIALECTS[endpoint].check(body)
    return body


def asked_difficulty(body: Mapping[str, Any], header: str | None, effort: Any = None) -> Difficulty | None:
    """What the client wants: the body's `difficulty`, else the header's; ``None`` for auto.

    Without either it is that of `effort`, the client's effort of reasoning where it stands for a difficulty, if it is
    one of `EFFORT_DIFFICULTIES`.

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
    if value is None and stands_for_difficulty(effort):
        return EFFORT_DIFFICULTIES[effort]
    return None if value is None or value == AUTO else Difficulty(value)


def stands_for_difficulty(effort: Any) -> bool:
    """Whether a client's effort of reasoning has a difficulty."""
    return isinstance(effort, str) and effort in EFFORT_DIFFICULTIES


def _check_choice(value: Any, where: str) -> None:
    if value not in CHOICES:
        shown = str(value)[:40]
        hint = did_you_mean(shown, CHOICES)
        raise RouterError(
            400, f"{where} must be auto, easy, normal or hard, not {shown!r}{hint}", "invalid_difficulty", where
        )


def unprobed(body: Mapping[str, Any], endpoint: Endpoint) -> str | None:
    """Why the probe cannot be used for this request, or ``None`` if it can."""
    return DIALECTS[endpoint].unprobed(body)


def stripped(body: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    """The request without what only the router reads, and with the name that the backends give to the model."""
    new = dict(body)
    new.pop("difficulty", None)
    if model is not None:
        new["model"] = model
    return new


def unchanged(raw: bytes, body: Mapping[str, Any], model: str | None = None) -> bytes:
    """What a backend gets of a request without a strategy: the client's own bytes, unless something is for the router
    alone or the model has another name (see `stripped`)."""
    if "difficulty" not in body and (model is None or body.get("model") == model):
        return raw
    return orjson.dumps(stripped(body, model))


def rewrite(
    body: Mapping[str, Any],
    strategy: Strategy,
    budget: Budget,
    endpoint: Endpoint,
    model: str | None = None,
    placement: Placement = "system",
    *,
    thinking: bool = True,
    takes_effort: bool = False,
) -> tuple[dict[str, Any], bool]:
    """The request for the backend: the strategy's instruction and temperature, and how much to think.

    The client's own values override the strategy's, field by field; in `chat_template_kwargs` variable by variable. Its
    token limit does unless that is a budget. A prompt of /v1/completions gets no instruction and no variables of a
    template: it is not a conversation, and text put before it would change what is continued. Where each field of the
    strategy goes is the dialect's; a field that it does not have is left out. `body` is not changed.

    A limit on the thinking takes the place of the share of the budget: a share would cut answers off.

    Args:
        body: checked by `check_request`.
        strategy: of the chosen difficulty.
        budget: of tokens.
        endpoint: of the request.
        model: replaces the request's.
        placement: of the instruction; see `instructed`.
        thinking: the backend knows a limit on the thinking; without it the strategy's share of the budget is set.
        takes_effort: a client's effort of reasoning stands for the difficulty, so it is not passed on.

    Returns:
        The new request, and whether only the router set its token limit, so that it may be left out if it does not fit.
    """
    dialect = DIALECTS[endpoint]
    new = stripped(body, model)
    if takes_effort and stands_for_difficulty(dialect.effort(body)):
        _change(new, dialect.with_effort(new, None))
    for name, value in (strategy.extra_body or {}).items():
        if (dialect.extra is None or name in dialect.extra) and new.get(name) is None:
            new[name] = value
    if dialect.conversation:
        _set_variables(new, strategy, dialect)
    if strategy.reasoning_effort is not None and dialect.effort(new) is None:
        _change(new, dialect.with_effort(new, strategy.reasoning_effort))
    if strategy.instruction:
        new.update(dialect.instructed(body, strategy.instruction, placement))
    if body.get("temperature") is None and not (strategy.temperature == 0 and _count(body) > 1):
        new["temperature"] = strategy.temperature  # backends refuse n greedy answers, which would all be the same
    tokens = strategy.thinking_tokens if thinking else None
    limit_on_thinking = {} if tokens is None else dialect.with_thinking_limit(new, tokens)
    new.update(limit_on_thinking)
    share = strategy.answer_tokens if limit_on_thinking else strategy.max_tokens
    given = next((name for name in dialect.limits if body.get(name) is not None), None)
    if given is not None:
        limit = body[given]
        if budget.of_client and type(limit) is int and limit > 0:
            new[given] = min(limit, max(share(limit), dialect.least_tokens(body)))
        return new, False
    # A share of the context would give an easy question of a dialect with short answers more than a normal one gets.
    as_it_is = limit_on_thinking or strategy.max_tokens_fraction == 1 or dialect.short_by_default
    if not budget.explicit and as_it_is:
        return new, False
    new[dialect.limits[-1]] = share(budget.tokens)
    return new, True


def _change(new: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Set fields, and remove those that are ``None``."""
    for name, value in fields.items():
        if value is None:
            new.pop(name, None)
        else:
            new[name] = value


def _set_variables(new: dict[str, Any], strategy: Strategy, dialect: Dialect) -> None:
    """Set what the chat template reads."""
    variables, own = strategy.chat_template_kwargs, new.get("chat_template_kwargs")
    if not variables or not (own is None or isinstance(own, dict)):  # anything else is the backend's to refuse
        return
    if dialect.says_thinking(new):  # vLLM makes this variable of what the client says
        variables = {name: value for name, value in variables.items() if name != "enable_thinking"}
    new["chat_template_kwargs"] = {**variables, **(own or {})}


def applied(
    body: Mapping[str, Any], new: Mapping[str, Any], placement: Placement, endpoint: Endpoint
) -> list[tuple[str, str]]:
    """What the router set in a request: each field's name, and how it is shown (a value only where it is short).

    Args:
        body: the client's.
        new: of `rewrite`.
        placement: of the instruction in it.
        endpoint: of the request.
    """
    dialect, found = DIALECTS[endpoint], []
    for name, value in new.items():
        own = body.get(name)
        if name == "model" or value is own:
            continue
        if name in dialect.conversation:
            found.append(("instruction", f"instruction={placement}"))
        elif name == "chat_template_kwargs":
            found += [(name, f"{name}.{_word(key)}") for key in value if key not in (own or {})]
        elif name in dialect.objects:
            ours = [(key, each) for key, each in value.items() if own is None or own.get(key) != each]
            found += [(f"{name}.{key}", f"{name}.{key}={each}") for key, each in ours]
        else:
            short = isinstance(value, int | float) or name == "reasoning_effort"
            found.append((_word(name), f"{_word(name)}={value}" if short else _word(name)))
    return found


def _word(name: str) -> str:
    """A name as a header may hold it."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-.") else "?" for letter in name)


def _count(body: Mapping[str, Any]) -> int:
    """Answers that the request wants."""
    n = body.get("n")
    return n if type(n) is int and n > 1 else 1


def answers_wanted(body: Mapping[str, Any], endpoint: Endpoint) -> int:
    """Answers in total: `n` for each prompt."""
    return _count(body) * DIALECTS[endpoint].prompts(body)
