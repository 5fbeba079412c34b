"""What is counted of an answer."""

from __future__ import annotations

import json

import pytest

from entropy_rft.router.metrics import Metrics

MEAN = {"easy": 100.0, "normal": 300.0, "hard": 450.0}
PLAIN = json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}}).encode()


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"entropy_rft_{name}_total", labels)
    assert found is not None
    return found


def test_the_tokens_of_an_answer() -> None:
    metrics = Metrics()
    metrics.answered("easy", PLAIN, 1)
    # Some servers tell the usage in every event: the last one is that of the answer.
    metrics.answered("easy", b'data: {"usage": {"completion_tokens": 1}}\n\ndata: ' + PLAIN + b"\n\ndata: [DONE]", 1)
    metrics.answered("hard", PLAIN.replace(b" ", b""), 1)
    metrics.answered("hard", b"data: no usage at all", 1)
    for difficulty, times in (("easy", 2), ("normal", 0), ("hard", 1)):
        assert value(metrics, "tokens", kind="prompt", difficulty=difficulty) == 9 * times
        assert value(metrics, "tokens", kind="completion", difficulty=difficulty) == 12 * times


@pytest.mark.parametrize(
    ("difficulty", "answers", "saved", "extra"),
    [("easy", 1, 200, 0), ("easy", 3, 600, 0), ("normal", 5, 0, 0), ("hard", 2, 0, 300)],
)
def test_the_estimate_of_what_was_saved(difficulty: str, answers: int, saved: float, extra: float) -> None:
    """Against Normal, for each answer, whatever its own length: that depends on the question."""
    metrics = Metrics(MEAN)
    metrics.answered(difficulty, PLAIN, answers)
    metrics.answered(difficulty, b"", answers)
    assert value(metrics, "tokens_saved_estimate") == 2 * saved
    assert value(metrics, "tokens_extra_estimate") == 2 * extra


@pytest.mark.parametrize("mean", [{}, {"easy": 100.0}, {"normal": 300.0}])
def test_nothing_is_estimated_from_nothing(mean: dict[str, float]) -> None:
    metrics = Metrics(mean)
    metrics.answered("easy", PLAIN, 1)
    assert value(metrics, "tokens_saved_estimate") == value(metrics, "tokens_extra_estimate") == 0
