"""How to answer a question of each difficulty: an instruction, a temperature, and how much to think."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from entropy_rft.atomic import write_text
from entropy_rft.effort import EFFORT_FIELDS, checked_effort
from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.suggestions import did_you_mean
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY


class Difficulty(Enum):
    """How hard a question is for a model. The order EASY, NORMAL, HARD is that of a probe's probabilities."""

    EASY = "easy"
    NORMAL = "normal"
    HARD = "hard"

    @property
    def index(self) -> int:
        """The column of this class in a probe's probabilities."""
        return DIFFICULTIES.index(self)


DIFFICULTIES = (Difficulty.EASY, Difficulty.NORMAL, Difficulty.HARD)


Placement = Literal["system", "user_end"]
"""Where an instruction goes: the system message, or the end of the last user message."""
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
_INSTRUCTED_ROLES = ("system", "developer")


def instructed(messages: Sequence[Mapping[str, Any]], instruction: str, placement: Placement = "system") -> list[Any]:
    """The conversation with the instruction; the messages themselves are not changed.

    Args:
        messages: as OpenAI's; a content may be text or a list of parts.
        instruction: to be added.
        placement: ``system``: at the end of the first message where that is a system (or developer) message, else in a
            new one before it. ``user_end``: at the end of the last user message; without one the instruction is
            dropped.
    """
    if placement == "system":
        if not messages or messages[0]["role"] not in _INSTRUCTED_ROLES:
            return [{"role": "system", "content": instruction}, *messages]
        index = 0
    else:
        last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
        if last is None:
            return list(messages)
        index = last
    return [*messages[:index], _with_ending(messages[index], instruction), *messages[index + 1 :]]


def check_placement(placement: Any) -> Placement:
    """`placement` itself; raises a ValueError unless it is ``system`` or ``user_end``."""
    if placement not in PLACEMENTS:
        raise UserValueError(
            f"placement must be system or user_end, not {placement!r}{did_you_mean(placement, PLACEMENTS)}"
        )
    found: Placement = placement
    return found


