"""Policies on answers that are known in advance, against numbers worked out by hand."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.difficulty.compare.comparison import by_level
from entropy_rft.difficulty.compare.page import policy_lines, short_policy_lines, write_page
from entropy_rft.difficulty.compare.policies import (
    Outcomes,
    compare_policies,
    measure_policies,
    oracle_choices,
    pooled,
    saved_fraction,
    summary,
)
from entropy_rft.difficulty.compare.tuning import Trial, check_grid, check_splits, pick, shortened, tune_confidence
from entropy_rft.sampling import Completion

EASY, NORMAL, HARD = Difficulty.EASY, Difficulty.NORMAL, Difficulty.HARD


def answers(correct, tokens) -> Outcomes:
    """From (questions, 3) rows of per-sample lists."""
    right, length = np.asarray(correct, float).transpose(1, 0, 2), np.asarray(tokens, float).transpose(1, 0, 2)
    return Outcomes(right, length, length.mean(2) / 1000)


@pytest.fixture
def two_questions() -> Outcomes:
    """Easy suffices for the first question; the second needs Normal."""
    correct = [[[1, 1], [1, 1], [1, 1]], [[0, 0], [1, 1], [0, 0]]]
    tokens = [[[10, 10], [40, 60], [20, 20]], [[10, 10], [100, 100], [30, 30]]]
    return answers(correct, tokens)


def test_every_way_to_choose(two_questions):
    result = compare_policies(two_questions, [EASY, NORMAL])
    p = result["policies"]
    accuracy = {name: policy["accuracy"] for name, policy in p.items()}
    tokens = {name: policy["tokens"] for name, policy in p.items()}
    assert accuracy == pytest.approx(
        {"easy": 0.5, "normal": 1, "hard": 0.5, "random": 4 / 6, "random_same_mix": 0.75, "probe": 1, "oracle": 1,
         "oracle_in_sample": 1}
    )  # fmt: skip
    assert tokens == pytest.approx(
        {"easy": 10, "normal": 75, "hard": 25, "random": (10 + 75 + 25) / 3, "random_same_mix": (10 + 75) / 2,
         "probe": 55, "oracle": 55, "oracle_in_sample": 55}
    )  # fmt: skip
    assert p["probe"]["seconds"] == pytest.approx(0.055)
    assert p["probe"]["shares"] == {"easy": 0.5, "normal": 0.5, "hard": 0.0}
    assert p["probe"]["oracle_share"] == 1.0
    assert p["probe"]["minus_normal"]["accuracy"][0] == 0
    assert p["probe"]["minus_normal"]["tokens"][0] == -20
    saving, low, high = p["probe"]["minus_normal"]["saving"]
    assert saving == pytest.approx(20 / 75)
    assert low <= saving <= high
    assert p["normal"]["minus_normal"]["tokens"] == [0, 0, 0]
    assert (result["questions"], result["unscorable"], result["samples"]) == (2, 0, 2)


def test_the_oracle_does_not_profit_from_luck():
    """Answers that are right by a coin: whoever chooses and measures on the same samples thinks he can choose."""
    rng = np.random.default_rng(0)
    correct = rng.integers(2, size=(400, 3, 4))
    tokens = np.full((400, 3, 4), 10)
    result = compare_policies(answers(correct, tokens), [NORMAL] * 400)["policies"]
    assert result["oracle_in_sample"]["accuracy"] > 0.6
    assert result["oracle"]["accuracy"] == pytest.approx(0.5, abs=0.04)
    assert result["probe"]["oracle_share"] is None  # there is nothing to save


def test_the_oracle_takes_the_cheapest_that_is_no_worse_than_normal():
    """Not the one that is right most often: Hard is, and costs more than Easy, which is as good as Normal."""
    correct = [[[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    tokens = [[[10] * 4, [90] * 4, [50] * 4], [[10] * 4, [90] * 4, [50] * 4]]
    ours = answers(correct, tokens)
    assert oracle_choices(ours.correct, ours.tokens).tolist() == [EASY.index, NORMAL.index]
    found = measure_policies(ours, {"probe": [EASY, NORMAL]})["oracle_in_sample"]
    assert found.right.tolist() == [0.5, 0.5]
    assert found.tokens.tolist() == [10, 90]


def test_the_oracle_chooses_on_all_samples_but_the_one_it_is_measured_on():
    rng = np.random.default_rng(3)
    correct = rng.integers(2, size=(50, 3, 4)).astype(float)
    tokens = rng.integers(5, 100, size=(50, 3, 4)).astype(float)
    oracle = measure_policies(answers(correct, tokens), {"probe": [NORMAL] * 50})["oracle"]
    for question in range(50):
        right, length = [], []
        for fold in range(4):
            rest = [sample for sample in range(4) if sample != fold]
            means = correct[question][:, rest].mean(1)
            costs = tokens[question][:, rest].mean(1)
            choice = min((s for s in range(3) if means[s] >= means[1]), key=lambda s: costs[s])
            right.append(correct[question, choice, fold])
            length.append(tokens[question, choice, fold])
        assert oracle.right[question] == pytest.approx(np.mean(right))
        assert oracle.tokens[question] == pytest.approx(np.mean(length))


def test_the_oracle_and_answers_that_cannot_be_scored():
    nan = np.nan
    correct = [[[nan, nan, nan], [1, nan, 0], [1, 1, nan]], [[1, 1, 1], [nan, nan, nan], [1, 1, 1]]]
    ours = answers(correct, [[[1] * 3, [9] * 3, [5] * 3]] * 2)
    # Easy has nothing to show for the first question; for the second there is nothing to be no worse than.
    assert oracle_choices(ours.correct, ours.tokens).tolist() == [HARD.index, NORMAL.index]
    with pytest.raises(ValueError, match="no question has an answer"):
        measure_policies(ours, {"probe": [EASY, EASY]})
    # One unscored answer costs that answer, not the question.
    some = answers([[[1, nan, 1, 1], [1, 1, 1, 0], [0, 0, nan, 0]]], [[[1] * 4, [9] * 4, [5] * 4]])
    oracle = measure_policies(some, {"probe": [EASY]})["oracle"]
    assert (oracle.right.tolist(), oracle.tokens.tolist()) == ([1.0], [1.0])


def test_one_sample_has_no_honest_oracle():
    result = compare_policies(answers([[[1], [1], [0]]], [[[1], [2], [3]]]), [EASY])["policies"]
    assert "oracle" not in result
    assert result["oracle_in_sample"]["tokens"] == 1
    assert "oracle_share" not in result["probe"]


def test_the_differences_are_paired():
    """Questions differ by far more than the strategies: only the paired interval is narrow."""
    rng = np.random.default_rng(0)
    base = rng.integers(100, 2000, size=(60, 1, 1))
    tokens = np.concatenate([base - 20, base, base - 10], axis=1) + np.zeros((60, 3, 2))
    result = compare_policies(answers(np.ones((60, 3, 2)), tokens), [EASY] * 60)["policies"]["probe"]
    assert result["minus_normal"]["tokens"] == pytest.approx([-20, -20, -20])


def test_the_saving_is_a_ratio_of_what_is_drawn_together():
    """Half of Normal's tokens are saved on every question, however long: no draw of questions saves anything else."""
    rng = np.random.default_rng(0)
    base = rng.integers(10, 2000, size=(60, 1, 1))
    tokens = np.concatenate([base / 2, base, base], axis=1) + np.zeros((60, 3, 2))
    saving = compare_policies(answers(np.ones((60, 3, 2)), tokens), [EASY] * 60)["policies"]["probe"]["minus_normal"]
    assert saving["saving"] == pytest.approx([0.5, 0.5, 0.5])


