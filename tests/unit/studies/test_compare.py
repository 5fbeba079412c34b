"""The paired bootstrap against the same thing drawn one by one; verdicts and the report on invented runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inventions import SAMPLES, invented

from entropy_rft.evaluation import pass_at_k
from studies.methods import compare
from studies.methods.batches import group_advantages
from studies.methods.claims import FAILS, HOLDS, MISSING, UNDECIDED, Check, judge
from studies.methods.compare import Estimate, Group, Quantity, difference, estimate, proportion, trend
from studies.methods.plan import Method, Plan, Sweep
from studies.methods.report import entropy_at, write_report
from studies.methods.results import Results
from studies.methods.search import runs_due, scores


def quantity(seed: int, seeds: int = 3, questions: int = 30) -> Quantity:
    rng = np.random.default_rng(seed)
    return Quantity(rng.random((seeds, questions)), rng.random((seeds, questions)) + 0.5)


def test_interval_adds_up_seeds_and_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RESAMPLES", 50)
    a, b = quantity(0), quantity(1)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 50)
    questions = [np.repeat(np.arange(30), each) for each in counts]

    def means(q: Quantity, i: Any = slice(None)) -> np.ndarray:
        return np.asarray([q.numerator[x][i].sum() / q.denominator[x][i].sum() for x in range(3)])

    over_seeds = means(b) - means(a)
    over_questions = [float(means(b, i).mean() - means(a, i).mean()) for i in questions]
    # 4.30265 is Student's t at 0.975 with two degrees of freedom, 1.95996 the normal's.
    half = math.hypot(4.30265 * float(np.std(over_seeds, ddof=1)) / 3**0.5, 1.95996 * float(np.std(over_questions)))
    found = difference(a, b)
    assert found.value == pytest.approx(b.value - a.value)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-4)

    # A ratio is the same of the logarithms: the geometric mean of the seeds' ratios, and the spread around it.
    logs = np.log(means(b) / means(a)), [float(np.log(means(b, i) / means(a, i)).mean()) for i in questions]
    half = math.hypot(4.30265 * float(np.std(logs[0], ddof=1)) / 3**0.5, 1.95996 * float(np.std(logs[1])))
    ratio = proportion(a, b)
    assert ratio.value == pytest.approx(math.exp(logs[0].mean()))
    assert (ratio.low, ratio.high) == pytest.approx(
        (ratio.value * math.exp(-half), ratio.value * math.exp(half)), rel=1e-4
    )


def test_a_ratios_interval_is_around_its_own_value() -> None:
    """One seed with much of both must not move the value away from the interval that the seeds' ratios give."""
    flat = np.ones((3, 10))
    first, second = (Quantity(np.asarray(column)[:, None] * flat, flat) for column in ([1, 1, 100], [2, 2, 100]))
    found = proportion(first, second)
    assert found.value == pytest.approx(4 ** (1 / 3))
    half = 4.30265 * float(np.std(np.log([2, 2, 1]), ddof=1)) / 3**0.5
    assert (found.low, found.high) == pytest.approx(
        (found.value * math.exp(-half), found.value * math.exp(half)), rel=1e-4
    )


def test_what_cannot_be_scored_is_no_wrong_answer(plan: Plan) -> None:
    """As in `evaluate`: left out of avg@k and pass@k, with its question where nothing is left, and kept in lengths."""
    spec = plan.mains("grpo", {"learning_rate": 1e-4})[0]
    whole = invented(spec)
    count = len(whole.questions["correct"])
    # Two answers of every question could not be scored, all of the first one's, and all but one of the second's.
    scored = [0, 1] + [SAMPLES - 2] * (count - 2)
    correct = [0, 1] + [min(c, s) for c, s in zip(whole.questions["correct"][2:], scored[2:], strict=True)]
    group = Group([replace(whole, questions={**whole.questions, "correct": correct, "scored": scored})])
    rest = list(zip(correct, scored, strict=True))[1:]
    assert group.accuracy().value == pytest.approx(np.mean([c / s for c, s in rest]))
    assert group.pass_at(2).value == pytest.approx(np.mean([pass_at_k(s, c, 2) for c, s in rest[1:]]))
    assert group.thinking().value == Group([whole]).thinking().value
    assert scores(group.runs[0])["accuracy"] == group.accuracy().value
    # What was measured before there was such a column was all scored.
    assert "scored" not in whole.questions
    assert Group([whole]).accuracy().value == pytest.approx(np.mean(whole.questions["correct"]) / SAMPLES)