def _with_ending(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": f"\n\n{text}" if content else text}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


@dataclass(frozen=True)
class Strategy:
    """How to ask a question of one difficulty.

    Attributes:
        difficulty: for which questions.
        instruction: a system message, or the end of the last user message (`Placement`); "" adds none.
        temperature: of sampling; 0 is greedy.
        max_tokens_fraction: of the tokens that an answer may have, above 0 and at most 1. With `thinking_tokens` it is
            used only where a server does not know a limit on the thinking.
        thinking_tokens: after so many tokens of thinking its end is forced, and the answer follows; ``None``: no limit.
        reasoning_effort: a word of `EFFORTS`, for models that know it; ``None``: not sent.
        chat_template_kwargs: variables of the chat template, such as ``{"enable_thinking": False}``.
        extra_body: any other fields of a request.

    Raises:
        ValueError, TypeError: a field is out of range or of another type.
    """

    difficulty: Difficulty
    instruction: str
    temperature: float
    max_tokens_fraction: float
    thinking_tokens: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)
    extra_body: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.difficulty, Difficulty):
            try:
                object.__setattr__(self, "difficulty", Difficulty(self.difficulty))
            except ValueError:
                raise UserValueError(
                    f"difficulty must be easy, normal or hard, not {self.difficulty!r}"
                    f"{did_you_mean(self.difficulty, NAMES)}"
                ) from None
        if not isinstance(self.instruction, str):
            raise UserTypeError(f"instruction must be text, not {self.instruction!r}")
        for name in ("temperature", "max_tokens_fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserTypeError(f"{name} must be a number, not {value!r}")
        if not 0 <= self.temperature < math.inf:
            raise UserValueError(f"temperature must be 0 (greedy) or a positive number, got {self.temperature}")
        if not 0 < self.max_tokens_fraction <= 1:
            raise UserValueError(f"max_tokens_fraction must be above 0 and at most 1, got {self.max_tokens_fraction}")
        checked = checked_effort(**{name: getattr(self, name) for name in EFFORT_FIELDS})
        for name in EFFORT_FIELDS:
            object.__setattr__(self, name, checked.get(name))

    @property
    def effort(self) -> dict[str, Any]:
        """Those of the last four fields that are set: arguments of a sampler's `sample`."""
        return {name: getattr(self, name) for name in EFFORT_FIELDS if getattr(self, name) is not None}

    def max_tokens(self, budget: int) -> int:
        """The strategy's share of a budget of tokens, at least 1."""
        return max(1, int(self.max_tokens_fraction * budget))

    def answer_tokens(self, budget: int) -> int:
        """Most tokens of an answer where a limit on the thinking works: with one the whole budget, else the share."""
        return self.max_tokens(budget) if self.thinking_tokens is None else budget

    def prompt(self, prompt: Any, placement: Placement = "system") -> Any:
        """`prompt` with the instruction, where `placement` says (see `instructed`); in plain text it comes first.

        The prompt itself is not changed.
        """
        if not self.instruction:
            return prompt
        if isinstance(prompt, str):
            return f"{self.instruction}\n\n{prompt}"
        return instructed(prompt, self.instruction, placement)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the difficulty, which is the key in a file."""
        return {
            "instruction": self.instruction,
            "temperature": self.temperature,
            "max_tokens_fraction": self.max_tokens_fraction,
            **self.effort,  # nothing where nothing is set, as in files of earlier versions
        }


NAMES = tuple(difficulty.value for difficulty in DIFFICULTIES)
_FIELDS = ("instruction", "temperature", "max_tokens_fraction", *EFFORT_FIELDS)

DEFAULT_STRATEGIES: Mapping[Difficulty, Strategy] = {
    Difficulty.EASY: Strategy(Difficulty.EASY, DIRECT, 0.5, 0.4),
    Difficulty.NORMAL: Strategy(Difficulty.NORMAL, STEP_BY_STEP, 0.8, 1.0),
    Difficulty.HARD: Strategy(Difficulty.HARD, STOP_EARLY, 0.4, 0.5),
}
"""The published temperatures and budgets. The paper's instructions are not public: these texts are the project's."""


def strategies_from(data: Any, where: str = "strategies") -> dict[Difficulty, Strategy]:
    """Strategies from a mapping of a difficulty's name to the fields; a field that is left out has its default.

    Args:
        data: for instance ``{"easy": {"temperature": 0.3}}``.
        where: its name in error messages.

    Raises:
        ValueError: an unknown name, or a value out of range or of another type; one line that names it.
    """
    if not isinstance(data, Mapping):
        raise UserValueError(f"{where} must map easy, normal and hard to their fields, not be a {type(data).__name__}")
    strategies = dict(DEFAULT_STRATEGIES)
    for name, fields in data.items():
        if name not in NAMES:
            raise UserValueError(
                f"{where}: there is no difficulty {name!r}{did_you_mean(name, NAMES)}; known: easy, normal, hard"
            )
        if not isinstance(fields, Mapping):
            raise UserValueError(f"{where}: {name} must map {', '.join(_FIELDS)} to values, not be {fields!r}")
        for key in fields:
            if key not in _FIELDS:
                raise UserValueError(f"{where}: {name} has no field {key!r}{did_you_mean(key, _FIELDS)}")
        difficulty = Difficulty(name)
        try:
            strategies[difficulty] = Strategy(difficulty, **{**DEFAULT_STRATEGIES[difficulty].to_dict(), **fields})
        except (ValueError, TypeError) as error:
            raise UserValueError(f"{where}: {name}: {error}") from error
    return strategies


def load_strategies(path: str | os.PathLike[str]) -> dict[Difficulty, Strategy]:
    """Read strategies from a YAML file; see `strategies.yaml` beside this module for an example.

    Raises:
        ValueError: the file cannot be read or is malformed; one line that names it.
    """
    from entropy_rft.files import load_yaml

    data = load_yaml(path, "strategies")
    return strategies_from({} if data is None else data, f"strategies {os.fspath(path)!r}")


def save_strategies(strategies: Mapping[Difficulty, Strategy], path: str | os.PathLike[str], comment: str = "") -> None:
    """Write strategies as YAML, with `comment` above them."""
    import yaml

    data = {difficulty.value: strategies[difficulty].to_dict() for difficulty in DIFFICULTIES}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))