def test_the_interval_of_the_saving_against_references():
    # All 6^6 resamples of six questions, one by one.
    normal, other = np.array([10.0, 80, 30, 200, 55, 120]), np.array([9.0, 30, 31, 90, 20, 100])
    every = np.array([1 - other[list(rows)].sum() / normal[list(rows)].sum() for rows in product(range(6), repeat=6)])
    share, low, high = saved_fraction(normal, other, resamples=100_000)
    assert share == pytest.approx(1 - other.sum() / normal.sum())
    assert [low, high] == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.004)

    # The delta method's standard error of a ratio of means, for many questions.
    rng = np.random.default_rng(1)
    normal = rng.lognormal(4, 0.8, size=600)
    other = normal * rng.uniform(0.3, 0.9, size=600)
    share, low, high = saved_fraction(normal, other)
    error = np.std((normal - other) - share * normal, ddof=1) / np.sqrt(600) / normal.mean()
    assert [low, high] == pytest.approx([share - 1.96 * error, share + 1.96 * error], abs=0.1 * error)
    assert saved_fraction(np.zeros(3), np.zeros(3)) == [0, 0, 0]


def test_questions_that_cannot_be_scored_are_left_out_everywhere(two_questions):
    correct = two_questions.correct.copy()
    correct[2, 0] = np.nan
    result = compare_policies(Outcomes(correct, two_questions.tokens, two_questions.seconds), [EASY, NORMAL])
    assert (result["questions"], result["unscorable"]) == (1, 1)
    assert result["policies"]["normal"]["tokens"] == 100
    with pytest.raises(ValueError, match="no question has an answer"):
        compare_policies(Outcomes(correct * np.nan, two_questions.tokens, two_questions.seconds), [EASY, NORMAL])
    with pytest.raises(ValueError, match="1 choices"):
        compare_policies(two_questions, [EASY])


