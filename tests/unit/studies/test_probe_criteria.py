"""What decides that the probe is better, on numbers that are known in advance."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty import Difficulty
from entropy_rft.difficulty.compare.policies import Outcomes, measure_policies
from entropy_rft.difficulty.traces import Traces
from studies import probe_criteria
from studies.probe_criteria import (
    BETTER,
    NOT_SHOWN,
    WORSE,
    against,
    length_correlations,
    macro_f1_difference,
    numbered,
    strategies_by_level,
    verdict,
)

EASY, NORMAL = Difficulty.EASY, Difficulty.NORMAL


@pytest.mark.parametrize(
    ("accuracy", "saving", "expected"),
    [
        ((0.05, 0.01, 0.09), (0.0, -0.1, 0.1), BETTER),  # more often right at equal tokens
        ((0.0, -0.02, 0.02), (0.1, 0.05, 0.15), BETTER),  # cheaper at equal accuracy
        ((-7e-19, -0.02, 0.02), (0.1, 0.05, 0.15), BETTER),  # 0, but for rounding
        ((-0.01, -0.03, 0.01), (0.1, 0.05, 0.15), NOT_SHOWN),  # cheaper, and perhaps less often right
        ((0.05, 0.01, 0.09), (-0.1, -0.2, -0.05), NOT_SHOWN),  # a trade
        ((0.01, -0.01, 0.03), (0.01, -0.01, 0.03), NOT_SHOWN),
        ((-0.05, -0.09, -0.01), (0.0, -0.1, 0.1), WORSE),
        ((0.0, -0.02, 0.02), (-0.1, -0.2, -0.05), WORSE),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), NOT_SHOWN),  # the same choices
    ],
)
def test_verdict(accuracy, saving, expected) -> None:
    assert verdict(accuracy, saving) == expected


def test_the_probe_beside_others() -> None:
    """Easy is right on the first half of the questions at half the tokens, Normal everywhere."""
    half = np.arange(20) < 10
    correct = np.stack([half, np.ones(20), np.zeros(20)])[:, :, None].repeat(2, 2)
    tokens = np.broadcast_to(np.array([20.0, 40.0, 30.0])[:, None, None], correct.shape)
    choices = [EASY if first else NORMAL for first in half]
    measured = measure_policies(Outcomes(correct, tokens, tokens[:, :, 0]), {"probe": choices})
    found = against(measured)
    assert list(found) == ["easy", "normal", "hard", "random_same_mix"]  # no rule by length was measured
    assert found["normal"]["accuracy"] == [0.0, 0.0, 0.0]
    assert found["normal"]["saving"][0] == pytest.approx(0.25)
    assert {name: other["verdict"] for name, other in found.items()} == {
        "easy": NOT_SHOWN,  # more often right, and dearer
        "normal": BETTER,
        "hard": BETTER,
        "random_same_mix": BETTER,
    }
    assert found["random_same_mix"]["accuracy"][0] == pytest.approx(0.25)


def test_macro_f1_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_criteria, "RESAMPLES", 50)
    truth = "012" * 30
    right = {"label": truth, "probe": truth, "prompt_length": "0" * 90}
    difference, low, high = macro_f1_difference([right], "prompt_length", "probe")
    assert difference == pytest.approx(1 - 0.5 / 3)  # always 0: F1 of one class is 0.5, of the others 0
    assert low < difference < high
    assert macro_f1_difference([right, {**right, "probe": "0" * 90}], "prompt_length", "probe")[0] == pytest.approx(
        difference / 2
    )
    assert macro_f1_difference([right], "probe", "probe") == [0.0, 0.0, 0.0]


def traces(levels, lengths=(1, 2, 3)) -> Traces:
    rows = [
        {"level": level, "prompt_tokens": length, "accuracy": 1 - length / 4}
        for level, length in zip(levels, lengths, strict=True)
    ]
    return Traces([{"model": "m"}], rows, np.zeros((len(rows), 2), np.float32))


def test_strategies_by_level() -> None:
    correct = np.array([[[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0]]] * 3)
    tokens = np.array([[[2.0, 4.0]] * 3, [[6.0, 6.0]] * 3, [[1.0, 1.0]] * 3])
    found = strategies_by_level(Outcomes(correct, tokens, tokens[:, :, 0]), traces(["2", "2", "10"]))
    assert list(found) == ["2", "10"]
    assert found["2"]["easy"] == {"accuracy": pytest.approx(2 / 3), "tokens": 3.0}
    assert found["10"]["normal"] == {"accuracy": 0.0, "tokens": 6.0}


def test_length_correlations() -> None:
    assert length_correlations(traces(["1", "3", "5"])) == pytest.approx({"pass_rate": -1.0, "level": 1.0})
    assert length_correlations(traces(["a", "b", "c"])) == pytest.approx({"pass_rate": -1.0, "level": None})
    assert length_correlations(traces(["1", "3", "5"], (2, 2, 2))) == {"pass_rate": None, "level": None}


def test_numbered() -> None:
    assert numbered(traces(["1", "2.5", "10"]))
    assert not numbered(traces(["1", "2", "hard"]))
    assert not numbered(traces(["1", None, "2"]))
