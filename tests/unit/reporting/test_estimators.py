from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from entropy_rft.evaluation import avg_at_k, bootstrap_interval, paired_difference, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_counts_the_subsets_that_hold_a_right_sample(n):
    for c in range(n + 1):
        right = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples():
    assert pass_at_k(1000, 500, 100) == pytest.approx(1.0)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(10_000, 0, 10_000) == 0.0
    assert pass_at_k(10_000, 1, 10_000) == 1.0


@pytest.mark.parametrize(
    ("arguments", "name"), [((4, 5, 1), "c must"), ((4, -1, 1), "c must"), ((4, 2, 0), "k must"), ((4, 2, 5), "k must")]
)
def test_pass_at_k_refuses_impossible_counts(arguments, name):
    with pytest.raises(ValueError, match=name):
        pass_at_k(*arguments)


def test_avg_at_k_weighs_questions_equally():
    assert avg_at_k([1, 4], [1, 8]) == pytest.approx(0.75)
    assert avg_at_k([3], [8]) == pytest.approx(pass_at_k(8, 3, 1)) == 0.375
    with pytest.raises(ValueError, match="same questions"):
        avg_at_k([], [])
    with pytest.raises(ValueError, match="9 right samples of 8"):
        avg_at_k([9], [8])


def test_the_interval_is_seeded_and_close_to_the_normal_one():
    means = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(means)
    assert (low, high) == bootstrap_interval(means)
    half = 1.96 * means.std() / np.sqrt(len(means))
    assert low == pytest.approx(means.mean() - half, abs=2e-3)
    assert high == pytest.approx(means.mean() + half, abs=2e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Questions with their own difficulty, 8 samples each: 95 % intervals cover the mean about as often."""
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        chances = generator.beta(0.5, 0.5, size=60)
        low, high = bootstrap_interval(generator.binomial(8, chances) / 8, resamples=400, seed=seed)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_the_interval_of_all_right_or_all_wrong_is_the_exact_bound():
    low, high = bootstrap_interval([1.0] * 20)
    assert high == 1.0
    assert low**20 == pytest.approx(0.025)  # with this chance of being right, 20 of 20 is as rare as a tail
    assert bootstrap_interval([0.0] * 20) == pytest.approx((0.0, 1 - low))
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"means": []}, "means"),
        ({"means": [1.5]}, "between 0 and 1"),
        ({"means": [float("nan")]}, "between 0 and 1"),
        ({"means": [1.0], "confidence": 1.0}, "confidence"),
        ({"means": [1.0], "resamples": 0}, "resamples"),
    ],
)
def test_the_interval_names_what_is_wrong(arguments, name):
    with pytest.raises(ValueError, match=name):
        bootstrap_interval(**arguments)


def test_a_paired_difference_is_known_better_than_the_averages():
    generator = np.random.default_rng(3)
    hardness = generator.random(200)
    first, second = (hardness * 0.9).tolist(), (hardness * 0.9 + 0.05).tolist()
    difference, low, high = paired_difference([*first, None, 1.0], [*second, 0.5, None])
    assert difference == pytest.approx(0.05)
    assert high - low < 1e-9
    wide = bootstrap_interval(first)
    assert wide[1] - wide[0] > 0.05
    noisy = [min(1.0, max(0.0, value + generator.normal(0, 0.2))) for value in first]
    difference, low, high = paired_difference(first, noisy)
    assert low < difference < high


def test_a_paired_difference_needs_the_same_questions():
    with pytest.raises(ValueError, match="1 and 2 questions"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no question"):
        paired_difference([1.0, None], [None, 0.0])
    with pytest.raises(ValueError, match="confidence"):
        paired_difference([1.0], [1.0], confidence=0.0)