def test_further_rules_stand_beside_the_probe(two_questions):
    result = compare_policies(two_questions, [EASY, NORMAL], {"prompt_length": [HARD, NORMAL]})["policies"]
    assert result["prompt_length"]["tokens"] == pytest.approx(60)
    assert result["prompt_length"]["oracle_share"] == pytest.approx(15 / 20)
    assert result["probe"]["oracle_share"] == 1.0
    assert result["random_same_mix"]["tokens"] == pytest.approx((10 + 75) / 2)  # the probe's mix, not the rule's
    with pytest.raises(ValueError, match="1 choices"):
        compare_policies(two_questions, [EASY, NORMAL], {"prompt_length": [HARD]})


def test_runs_are_pooled_question_by_question(two_questions):
    other = Outcomes(1 - two_questions.correct, 3 * two_questions.tokens, two_questions.seconds)
    runs = [measure_policies(a, {"probe": [EASY, NORMAL]}) for a in (two_questions, other)]
    both = summary(pooled(runs))
    assert both["normal"]["accuracy"] == pytest.approx(0.5)
    assert both["normal"]["tokens"] == pytest.approx((75 + 225) / 2)
    assert both["probe"]["shares"] == {"easy": 0.5, "normal": 0.5, "hard": 0.0}
    # Every question's two runs cancel: pooling by question sees that, and stacking the runs would not.
    assert both["normal"]["interval"] == [0.5, 0.5]

    unscorable = two_questions.correct.copy()
    unscorable[0, 1] = np.nan
    partly = Outcomes(unscorable, two_questions.tokens, two_questions.seconds)
    runs.append(measure_policies(partly, {"probe": [EASY, NORMAL]}))
    assert summary(pooled(runs))["normal"]["tokens"] == pytest.approx((50 + 150 + 50) / 3)  # the first question alone
    with pytest.raises(ValueError, match="same questions"):
        pooled([runs[0], measure_policies(answers([[[1], [1], [0]]], [[[1], [2], [3]]]), {"probe": [EASY]})])
    with pytest.raises(ValueError, match="none"):
        pooled([])


class Rows:
    def __init__(self, rows):
        self.rows = rows


def row(level, accuracy, entropy):
    return {"level": level, "accuracy": accuracy, "entropy": entropy, "entropy_thinking": None, "tokens": 5}


def test_the_u_by_level_and_without_levels():
    named = by_level(Rows([row("10", 0.2, 0.6), row("9", 0.8, 0.2), row("9", 0.6, 0.4)]))
    assert list(named["groups"]) == ["9", "10"]
    assert named["groups"]["9"] == {
        "questions": 2, "accuracy": pytest.approx(0.7), "entropy": pytest.approx(0.3), "entropy_thinking": None,
        "tokens": 5,
    }  # fmt: skip
    mixed = by_level(Rows([row(None, 0.2, 0.6), row("9", 0.8, 0.2), row(None, 0.4, 0.4)]))
    assert {name: group["questions"] for name, group in mixed["groups"].items()} == {"9": 1, "no level": 2}
    unnamed = by_level(Rows([row(None, 1.0, 0.6), row(None, 0.8, 0.2), row(None, 0.0, 0.5)]))
    assert unnamed["by"] == "accuracy"
    assert {name: group["questions"] for name, group in unnamed["groups"].items()} == {"80–100 %": 2, "0–20 %": 1}


