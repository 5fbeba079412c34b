"""What `probe evaluate` says beside its table."""

from __future__ import annotations

import pytest

from entropy_rft.difficulty.compare.page import remarks


def result(easy: tuple[float, float], probe: tuple[float, float]) -> dict:
    """Accuracy and tokens of each."""
    policies = {"easy": easy, "normal": (0.5, 40.0), "hard": (0.1, 10.0), "oracle": (0.6, 5.0), "probe": probe}
    return {"policies": {name: {"accuracy": a, "tokens": t} for name, (a, t) in policies.items()}}


@pytest.mark.parametrize(
    ("easy", "probe", "said"),
    [
        ((0.5, 20.0), (0.5, 30.0), True),
        ((0.5, 20.0), (0.5, 20.0), False),  # the same choices
        ((0.4, 20.0), (0.5, 30.0), False),  # cheaper, and less often right
        ((0.6, 35.0), (0.5, 30.0), False),
    ],
)
def test_a_fixed_strategy_that_is_better_is_named(easy, probe, said: bool) -> None:
    lines = remarks(result(easy, probe))
    assert [line.startswith("fixed Easy is no less often right than the probe") for line in lines] == [True] * said
