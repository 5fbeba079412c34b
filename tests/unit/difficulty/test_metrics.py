"""The metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty import metrics


def test_confusion_accuracy_and_macro_f1():
    matrix = metrics.confusion_matrix([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics.accuracy(matrix) == pytest.approx(4 / 6)
    # F1: 2·2/(4+1+0) = 0.8;  2·1/(2+1+1) = 0.5;  2·1/(2+1+0) = 2/3
    assert metrics.macro_f1(matrix) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_macro_f1_of_the_majority_and_of_an_absent_class():
    assert metrics.macro_f1(metrics.confusion_matrix([0, 0, 1, 2], [0, 0, 0, 0])) == pytest.approx(2 * 2 / 6 / 3)
    # class 2 is neither true nor predicted
    assert metrics.macro_f1(metrics.confusion_matrix([0, 1], [0, 1])) == 1.0


def test_classifiers_are_compared_over_the_same_classes():
    """Class 2 does not occur. Who says it all the same is wrong once, and not measured over one class more."""
    # F1: 2·1/(2+1+0) = 2/3;  2·1/(1+1) = 1
    assert metrics.macro_f1(metrics.confusion_matrix([0, 0, 1], [0, 2, 1])) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.macro_f1(metrics.confusion_matrix([0, 0, 1], [0, 0, 0])) == pytest.approx((2 * 2 / 5 + 0) / 2)


def test_calibration_error():
    proba = [[0.95, 0.05, 0.0], [0.95, 0.0, 0.05], [0.2, 0.75, 0.05], [0.6, 0.2, 0.2]]
    # bin (0.9, 1]: confidence 0.95, one of two right; (0.7, 0.8]: 0.75, right; (0.5, 0.6]: 0.6, wrong
    expected = (2 * abs(0.95 - 0.5) + abs(0.75 - 1) + abs(0.6 - 0)) / 4
    assert metrics.expected_calibration_error(proba, [0, 1, 1, 2]) == pytest.approx(expected)
    assert metrics.expected_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


def test_the_report_is_plain():
    report = metrics.classification_report(np.eye(3), [0, 1, 1])
    assert report["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert report["questions"] == 3


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="same questions"):
        metrics.confusion_matrix([0], [0, 1])
    with pytest.raises(ValueError, match="same questions"):
        metrics.confusion_matrix([], [])