def test_an_unscored_answer_moves_nothing() -> None:
    known = group_advantages([True, False, True])
    assert group_advantages([True, None, False, True]).tolist() == [known[0], 0.0, known[1], known[2]]
    assert group_advantages([None, None]).tolist() == [0.0, 0.0]
    assert group_advantages([None, True]).tolist() == [0.0, 0.0]
    rewards = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(known, (rewards - rewards.mean()) / (rewards.std() + 1e-4))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_covers_what_it_says_where_seeds_differ(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RESAMPLES", 20)
    rng = np.random.default_rng(0)
    flat = np.ones((seeds, 4))
    inside = 0
    for _ in range(400):
        first, second = (Quantity(flat * rng.normal(5, 1, (seeds, 1)), flat) for _ in range(2))
        found = difference(first, second)
        inside += found.low <= 0 <= found.high
    assert 0.92 < inside / 400 < 0.98


def test_pairing_takes_out_what_the_two_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 200)).repeat(3, 0)
    a, b = (Quantity(hard + shift, np.ones_like(hard)) for shift in (0.0, 0.01))
    found = difference(a, b)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    alone = estimate([a], lambda x: x)
    assert alone.high - alone.low > 0.05


def test_one_seed_gives_the_interval_of_its_questions() -> None:
    found = difference(quantity(0, seeds=1), quantity(1, seeds=1))
    assert 0 < found.high - found.low < 1


def test_what_cannot_be_divided_has_no_interval() -> None:
    nothing = Quantity(np.zeros((3, 10)), np.zeros((3, 10)))
    with np.errstate(all="ignore"):
        found = proportion(quantity(0, questions=10), nothing)
    assert math.isnan(found.low)
    assert Check("x", found, ">", 1.0).verdict == UNDECIDED


def test_trend_is_the_slope_through_all_points() -> None:
    flat = np.ones((2, 10))
    falling = trend([Quantity(value * flat, flat) for value in (3.0, 1.0, -1.0)])
    assert (falling.value, falling.low, falling.high) == pytest.approx((-2, -2, -2))
    bent = trend([Quantity(value * flat, flat) for value in (0.0, 4.0, 4.0, 0.0)])
    assert bent.value == pytest.approx(0)
    assert trend([Quantity(value * flat, flat) for value in (0.0, 4.0, 4.0, 1.0)]).value == pytest.approx(0.3)


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
    ("low", "high", "relation", "verdict"),
    [
        (1.4, 1.6, "≥", HOLDS), (1.0, 1.2, "≥", FAILS), (1.2, 1.4, "≥", UNDECIDED), (1.3, 1.3, "≥", HOLDS),
        (1.4, 1.6, "<", FAILS), (1.0, 1.2, "<", HOLDS), (1.3, 1.3, "<", FAILS), (1.3, 1.3, "≤", HOLDS),
        (1.3, 1.4, ">", UNDECIDED), (1.3, 1.3, ">", FAILS), (math.nan, math.nan, ">", UNDECIDED),
        (1.0, 1.2999, "≥", UNDECIDED),  # shown as 1.30
    ],
)  # fmt: skip
def test_verdict_of_a_check(low: float, high: float, relation: str, verdict: str) -> None:
    assert Check("x", Estimate((low + high) / 2, low, high), relation, 1.3).verdict == verdict


