"""Thresholds calibrated on a model's own traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from entropy_rft.difficulty.labels import NoProbeError, Thresholds, check_accuracy_and_entropy, labelled
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.errors import UserValueError

_QUANTILES, _GAPS = 19, 20  # candidates for entropy_normal


@dataclass(frozen=True)
class Calibration:
    """What `calibrate_thresholds` found.

    Attributes:
        thresholds: the result.
        separation: share of the scatter's variance that the classes explain, on the questions it was fitted to.
        validation_separation: the same on the questions that were held out.
        shares: fraction of all questions in each class, by its name.
        validation_shares: the same on the questions that were held out.
    """

    thresholds: Thresholds
    separation: float
    validation_separation: float
    shares: dict[str, float] = field(default_factory=dict)
    validation_shares: dict[str, float] = field(default_factory=dict)


def calibrate_thresholds(
    accuracy: Any,
    entropy: Any,
    *,
    validation_fraction: float = 0.3,
    min_share: float = 0.05,
    seed: int = 0,
) -> Calibration:
    """Find the thresholds of a model in the scatter of its traces.

    The paper chooses them by eye on the entropy/accuracy scatter and checks them on a small validation set. A reader of
    the scatter looks for three groups of points and for lines between them. This function does the same:

    1. The questions are split at random into a part to fit to and a validation part.
    2. Candidates: for `accuracy_hard <= accuracy_normal` every midpoint between neighbouring accuracies that occur; for
       `entropy_normal` quantiles of the entropy of the questions with at least that accuracy, and the middles of its
       widest gaps.
    3. A candidate labels the questions by the published rule. Its score is the share of the variance of (accuracy,
       entropy), each standardised, that lies between the classes: 1 when every class is a point, 0 when the labels
       explain nothing. Labels that give a class fewer than `min_share` of the questions are not candidates: a probe
       could not learn that class.
    4. The result is the best candidate whose classes have that share in the validation part too. Its score there is
       reported with the fitted score; if it is far lower, the thresholds follow noise. Its `entropy_normal` is then
       moved to the middle of the gap that contains it.

    It does not measure whether the strategies suit those classes; `probe evaluate` does.

    Args:
        accuracy: fraction of right answers of each question, (N,).
        entropy: mean token entropy of its answers, (N,), nats.
        validation_fraction: of the questions.
        min_share: smallest share of a class in each part, between 0 and 1/3.
        seed: of the split.

    Raises:
        ValueError: a value is not finite or out of range, there are fewer than 20 questions, or no thresholds leave
            every class its share.
    """
    a, h = np.asarray(accuracy, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if a.ndim != 1 or a.shape != h.shape:
        raise UserValueError(
            f"accuracy and entropy must be one number a question, got the shapes {a.shape} and {h.shape}"
        )
    check_accuracy_and_entropy(a, h)
    if not 0 < validation_fraction < 1:
        raise UserValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    if not 0 <= min_share <= 1 / 3:
        raise UserValueError(f"min_share must lie between 0 and 1/3, got {min_share}")
    if len(a) < 20:
        raise UserValueError(
            f"thresholds cannot be calibrated on {len(a)} questions: collect at least 20, or give them"
        )
    order = np.random.default_rng(seed).permutation(len(a))
    held_out = max(1, round(validation_fraction * len(a)))
    validation, fitted = order[:held_out], order[held_out:]
    scored = []
    for thresholds in _candidates(a[fitted], h[fitted]):
        score = _separation(a[fitted], h[fitted], thresholds, min_share)
        if score is not None:
            scored.append((score, thresholds))
    scored.sort(key=lambda pair: -pair[0])  # stable: equal scores stay in the candidates' order
    for score, thresholds in scored:  # noqa: B007
        check = _separation(a[validation], h[validation], thresholds, min_share)
        if check is not None:
            break
    else:
        raise NoProbeError(
            f"no thresholds leave each of easy, normal and hard {100 * min_share:g} % of these {len(a)} questions "
            f"(accuracy {a.min():.2f} to {a.max():.2f}): collect questions of more difficulties, or give the thresholds"
        )
    thresholds = replace(thresholds, entropy_normal=_middle(h[a >= thresholds.accuracy_normal], thresholds))
    return Calibration(
        thresholds=thresholds,
        separation=score,
        validation_separation=check,
        shares=_shares(a, h, thresholds),
        validation_shares=_shares(a[validation], h[validation], thresholds),
    )


def _candidates(accuracy: np.ndarray, entropy: np.ndarray) -> list[Thresholds]:
    levels = np.unique(accuracy)
    if len(levels) > 101:  # accuracies that are means of graded rewards
        levels = np.unique(np.quantile(accuracy, np.linspace(0, 1, 41)))
    cuts = (levels[1:] + levels[:-1]) / 2
    candidates = []
    for normal in cuts:
        values = np.sort(entropy[accuracy >= normal])
        widest = np.argsort(-np.diff(values), kind="stable")[:_GAPS]
        gaps = (values[widest] + values[widest + 1]) / 2
        quantiles = np.quantile(values, np.linspace(0, 1, _QUANTILES + 2)[1:-1])
        candidates += [
            Thresholds(accuracy_normal=float(normal), entropy_normal=float(h), accuracy_hard=float(hard))
            for h in np.unique(np.concatenate([quantiles, gaps]))
            for hard in cuts[cuts <= normal]
        ]
    return candidates


def _separation(accuracy: np.ndarray, entropy: np.ndarray, thresholds: Thresholds, min_share: float) -> float | None:
    """Between-class share of the variance; ``None`` where a class is too small."""
    labels = labelled(accuracy, entropy, thresholds)
    counts = np.bincount(labels, minlength=3)
    if counts.min() < max(1.0, min_share * len(labels)):
        return None
    between, total = 0.0, 0
    for values in (accuracy, entropy):
        spread = values.std()
        if spread < 1e-12:
            continue
        standard = (values - values.mean()) / spread
        sums = np.bincount(labels, weights=standard, minlength=3)
        between += float((sums**2 / counts).sum())
        total += len(labels)
    return between / total if total else None


def _middle(entropy: np.ndarray, thresholds: Thresholds) -> float:
    """The middle between the entropies next to `entropy_normal`, so that no label of these questions changes."""
    below, above = (entropy[entropy <= thresholds.entropy_normal], entropy[entropy > thresholds.entropy_normal])
    if not len(below) or not len(above):
        return thresholds.entropy_normal
    return float((below.max() + above.min()) / 2)


def _shares(accuracy: np.ndarray, entropy: np.ndarray, thresholds: Thresholds) -> dict[str, float]:
    counts = np.bincount(labelled(accuracy, entropy, thresholds), minlength=3)
    return {name: float(count / len(accuracy)) for name, count in zip(NAMES, counts, strict=True)}
