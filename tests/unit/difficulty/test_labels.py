from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty import PUBLISHED_THRESHOLDS, Difficulty, Thresholds, calibrate_thresholds, label

EASY, NORMAL, HARD = Difficulty.EASY, Difficulty.NORMAL, Difficulty.HARD


@pytest.mark.parametrize(
    ("accuracy", "entropy", "expected"),
    [
        (0.85, 0.35, NORMAL),  # both bounds belong to normal
        (0.85, np.nextafter(0.35, 1), EASY),
        (np.nextafter(0.85, 0), 0.35, EASY),
        (0.60, 0.1, EASY),  # not below the bound
        (np.nextafter(0.60, 0), 0.1, HARD),
        (0.0, 0.0, HARD),
        (1.0, 0.0, NORMAL),
        (1.0, 2.0, EASY),  # right but unsure: the left arm of the U
        (0.7, 2.0, EASY),
    ],
)
def test_the_published_rule_at_its_bounds(accuracy, entropy, expected):
    assert label(accuracy, entropy, PUBLISHED_THRESHOLDS) is expected


def test_arrays():
    labels = label([0.9, 0.9, 0.1], np.array([0.1, 0.9, 0.1]), PUBLISHED_THRESHOLDS)
    assert labels.tolist() == [NORMAL, EASY, HARD]
    assert all(isinstance(value, Difficulty) for value in labels)
    assert (labels == HARD).tolist() == [False, False, True]
    assert label([], [], PUBLISHED_THRESHOLDS).shape == (0,)
    assert label([[0.9], [0.1]], [[0.1], [0.1]], PUBLISHED_THRESHOLDS).shape == (2, 1)


def test_where_the_conditions_overlap_normal_wins():
    thresholds = Thresholds(accuracy_normal=0.5, entropy_normal=0.35, accuracy_hard=0.8)
    assert label(0.6, 0.3, thresholds) is NORMAL
    assert label(0.6, 0.4, thresholds) is HARD
    assert label(0.8, 0.4, thresholds) is EASY


@pytest.mark.parametrize(
    ("accuracy", "entropy", "message"),
    [
        (float("nan"), 0.1, "accuracy must be between 0 and 1, got nan"),
        (0.5, float("nan"), "entropy must be 0 or a positive number, got nan"),
        ([0.5, 0.5], [0.1, float("inf")], "got inf at index 1"),
        (1.01, 0.1, "accuracy must be between 0 and 1, got 1.01"),
        (-0.1, 0.1, "accuracy"),
        (0.5, -0.1, "entropy"),
        ([0.5], [0.1, 0.2], "same shape"),
    ],
)
def test_what_cannot_be_labelled(accuracy, entropy, message):
    with pytest.raises(ValueError, match=message):
        label(accuracy, entropy, PUBLISHED_THRESHOLDS)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((1.1, 0.3, 0.6), ValueError, "accuracy_normal must be at least 0 and at most 1, got 1.1"),
        ((0.9, float("nan"), 0.6), ValueError, "entropy_normal must be at least 0, got nan"),
        ((0.9, 0.3, -0.1), ValueError, "accuracy_hard"),
        ((0.9, "0.3", 0.6), TypeError, "entropy_normal must be a number, not '0.3'"),
    ],
)
def test_thresholds_out_of_range(values, error, message):
    with pytest.raises(error, match=message):
        Thresholds(*values)


def clouds(seed=0, count=200):
    """Three clouds as the paper describes them: sure and right, unsure and right, unsure and wrong."""
    rng = np.random.default_rng(seed)
    accuracy = [rng.binomial(10, p, count) / 10 for p in (0.98, 0.97, 0.15)]
    entropy = [rng.normal(mean, 0.04, count) for mean in (0.25, 0.55, 0.6)]
    return np.concatenate(accuracy), np.concatenate(entropy)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_finds_the_lines_between_known_clouds(seed):
    accuracy, entropy = clouds(seed)
    found = calibrate_thresholds(accuracy, entropy, seed=seed)
    assert 0.33 < found.thresholds.entropy_normal < 0.47
    assert 0.4 < found.thresholds.accuracy_hard < 0.85
    labels = label(accuracy, entropy, found.thresholds)
    expected = np.repeat(np.array([NORMAL, EASY, HARD], dtype=object), 200)
    assert (labels == expected).mean() > 0.97
    assert found.separation > 0.75
    assert abs(found.separation - found.validation_separation) < 0.1
    assert sum(found.shares.values()) == pytest.approx(1)


def test_calibration_is_the_same_for_a_seed_and_does_not_need_the_order():
    accuracy, entropy = clouds()
    assert calibrate_thresholds(accuracy, entropy) == calibrate_thresholds(accuracy, entropy)


@pytest.mark.parametrize(
    ("accuracy", "entropy", "options", "message"),
    [
        ([1.0] * 40, [0.1] * 40, {}, "no thresholds leave each of easy, normal and hard 5 %"),
        ([0.5] * 5, [0.1] * 5, {}, "cannot be calibrated on 5 questions"),
        ([0.5] * 39 + [float("nan")], [0.1] * 40, {}, "accuracy must be between 0 and 1, got nan at index 39"),
        ([0.5] * 40, [0.1] * 40, {"min_share": 0.5}, "min_share"),
        ([0.5] * 40, [0.1] * 40, {"validation_fraction": 1}, "validation_fraction"),
        ([[0.5]], [[0.1]], {}, "one number a question"),
    ],
)
def test_what_cannot_be_calibrated(accuracy, entropy, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate_thresholds(accuracy, entropy, **options)