@pytest.fixture
def whole_plan(plan: Plan) -> Plan:
    """With every kind of method that is judged, and nothing searched."""
    methods = {name: replace(method, trials=[]) for name, method in plan.methods.items()}
    methods["target"] = Method("target", "entropy", {"entropy_clip": "target"})
    methods["clip_b_pear"] = Method("Clip_B + PEAR", "length", {"entropy_clip": "clip_b"}, builds_on="pear")
    methods["target_pear"] = Method("target + PEAR", "length", {"entropy_clip": "target"}, builds_on="pear")
    sweeps = {
        "mu": Sweep("clip_b", "entropy_clip_mu_low", [1.0, 2.0]),
        "alpha": Sweep("pear", "pear_alpha", [1.0, 2.0]),
    }
    return replace(plan, methods=methods, sweeps=sweeps)


def test_claims_on_invented_runs(whole_plan: Plan) -> None:
    def group(method: str, **means: float) -> Group:
        return Group([invented(spec, **means) for spec in whole_plan.mains(method, {})])

    groups = {
        "start": Group([invented(spec, accuracy=0.4, entropy=0.5) for spec in whole_plan.starts()]),
        "grpo": group("grpo", accuracy=0.3, entropy=0.2, thinking=50),
        "clip_b": group("clip_b", accuracy=0.9, entropy=0.4, thinking=50),
        "target": group("target", accuracy=0.9, entropy=0.4, thinking=50),
        "pear": group("pear", accuracy=0.3, entropy=0.1, thinking=30),
        "clip_b_pear": group("pear", accuracy=0.3, entropy=0.2, thinking=30),
        "target_pear": group("pear", accuracy=0.3, entropy=0.2, thinking=32),
    }
    sweeps = {"mu": {1.0: group("clip_b", entropy=0.2), 2.0: group("clip_b", entropy=0.3)}}
    claims = judge(whole_plan, groups, sweeps)
    assert [claim.verdict for claim in claims] == [HOLDS, HOLDS, HOLDS, HOLDS, HOLDS, FAILS, MISSING]
    assert [claim.number for claim in claims] == [1, 2, 3, 4, 5, 6, 7]
    assert claims[2].text.startswith("target ends with at least 1.3 times GRPO's entropy")
    assert claims[5].text.startswith("Clip_B: a smaller μ")
    assert claims[6].missing == ["alpha = 1", "alpha = 2"]
    groups["clip_b"] = group("clip_b", accuracy=0.1, entropy=0.4)
    assert [claim.verdict for claim in judge(whole_plan, groups, sweeps)[1:3]] == [FAILS, HOLDS]
    # Clipping that loses PEAR's shorter thinking is not what is claimed.
    groups["target_pear"] = group("pear", accuracy=0.3, entropy=0.2, thinking=40)
    assert judge(whole_plan, groups, sweeps)[4].verdict == FAILS
    groups["start"] = Group([replace(run, questions_digest="others") for run in groups["start"].runs])
    with pytest.raises(ValueError, match="different questions"):
        judge(whole_plan, groups, sweeps)


def test_only_what_a_plan_has_is_judged(plan: Plan) -> None:
    methods = {name: replace(plan.methods[name], trials=[]) for name in ("grpo", "pear")}
    claims = judge(replace(plan, methods=methods, sweeps={}), {}, {})
    assert [claim.text for claim in claims] == [
        "GRPO's entropy falls",
        "PEAR ends with at least 25 % fewer thinking tokens than GRPO within a point of avg@k",
    ]


def test_entropy_when_an_accuracy_is_first_reached(plan: Plan) -> None:
    run = invented(plan.mains("grpo", {})[0])
    steps = list(range(1, 41))
    odd = steps[::2]  # a generation serves two steps
    curves = {
        "accuracy": {"steps": odd, "values": [0.5] * 9 + [0.8] * 11},
        "entropy": {"steps": steps, "values": [1 / step for step in steps]},
    }
    run = replace(run, curves=curves)
    # Of six generations the last five are right in 0.8: 0.75 in the mean, from step 17 to 27.
    assert entropy_at(run, 0.75) == pytest.approx(np.mean([1 / step for step in (17, 19, 21, 23, 25, 27)]))
    assert entropy_at(run, 0.5) == pytest.approx(np.mean([1 / step for step in (1, 3, 5, 7, 9, 11)]))
    assert entropy_at(run, 0.85) is None
    assert entropy_at(replace(run, curves={}), 0.5) is None


