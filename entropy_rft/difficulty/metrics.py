"""How good a classifier of difficulties is."""

from __future__ import annotations

from typing import Any

import numpy as np

from entropy_rft.errors import UserValueError

CLASSES = 3


def confusion_matrix(true: Any, predicted: Any) -> np.ndarray:
    """Counts, (true class, predicted class); classes are the columns of a probe's probabilities."""
    truth, guess = np.asarray(true, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if truth.shape != guess.shape or truth.ndim != 1 or not len(truth):
        raise UserValueError(f"true and predicted must name the same questions, got {truth.shape} and {guess.shape}")
    return np.bincount(truth * CLASSES + guess, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def accuracy(matrix: np.ndarray) -> float:
    """Share of right predictions in a confusion matrix."""
    return float(np.trace(matrix) / matrix.sum())


def macro_f1(matrix: np.ndarray) -> float:
    """Mean of ``2 TP / (2 TP + FP + FN)`` over the classes that occur as true classes.

    So all classifiers are compared over the same classes, whatever they predict. A wrong prediction of a class that
    does not occur counts as an error of the true class.
    """
    hits = np.diag(matrix).astype(np.float64)
    total = matrix.sum(0) + matrix.sum(1)  # 2 TP + FP + FN
    occurs = matrix.sum(1) > 0
    return float((2 * hits[occurs] / total[occurs]).mean())


def expected_calibration_error(proba: Any, true: Any, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy, in bins of equal width over the confidence of the chosen class.

    Args:
        proba: probabilities, (N, 3).
        true: classes, (N,).
        bins: of the interval from 0 to 1; each holds its upper end.
    """
    values, truth = np.asarray(proba, dtype=np.float64), np.asarray(true, dtype=np.int64)
    confidence, right = values.max(1), values.argmax(1) == truth
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = [
        abs(confidence[bin_of == b].mean() - right[bin_of == b].mean()) * (bin_of == b).sum()
        for b in range(bins)
        if (bin_of == b).any()
    ]
    return float(sum(gaps) / len(truth))


def classification_report(proba: Any, true: Any) -> dict[str, Any]:
    """Accuracy, macro-F1, confusion matrix and calibration error, as plain JSON values."""
    values = np.asarray(proba, dtype=np.float64)
    matrix = confusion_matrix(true, values.argmax(1))
    return {
        "questions": int(matrix.sum()),
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "calibration_error": expected_calibration_error(values, true),
        "confusion": matrix.tolist(),
    }
