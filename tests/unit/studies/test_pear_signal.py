"""Whether PEAR's penalty grows with the thinking's length, on answers that nobody sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from studies.methods.pear_signal import SUM, Answer, alphas_of, markdown, measure_signal, penalty_of, within
from studies.methods.plan import Method, Plan


def test_the_correlation_is_that_of_the_pooled_deviations_within_questions() -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 2, 5, 8, 3, 16]
    questions = [
        [(x, 0.3 * x + y) for x, y in zip(rng.normal(size=n), rng.normal(loc=50 * i, size=n), strict=True)]
        for i, n in enumerate(sizes)
    ]
    x = np.concatenate([np.asarray(q)[:, 0] - np.mean(np.asarray(q)[:, 0]) for q in questions])
    y = np.concatenate([np.asarray(q)[:, 1] - np.mean(np.asarray(q)[:, 1]) for q in questions])
    found = within(questions)
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["slope"]["value"] == pytest.approx(np.polyfit(x, y, 1)[0])
    assert found["correlation"]["low"] < found["correlation"]["value"] < found["correlation"]["high"]
    # Deviations from a question's own mean: a question of one answer has none.
    assert found["spread_x"] == pytest.approx(np.sqrt((x @ x) / (sum(sizes) - len(sizes))))


@pytest.mark.parametrize(
    "questions", [[], [[]], [[(1.0, 2.0)]], [[(1.0, 2.0), (1.0, 3.0)]], [[(1.0, 2.0), (3.0, 2.0)]]]
)
def test_what_does_not_vary_has_no_correlation(questions: list[list[tuple[float, float]]]) -> None:
    assert within(questions)["correlation"] is None


def test_the_spreads_are_there_where_nothing_is_correlated() -> None:
    found = within([[(1.0, 2.0), (3.0, 2.0)], [(5.0, 2.0), (9.0, 2.0)]])
    assert found == {"correlation": None, "slope": None, "spread_x": pytest.approx(np.sqrt(5.0)), "spread_y": 0.0}


def test_a_perfect_correlation_is_a_number() -> None:
    found = within([[(1.0, 2.0), (3.0, 4.0)], [(5.0, 1.0), (9.0, 5.0)]])
    assert found["correlation"]["value"] == pytest.approx(1.0)
    assert all(np.isfinite(list(found["correlation"].values())))


def test_the_same_forks_on_more_tokens_give_a_smaller_penalty() -> None:
    """A text of 30 or 60 tokens with the same three forks: the sum of the entropies is one, the mean is not."""
    nats = 3 * 0.7
    answers = [[Answer(n, nats / n, 0.0) for n in (30, 45, 60)] for _ in range(5)]
    found = measure_signal(answers, [1.0])
    assert found["signals"]["1"]["correlation"]["value"] < -0.9
    assert found[SUM]["correlation"] is None
    assert found["thinking"] == 45


def test_the_penalty_is_pears() -> None:
    assert penalty_of(Answer(10, 0.5, 0.2), 1.0) == pytest.approx(0.3)
    assert penalty_of(Answer(10, 0.5, 0.2), 50.0) == 0
    assert penalty_of(Answer(10, 0.5, 0.2), -2.0) == pytest.approx(0.9)


def test_alphas_are_those_of_the_trials_or_of_the_method(plan: Plan) -> None:
    grpo = Method("GRPO", "accuracy")
    trials = [{"pear_alpha": 50.0}, {"pear_alpha": -1.0}]
    searched = replace(plan, methods={"grpo": grpo, "pear": Method("PEAR", "length", {}, trials)}, sweeps={})
    assert alphas_of(searched) == [-1.0, 50.0]
    given = replace(plan, methods={"grpo": grpo, "pear": Method("PEAR", "length")}, sweeps={})
    assert alphas_of(given) == [1.0]
    with pytest.raises(ValueError, match="no method 'pear'"):
        alphas_of(replace(plan, methods={"grpo": grpo}, sweeps={}))


def test_the_table_names_models_without_right_answers_too() -> None:
    rng = np.random.default_rng(1)
    answers = [[Answer(int(n), 1 / n, 0.01) for n in rng.integers(20, 60, size=4)] for _ in range(6)]
    measurement: dict[str, Any] = {"questions": 6, "split": "validation", "samples": 4, "temperature": 1.0}
    models = {"start": measure_signal(answers, [-1.0, 1.0]), "broken": measure_signal([[], []], [1.0])}
    text = markdown({"study": "toy", "measurement": measurement, "models": models})
    for part in ("| start | 24 |", "| broken | 0 |", f"| {SUM} |"):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
