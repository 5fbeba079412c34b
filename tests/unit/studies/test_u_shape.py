"""The verdict on a U, on entropies that are known in advance."""

from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty.traces import Traces
from studies.u_shape import NO_U, UNDECIDED, U, u_shape


def traces(entropies: list[float], noise: float = 0.01, questions: int = 40, seed: int = 0) -> Traces:
    """Levels 2, 3, … with these mean entropies."""
    rng = np.random.default_rng(seed)
    rows = [
        {"id": f"{level}-{i}", "level": str(level), "entropy": mean + noise * rng.standard_normal()}
        for level, mean in enumerate(entropies, start=2)
        for i in range(questions)
    ]
    return Traces([{"model": "m"}], rows, np.zeros((len(rows), 2), np.float32))


@pytest.mark.parametrize(
    ("entropies", "noise", "verdict"),
    [
        ([0.4, 0.3, 0.3, 0.4], 0.01, U),
        ([0.2, 0.3, 0.3, 0.4], 0.01, NO_U),  # only rises
        ([0.4, 0.3, 0.3, 0.2], 0.01, NO_U),
        ([0.31, 0.3, 0.3, 0.4], 1.0, UNDECIDED),
        ([0.4, 0.3], 0.01, NO_U),  # nothing between
    ],
)
def test_verdict(entropies: list[float], noise: float, verdict: str) -> None:
    assert u_shape([traces(entropies, noise)])["verdict"] == verdict


def test_numbers() -> None:
    found = u_shape([traces([0.4, 0.2, 0.3, 0.5], seed=0), traces([0.4, 0.2, 0.3, 0.5], seed=1)])
    assert found["levels"] == ["2", "3", "4", "5"]
    assert found["entropy"] == pytest.approx([0.4, 0.2, 0.3, 0.5], abs=0.01)
    assert found["fall"][0] == pytest.approx(0.2, abs=0.01)
    assert found["fall"][1] < found["fall"][0] < found["fall"][2]
    assert found["rise"][0] == pytest.approx(0.3, abs=0.01)
    assert found["depth"] == pytest.approx(0.5, abs=0.02)
    # Two seeds answered the same questions: they are means of a question, not more questions.
    one = u_shape([traces([0.4, 0.2, 0.3, 0.5], noise=0.1)])
    twice = u_shape([traces([0.4, 0.2, 0.3, 0.5], noise=0.1)] * 2)
    assert twice == one


def test_ten_comes_after_nine() -> None:
    assert u_shape([traces([0.4] * 9)])["levels"][-1] == "10"


def test_noise_is_hardly_ever_a_u(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels without a left arm: the lowest of several equal means is always below the easiest level's."""
    monkeypatch.setattr("studies.u_shape.RESAMPLES", 2000)
    flat = [[1.0] * 6 + [1.3]] * 60
    verdicts = [u_shape([traces(means, 0.3, 22, seed)])["verdict"] for seed, means in enumerate(flat)]
    assert verdicts.count(U) <= 0.15 * len(flat)  # 28 % where the lowest level is determined again in each draw
