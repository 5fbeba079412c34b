"""The settings of a study of the probe, from a file or from flags."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entropy_rft.difficulty.labels import Thresholds
from entropy_rft.difficulty.strategies import DEFAULT_STRATEGIES, DIFFICULTIES, Difficulty, Strategy, strategies_from
from entropy_rft.errors import UserValueError
from entropy_rft.files import load_yaml
from entropy_rft.suggestions import did_you_mean
from entropy_rft.tasks import check_options


@dataclass(frozen=True)
class StudySettings:
    """The settings of a study; see the fields of `collect_traces`, `train_probe` and `answer_questions`.

    Attributes:
        dtype: of the model's weights; see `load_model_and_tokenizer`.
        parts: kinds of questions, each a mapping of ``level`` (the difficulty, a number or a name) and ``options`` (of
            the task). The questions are divided equally among them. Without any, the task has its own levels.
        shared_traces: all seeds have the traces and answers of the first one: a seed is then of the split and of the
            weights only.
        train_questions, test_questions: of all parts together.
        samples, temperature: answers to each question of the traces, and the temperature of their sampling.
        answer_samples: answers to each test question with each strategy.
        min_confidence: below it the choice of the probe, and of the rule by the prompt's length, is Normal. ``None``
            chooses it for each seed and each of the two, on the held-out part of the training questions.
        tolerance: accuracy that this choice may lose, as a fraction.
    """

    model: str = "tiny_reasoner"
    dtype: str = "auto"
    task: str = "arithmetic"
    parts: Sequence[Mapping[str, Any]] = ()
    shared_traces: bool = False
    train_questions: int = 1500
    test_questions: int = 600
    samples: int = 10
    answer_samples: int = 4
    max_tokens: int = 160
    temperature: float = 1.0
    layer: int = -1
    kind: str = "mlp"
    hidden_units: int = 256
    thresholds: Thresholds | None = None
    min_share: float = 0.05
    min_confidence: float | None = None
    tolerance: float = 0.01
    strategies: Mapping[Difficulty, Strategy] = field(default_factory=lambda: dict(DEFAULT_STRATEGIES))

    def __post_init__(self) -> None:
        for index, part in enumerate(self.parts):
            if not isinstance(part, Mapping) or set(part) != {"level", "options"}:
                raise UserValueError(
                    f"parts: each is a mapping of level and options (of the task), but number {index + 1} is {part!r}"
                )
            if not isinstance(part["options"], Mapping):
                raise UserValueError(
                    f"parts: the options of number {index + 1} must be a mapping, not {part['options']!r}"
                )
            check_options(part["options"])
        for name in ("train_questions", "test_questions"):
            if self.parts and (getattr(self, name) < 1 or getattr(self, name) % len(self.parts)):
                raise UserValueError(
                    f"{name} must be a multiple of the {len(self.parts)} parts, not {getattr(self, name)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "parts": [{"level": part["level"], "options": dict(part["options"])} for part in self.parts],
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
            "strategies": {d.value: self.strategies[d].to_dict() for d in DIFFICULTIES},
        }


def read_config(path: Path, flags: Collection[str]) -> dict[str, Any]:
    """The settings in a YAML file: fields of `StudySettings`, and flags of the script.

    Args:
        path: of the file.
        flags: further names that the file may hold.

    Raises:
        ValueError: the file cannot be read, or holds an unknown name; one line.
    """
    data = load_yaml(path, "config")
    if not isinstance(data, dict):
        raise UserValueError(f"config {str(path)!r} must map settings to values, not be {data!r}")
    known = {*StudySettings.__dataclass_fields__, *flags}
    for name in data:
        if name not in known:
            raise UserValueError(f"config {str(path)!r} has an unknown setting {name!r}{did_you_mean(name, known)}")
    if "strategies" in data:
        data["strategies"] = strategies_from(data["strategies"], f"config {str(path)!r}: strategies")
    return data
