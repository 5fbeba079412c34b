"""The paired bootstrap against the same thing drawn one by one; verdicts and the report on invented runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inventions import invented

from entropy_rft.evaluation import pass_at_k
from entropy_rft.study import compare
from entropy_rft.study.claims import FAILS, HOLDS, MISSING, UNDECIDED, Check, judge
from entropy_rft.study.compare import Estimate, Group, Quantity, difference, estimate, proportion, trend
from entropy_rft.study.plan import Plan
from entropy_rft.study.report import write_report
from entropy_rft.study.results import Results
from entropy_rft.study.search import runs_due


def quantity(seed: int, seeds: int = 3, questions: int = 30) -> Quantity:
    rng = np.random.default_rng(seed)
    return Quantity(rng.random((seeds, questions)), rng.random((seeds, questions)) + 0.5)


def test_bootstrap_is_that_of_drawing_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RESAMPLES", 50)
    a, b = quantity(0), quantity(1)
    generator = np.random.default_rng(0)
    seeds = generator.integers(3, size=(50, 3))
    questions = generator.integers(30, size=(50, 30))

    def mean(q: Quantity, s: np.ndarray, i: np.ndarray) -> float:
        return float(np.mean([q.numerator[x][i].sum() / q.denominator[x][i].sum() for x in s]))

    expected = [mean(b, s, i) - mean(a, s, i) for s, i in zip(seeds, questions, strict=True)]
    found = difference(a, b)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert found.value == pytest.approx(b.value - a.value)
    assert proportion(a, b).value == pytest.approx(b.value / a.value)


def test_pairing_takes_out_what_the_two_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 200)).repeat(3, 0)
    a, b = (Quantity(hard + shift, np.ones_like(hard)) for shift in (0.0, 0.01))
    found = difference(a, b)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    assert estimate([a], lambda x: x).high - estimate([a], lambda x: x).low > 0.05


def test_trend_is_the_slope() -> None:
    flat = np.ones((2, 10))
    points = {x: Quantity((3 - 2 * x) * flat, flat) for x in (1.0, 1.5, 2.5)}
    found = trend(points)
    assert (found.value, found.low, found.high) == pytest.approx((-2, -2, -2))


def test_group_numbers(plan: Plan) -> None:
    runs = [invented(spec) for spec in plan.mains("grpo", {})]
    group = Group(runs)
    correct = np.asarray(runs[0].questions["correct"])
    assert group.accuracy().by_seed()[0] == pytest.approx(correct.mean() / 8)
    hardest = np.asarray(runs[0].questions["difficulty"]) == 4
    expected = np.mean([pass_at_k(8, int(c), 4) for c in correct[hardest]])
    assert group.pass_at(4, group.hardest).value == pytest.approx(expected)
    assert group.entropy().value == pytest.approx(0.3, rel=0.05)
    with pytest.raises(ValueError, match="different questions"):
        Group([runs[0], invented(plan.trials("grpo", {})[0])])


@pytest.mark.parametrize(
    ("low", "high", "below", "verdict"),
    [
        (1.4, 1.6, False, HOLDS), (1.0, 1.2, False, FAILS), (1.2, 1.4, False, UNDECIDED),
        (1.4, 1.6, True, FAILS), (1.0, 1.2, True, HOLDS), (math.nan, math.nan, False, UNDECIDED),
    ],
)  # fmt: skip
def test_verdict_of_a_check(low: float, high: float, below: bool, verdict: str) -> None:
    assert Check("x", Estimate((low + high) / 2, low, high), 1.3, below).verdict == verdict


def test_claims_on_invented_runs(plan: Plan) -> None:
    def group(method: str, **means: float) -> Group:
        return Group([invented(spec, **means) for spec in plan.mains(method, {})])

    groups = {
        "start": Group([invented(spec, accuracy=0.4, entropy=0.5) for spec in plan.starts()]),
        "grpo": group("grpo", accuracy=0.5, entropy=0.2, thinking=50),
        "clip_b": group("clip_b", accuracy=0.65, entropy=0.4, thinking=50),
        "pear": group("pear", accuracy=0.5, entropy=0.1, thinking=30),
    }
    sweeps = {"mu": {1.0: group("clip_b", entropy=0.2), 2.0: group("clip_b", entropy=0.3)}}
    claims = judge(groups, sweeps)
    assert [claim.verdict for claim in claims] == [HOLDS, HOLDS, HOLDS, HOLDS, FAILS, MISSING]
    groups["clip_b"] = group("clip_b", accuracy=0.3, entropy=0.4)
    assert judge(groups, sweeps)[1].verdict == FAILS
    groups["start"] = Group([replace(run, questions_digest="others") for run in groups["start"].runs])
    with pytest.raises(ValueError, match="different questions"):
        judge(groups, sweeps)


def test_report_of_a_finished_and_of_an_empty_study(
    plan: Plan, results: Results, finish: Callable[..., None], tmp_path: Path
) -> None:
    claims = write_report(plan, results, tmp_path / "empty")
    assert {claim.verdict for claim in claims} == {MISSING}
    while due := runs_due(plan, results)[0]:
        for spec in due:
            finish(spec, entropy=0.5 if spec.kind == "start" else 0.3)
    write_report(plan, results, tmp_path / "whole")
    text = (tmp_path / "whole" / "claims.md").read_text(encoding="utf-8")
    assert "**1. GRPO's entropy falls** | | | | **holds**" in text
    assert "| Clip_B |" in text
    assert "**learning_rate 0.0001**" in text
    data = json.loads((tmp_path / "whole" / "claims.json").read_text(encoding="utf-8"))
    assert set(data["methods"]) == {"start", "grpo", "clip_b", "pear"}
    assert set(data["sweeps"]["mu"]) == {"1", "1.5"}
    for name in ("curves", "difficulty", "sweeps"):
        assert (tmp_path / "whole" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
