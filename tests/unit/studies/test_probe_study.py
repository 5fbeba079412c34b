"""Seeds pooled, on numbers that are known in advance."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty import Difficulty
from entropy_rft.difficulty.compare.comparison import rule_choices
from entropy_rft.difficulty.compare.page import short_policy_lines
from entropy_rft.difficulty.compare.plots import frontier, save_png, shown_policies, u_shape
from entropy_rft.difficulty.compare.policies import Outcomes, measure_policies
from entropy_rft.difficulty.traces import Traces
from studies.probe_study import pool, spread

EASY, NORMAL = Difficulty.EASY, Difficulty.NORMAL


def run(easy_right, f1, ids=("a", "b")):
    """Two questions; Easy takes half of Normal's 40 tokens and is right as given, Normal always."""
    correct = np.array([[[r] * 2 for r in easy_right], [[1, 1]] * 2, [[0, 0]] * 2], float)
    tokens = np.array([[[20, 20]] * 2, [[40, 40]] * 2, [[30, 30]] * 2], float)
    measured = measure_policies(Outcomes(correct, tokens, tokens[:, :, 0]), {"probe": [EASY, EASY]})
    result = {
        "classifier": {
            name: {"accuracy": value, "macro_f1": value, "calibration_error": 0.1}
            for name, value in (("probe", f1), ("majority", 0.2))
        },
        "predicted": {"label": "01", "probe": "01", "prompt_length": "00"},
        "policies": {"probe": {"minus_normal": {"accuracy": [sum(easy_right) / 2 - 1], "saving": [0.5]}}},
    }
    rows = [
        {
            "id": i,
            "level": "2",
            "accuracy": 0.5,
            "entropy": 0.1 * n,
            "entropy_thinking": None,
            "tokens": 4,
            "prompt_tokens": n,
        }
        for n, i in enumerate(ids, start=1)
    ]
    return result, measured, Traces([{"model": "m"}], rows, np.zeros((2, 3), np.float32))


def test_seeds_pooled():
    both = pool({0: run([1, 1], 0.5), 7: run([1, 0], 0.3)})
    probe = both["policies"]["probe"]
    assert (probe["accuracy"], probe["tokens"]) == (0.75, 20)
    assert probe["minus_normal"]["accuracy"] == [-0.25, -0.5, 0.0]  # over two questions, not four
    assert both["seeds"] == [0, 7]
    assert both["accuracy_minus_normal"] == {"mean": -0.25, "low": -0.5, "high": 0.0, "values": [0.0, -0.5]}
    assert both["macro_f1_minus_majority"]["mean"] == pytest.approx(0.2)
    assert both["classifier"]["probe"]["macro_f1"]["low"] == 0.3
    assert both["oracle_share"]["mean"] is None
    assert both["levels"]["groups"]["2"]["questions"] == 4
    assert both["pass_rates"]["groups"]["40–60 %"]["questions"] == 4
    assert both["macro_f1_minus_prompt_length"][0] == pytest.approx(1 - 1 / 3)
    assert both["against"]["normal"]["accuracy"] == [-0.25, -0.5, 0.0]
    assert both["u_shape"]["verdict"] == "no U"  # of one level
    assert list(both["targets"].values()) == [True, True, False]
    assert list(pool({0: run([1, 1], 0.3)})["targets"].values()) == [False, True, True]
    with pytest.raises(ValueError, match="different questions"):
        pool({0: run([1, 1], 0.5), 1: run([1, 1], 0.5, ids=("a", "c"))})


def test_shared_traces_count_once():
    both = pool({0: run([1, 1], 0.5), 7: run([1, 0], 0.3)}, shared_traces=True)
    assert both["levels"]["groups"]["2"]["questions"] == 2
    assert both["policies"]["probe"]["accuracy"] == 0.75


def test_a_number_that_one_seed_lacks_has_no_mean():
    assert spread([0.5, None])["mean"] is None
    assert spread([0.5, 0.25]) == {"mean": 0.375, "low": 0.25, "high": 0.5, "values": [0.5, 0.25]}


def test_each_rule_has_a_least_confidence_of_its_own():
    """The probe and the rule are equally sure of everything; what differs is where they stop trusting themselves."""

    class Sure:
        def predict_proba(self, values):
            return np.tile([0.7, 0.2, 0.1], (len(values), 1))

    rows = [{"prompt_tokens": 5}, {"prompt_tokens": 9}]
    traces = Traces([{"model": "m"}], rows, np.zeros((2, 3), np.float32))
    choices = rule_choices(Sure(), traces, {"probe": 0.8, "prompt_length": 0.6}, {"prompt_length": Sure()})
    assert choices == {"probe": [NORMAL, NORMAL], "prompt_length": [EASY, EASY]}
    assert rule_choices(Sure(), traces, 0.6) == {"probe": [EASY, EASY]}


def test_figures_for_a_readme(tmp_path):
    pytest.importorskip("matplotlib")
    both = pool({0: run([1, 1], 0.5)})
    save_png(frontier(both), tmp_path / "deep" / "frontier.png")
    save_png(u_shape(both["levels"], "number of terms"), tmp_path / "u.png")
    for path in (tmp_path / "deep" / "frontier.png", tmp_path / "u.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert shown_policies(both) == ["easy", "normal", "hard", "random", "random_same_mix", "probe", "oracle"]
    assert len(short_policy_lines(both)) == 1 + len(both["policies"])
