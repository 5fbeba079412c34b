"""What an evaluation found, and its file."""

from __future__ import annotations

import json
import os
import re
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserValueError

SCHEMA = 1


def level_order(level: Any) -> tuple[bool, float, str]:
    """By which levels of difficulty are sorted: numbers by size, also where they are text, before anything else."""
    text = str(level)
    number = re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", text) is not None
    return (not number, float(text) if number else 0.0, text)


@dataclass(kw_only=True)
class Scores:
    """The numbers of one set of questions. A number without any data is ``None``.

    Attributes:
        questions: how many were asked.
        unscorable: completions whose reward was ``None``. They are left out of avg@k and pass@k, and counted in all
            else.
        avg_at_k: mean over questions of the fraction of right samples; k is the number of samples. Right is a reward
            above 0.
        avg_interval: 95 % interval of `avg_at_k`, from a bootstrap over questions.
        pass_at_k: for each k the unbiased pass@k, averaged over the questions that have k scorable samples.
        tokens: mean length of a completion, end-of-sequence token included.
        thinking_tokens: mean number of tokens before the end-of-thinking marker (all of them where it is missing).
        answer_tokens: mean number of tokens after it.
        truncated: fraction of completions that reached the token limit.
        marker_missing: fraction of completions without the marker.
        entropy: mean over all tokens of all completions, so that a long completion weighs more; nats. It is that of
            the model's own distribution, at temperature 1 and without top-p whatever the sampling settings, which
            makes evaluations at different temperatures comparable.
        entropy_thinking: the same over the tokens before the marker.
        entropy_answer: the same over the tokens after the marker.
        pear_prefers_shorter: of two right answers to one question, how often PEAR (α = 1, no floor) would reward the
            shorter more: the share of pairs, averaged over the questions that have one. Below 0.5 it rewards length.
    """

    questions: int
    unscorable: int
    avg_at_k: float | None
    avg_interval: tuple[float, float] | None
    pass_at_k: dict[int, float]
    tokens: float
    thinking_tokens: float
    answer_tokens: float
    truncated: float
    marker_missing: float
    entropy: float | None
    entropy_thinking: float | None
    entropy_answer: float | None
    pear_prefers_shorter: float | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Read what `to_dict` wrote; unknown keys are ignored.

        Raises:
            ValueError: a field is missing.
        """
        optional = {f.name for f in fields(cls) if f.default is not MISSING or f.default_factory is not MISSING}
        missing = [f.name for f in fields(cls) if f.name not in data and f.name not in optional]
        if missing:
            raise UserValueError(f"the evaluation has no {', '.join(missing)}")
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["pass_at_k"] = {int(k): value for k, value in known["pass_at_k"].items()}
        if known["avg_interval"] is not None:
            known["avg_interval"] = tuple(known["avg_interval"])
        return cls(**known)


@dataclass(kw_only=True)
class Evaluation(Scores):
    """The scores of a model on a task.

    Attributes:
        model: its name or directory.
        task: the task's name.
        split: the task's split.
        samples: completions per question.
        settings: `temperature`, `top_p`, `max_tokens`, `seed` and `think_end_token`; of the effort what was set.
        questions_digest: identifies the questions; evaluations with the same digest asked the same ones in the same
            order.
        question_means: the fraction of right samples of each question in that order, ``None`` where nothing could be
            scored. It is what a paired comparison of two evaluations needs.
        by_difficulty: the scores per value of the data set's `difficulty` column (or `level`), in ascending order;
            empty without that column.
        seconds: wall-clock time of it all.
    """

    model: str
    task: str
    split: str
    samples: int
    settings: dict[str, Any]
    questions_digest: str = ""
    question_means: list[float | None] = field(default_factory=list)
    by_difficulty: dict[str, Scores] = field(default_factory=dict)
    seconds: float

    @property
    def hardest(self) -> tuple[str, Scores] | None:
        """The highest level and its scores; ``None`` where there are not several levels."""
        return list(self.by_difficulty.items())[-1] if len(self.by_difficulty) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the version of their layout under "schema"."""
        levels = {level: _plain(asdict(scores)) for level, scores in self.by_difficulty.items()}
        return {"schema": SCHEMA, **_plain(asdict(self)), "by_difficulty": levels}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """The inverse of `to_dict`.

        Raises:
            ValueError: another schema, or a missing field.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise UserValueError(f"not an evaluation of schema {SCHEMA}: schema is {found!r}")
        evaluation: Evaluation = super().from_dict(data)
        evaluation.by_difficulty = {
            level: Scores.from_dict(scores)  # type: ignore[arg-type]
            for level, scores in evaluation.by_difficulty.items()
        }
        return evaluation

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; see :mod:`entropy_rft.atomic`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # NaN is not valid JSON: an error here is better than a file that other readers reject.
        write_text(target, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not an evaluation; the message names the file.
            OSError: the file cannot be read.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserValueError(f"{os.fspath(path)}: {error}") from error


def _plain(scores: dict[str, Any]) -> dict[str, Any]:
    """As JSON stores it: text keys, no tuples."""
    interval = scores["avg_interval"]
    return {
        **scores,
        "avg_interval": None if interval is None else list(interval),
        "pass_at_k": {str(k): value for k, value in scores["pass_at_k"].items()},
    }
