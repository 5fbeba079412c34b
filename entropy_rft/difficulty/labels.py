"""Easy, normal or hard, from how often a model is right and how uncertain its tokens are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from entropy_rft.difficulty.strategies import DIFFICULTIES, Difficulty
from entropy_rft.errors import UserTypeError, UserValueError

_EASY, _NORMAL, _HARD = range(3)


class NoProbeError(UserValueError):
    """No probe is possible for these questions: they are too similar for the model. This error is a result. Any other
    ValueError (a damaged file, a setting out of range) is a mistake."""


@dataclass(frozen=True)
class Thresholds:
    """The boundaries between the classes.

    Attributes:
        accuracy_normal: a normal question has at least this fraction of right answers,
        entropy_normal: and at most this mean token entropy, nats.
        accuracy_hard: a hard question has a smaller fraction of right answers than this.

    Raises:
        ValueError, TypeError: a value is not a number or is out of range.
    """

    accuracy_normal: float
    entropy_normal: float
    accuracy_hard: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserTypeError(f"{name} must be a number, not {value!r}")
            if not 0 <= value < math.inf or (name != "entropy_normal" and value > 1):
                high = "" if name == "entropy_normal" else " and at most 1"
                raise UserValueError(f"{name} must be at least 0{high}, got {value}")


PUBLISHED_THRESHOLDS = Thresholds(accuracy_normal=0.85, entropy_normal=0.35, accuracy_hard=0.60)
"""Those of the paper for the DeepSeek-R1 family. They are per model: see `calibrate_thresholds`."""


def label(accuracy: Any, entropy: Any, thresholds: Thresholds) -> Any:
    """The difficulty of questions (arXiv 2510.19669).

    Normal when ``accuracy >= accuracy_normal and entropy <= entropy_normal``, else Hard when ``accuracy <
    accuracy_hard``, else Easy. So Easy holds both the questions with right but uncertain answers, on the left side of
    the U shape, and those between the two accuracies. Where the conditions overlap (``accuracy_hard`` above
    ``accuracy_normal``), the label is Normal, the first of the published order.

    Args:
        accuracy: fraction of right answers, between 0 and 1; a number or an array.
        entropy: mean token entropy of the answers, nats; of the same shape.
        thresholds: the boundaries between the classes.

    Returns:
        A `Difficulty` for two numbers, an array of them (dtype object) otherwise.

    Raises:
        ValueError: the shapes differ, or a value is NaN, infinite or out of range.
    """
    a, h = np.asarray(accuracy, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if a.shape != h.shape:
        raise UserValueError(f"accuracy and entropy must have the same shape, got {a.shape} and {h.shape}")
    check_accuracy_and_entropy(a, h)
    return np.array(DIFFICULTIES, dtype=object)[labelled(a, h, thresholds)]


def labelled(accuracy: np.ndarray, entropy: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """The rule itself, as the columns of a probe's probabilities (int64); the values are not checked."""
    hard = accuracy < thresholds.accuracy_hard
    normal = (accuracy >= thresholds.accuracy_normal) & (entropy <= thresholds.entropy_normal)
    return np.where(normal, _NORMAL, np.where(hard, _HARD, _EASY))


def check_accuracy_and_entropy(accuracy: np.ndarray, entropy: np.ndarray) -> None:
    """Raise a ValueError that names the first value that is not a valid accuracy or entropy; NaN is not valid."""
    for name, values, high in (("accuracy", accuracy, 1.0), ("entropy", entropy, math.inf)):
        bad = ~(np.isfinite(values) & (values >= 0) & (values <= high))  # a NaN fails every comparison
        if bad.any():
            where = f" at index {int(np.flatnonzero(bad)[0])}" if values.ndim else ""
            bounds = "between 0 and 1" if high == 1 else "0 or a positive number"
            raise UserValueError(f"{name} must be {bounds}, got {values[bad].flat[0]}{where}")


def class_indices(labels: Any) -> np.ndarray:
    """Labels (`Difficulty` or their names) as the columns of a probe's probabilities, (N,) int64."""
    return np.asarray([Difficulty(value).index for value in labels], dtype=np.int64)