def test_the_page(two_questions, tmp_path):
    pytest.importorskip("matplotlib")
    result = {
        "model": "<b>m</b>", "tasks": ["t/test"], "settings": {"probe": "p"},
        "left_out": {"fitted": 3, "unscorable_traces": 0},
        "thresholds": {"accuracy_normal": 0.8, "entropy_normal": 0.3, "accuracy_hard": 0.5},
        **compare_policies(two_questions, [EASY, NORMAL]),
        "levels": by_level(Rows([row("2", 0.9, 0.5), row("3", 0.5, 0.2)])),
        "classifier": {"probe": {"accuracy": 1, "macro_f1": 1, "calibration_error": 0, "confusion": [[1, 0, 0]] * 3}},
    }  # fmt: skip
    points = [{"accuracy": 0.9, "entropy": 0.2, "label": "normal"}, {"accuracy": 0.1, "entropy": 0.9, "label": "hard"}]
    write_page(result, points, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count(' role="img"') == 3
    assert "fixed Normal" in page
    assert "The probe gets 100 % of what the oracle saves." in page
    assert "<b>m</b>" not in page
    assert len(policy_lines(result)) == 8
    assert [len(line) for line in short_policy_lines(result)] == [6] * 9
    easy = next(line for line in short_policy_lines(result) if line[0] == "fixed Easy")
    assert easy == ["fixed Easy", "50.0", "-50.0\n-100.0…0.0", "10.0", "86.7\n80.0…90.0", "0.010"]


def trial(accuracy, tokens):
    return Trial(DEFAULT_STRATEGIES[HARD], accuracy, tokens, 10)


def test_the_cheapest_that_is_accurate_enough():
    trials = [trial(0.9, 50), trial(0.88, 40), trial(0.95, 40), trial(0.2, 5)]
    assert pick(trials, 0.89) is trials[2]
    assert pick(trials, 0.1) is trials[3]


def test_the_confidence_that_loses_nothing(two_questions):
    """Easy is wrong for the second question, of which the probe is less sure."""
    proba = [[0.95, 0.05, 0.0], [0.65, 0.3, 0.05]]
    found, trials = tune_confidence(proba, two_questions)
    assert found == 0.9  # the highest of those that send the first question alone to Easy
    assert [trial["tokens"] for trial in trials] == [10, 10, 10, 10, 55, 55, 55, 75]
    assert tune_confidence(proba, two_questions, tolerance=0.5)[0] == 0.6
    assert tune_confidence(proba, two_questions, confidences=(0.0, 0.5))[0] == 1.0
    with pytest.raises(ValueError, match="min_confidence"):
        tune_confidence(proba, two_questions, confidences=(2.0,))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (([], [0.5], 0), "at least one value each"),
        (([-1.0], [0.5], 0), "temperature must be 0"),
        (([0.5], [2.0], 0), "max_tokens_fraction must be above 0"),
        (([0.5], [0.5], 1), "tolerance"),
    ],
)
def test_a_wrong_grid(grid, message):
    with pytest.raises(ValueError, match=message):
        check_grid(*grid)


@pytest.mark.parametrize("split", ["test", "test[:200]", "train+test[50%:]", "Test", "hard_test", "test-2024"])
def test_no_part_of_a_test_split_tunes_anything(split):
    questions = SimpleNamespace(parts=[(SimpleNamespace(name="gsm8k", split=split), [])])
    with pytest.raises(ValueError, match="of gsm8k: strategies are tuned on a validation split") as caught:
        check_splits(questions)
    assert f"the split {split!r}" in str(caught.value)


@pytest.mark.parametrize("split", ["validation", "train[:200]", "latest", "contest"])
def test_other_splits_may_tune(split):
    check_splits(SimpleNamespace(parts=[(SimpleNamespace(name="gsm8k", split=split), [])]))


def test_a_completion_under_a_smaller_limit():
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return "".join(map(str, ids))

    whole = Completion([1], [5, 6, 7], "567", False)
    assert shortened(whole, 3, Tokenizer()) is whole
    assert shortened(whole, 2, Tokenizer()) == Completion([1], [5, 6], "56", True)