def test_no_claim_holds_of_what_is_not_measured(whole_plan: Plan) -> None:
    def group(method: str, **means: float) -> Group:
        return Group([invented(spec, **means) for spec in whole_plan.mains(method, {})])

    groups = {
        "grpo": group("grpo", accuracy=0.3, entropy=0.2, thinking=50),
        "clip_b": group("clip_b", accuracy=0.9, entropy=0.4, thinking=50),
        "pear": group("pear", accuracy=0.3, entropy=0.1, thinking=30),
    }
    sweeps = {"mu": {1.0: group("clip_b", entropy=0.4)}}
    claims = judge(whole_plan, groups, sweeps)
    assert [claim.verdict for claim in claims] == [MISSING, HOLDS, MISSING, HOLDS, MISSING, MISSING, MISSING]
    assert [claim.missing for claim in claims[:6]] == [
        ["start"], [], ["target"], [], ["clip_b_pear", "target_pear"], ["mu = 2"]
    ]  # fmt: skip
    # What is there can refute it all the same.
    groups["pear"] = group("pear", accuracy=0.3, entropy=0.3, thinking=30)
    assert judge(whole_plan, groups, sweeps)[4].verdict == FAILS


def test_alike_is_neither_higher_nor_lower(whole_plan: Plan) -> None:
    same = Group([invented(spec) for spec in whole_plan.mains("grpo", {})])
    sweeps = {name: dict.fromkeys(sweep.values, same) for name, sweep in whole_plan.sweeps.items()}
    claims = judge(whole_plan, dict.fromkeys(["start", *whole_plan.methods], same), sweeps)
    assert {claim.verdict for claim in claims} == {FAILS}


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
    assert "| PEAR | length, of the trials with avg@k ≥ " in text
    data = json.loads((tmp_path / "whole" / "claims.json").read_text(encoding="utf-8"))
    assert set(data["methods"]) == {"start", "grpo", "clip_b", "pear"}
    assert set(data["sweeps"]["mu"]) == {"1", "1.5"}
    # All runs are counted: starts, trials, methods, and the points of the sweeps that are no method's own.
    assert f"{len(list((results.directory / 'runs').glob('*.json')))} runs, " in text
    assert data["runs"] == len(list((results.directory / "runs").glob("*.json")))
    assert "on an abacus (trl 1.16.0)." in text
    assert data["methods"]["grpo"]["trained on, 1000 tokens"] == pytest.approx([16 * 5.5 / 1000] * 2)
    for name in ("curves", "difficulty", "sweeps"):
        assert (tmp_path / "whole" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_report_says_among_which_trials_one_was_chosen(
    plan: Plan, results: Results, finish: Callable[..., None], tmp_path: Path
) -> None:
    trials = [{"entropy_coef_step": step, "entropy_target": 0.2} for step in (0.01, 0.1)]
    methods = {"grpo": replace(plan.methods["grpo"], trials=[{}]), "trl": Method("TRL's", "target", {}, trials)}
    searched = replace(plan, methods=methods, sweeps={})
    while due := runs_due(searched, results)[0]:
        for spec in due:
            finish(spec, accuracy=0.1 if spec.method == "trl" else 0.9, entropy=0.2)
    write_report(searched, results, tmp_path)
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "| TRL's | entropy nearest to its entropy_target, of all trials | " in text
    assert "| GRPO | accuracy | **nothing varied** |" in text


def test_report_of_a_study_that_searches_nothing(plan: Plan, results: Results, tmp_path: Path) -> None:
    methods = {name: replace(method, trials=[]) for name, method in plan.methods.items()}
    write_report(replace(plan, methods=methods, sweeps={}), results, tmp_path)
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Nothing was searched: the plan gives every field." in text
    assert "chosen in bold" not in text
