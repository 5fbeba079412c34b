"""Accuracy against entropy, from results that nobody trained for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from studies.methods.claims import judge
from studies.methods.compare import Group, Quantity, estimate
from studies.methods.frontier import (
    MEASURES,
    SETTLED,
    Point,
    _read_off,
    against_baseline,
    at_equal_entropy,
    compare,
    figure,
    held,
    points,
    write_frontier,
)
from studies.methods.plan import Method, Plan, Sweep
from studies.methods.report import collect
from studies.methods.results import Results
from studies.methods.search import all_runs, runs_due


@pytest.fixture
def frontier(plan: Plan) -> Plan:
    """GRPO stopped at three places, and the target rule at two levels."""
    return replace(
        plan,
        methods={
            "grpo": Method("GRPO", "accuracy"),
            "target": Method("target", "entropy", {"entropy_clip": "target", "entropy_clip_target": "0.5x"}),
        },
        sweeps={
            "target": Sweep("target", "entropy_clip_target", ["0.5x", "0.3x"]),
            "stopped": Sweep("grpo", "steps", [5]),
        },
        test=replace(plan.test, also_at=[0.6]),
    )


def _finish_all(plan: Plan, results: Results, finish: Callable[..., None], gain: float) -> None:
    """GRPO's accuracy is linear in the logarithm of its entropy; the target rule lies `gain` above that line."""
    entropies = {"start": 0.4, "stopped-5": 0.2, "grpo": 0.1, "0.3x": 0.16, "target": 0.25}
    for spec in runs_due(plan, results)[0]:
        entropy = next(e for name, e in entropies.items() if name in spec.name)
        accuracy = 0.3 - 0.1 * np.log(entropy / 0.4) / np.log(2)
        finish(spec, accuracy=accuracy + (gain if "target" in spec.name else 0.0), entropy=entropy)


def found_in(plan: Plan, results: Results) -> list[Point]:
    groups, sweeps, _ = collect(plan, results)
    return points(plan, groups, sweeps)


def _point(found: list[Point], setting: str) -> Point:
    return next(p for p in found if p.setting == setting)


def test_each_setting_is_one_point(frontier: Plan, results: Results, finish: Callable[..., None]) -> None:
    _finish_all(frontier, results, finish, 0.0)
    assert {(p.method, p.setting) for p in found_in(frontier, results)} == {
        ("start", ""), ("grpo", "steps 5"), ("grpo", "steps 10"), ("target", "entropy_clip_target 0.5x"),
        ("target", "entropy_clip_target 0.3x"),
    }  # fmt: skip


def test_a_setting_that_no_sweep_names_is_what_the_search_chose(
    frontier: Plan, results: Results, finish: Callable[..., None]
) -> None:
    trials = {name: [{name: value}] for name, value in (("pear_alpha", 2.0), ("entropy_clip_target", "0.5x"))}
    longer = {
        "pear": Method("PEAR", "length", {"rewards": ["pear"]}, trials["pear_alpha"]),
        "target_pear": Method("both", "length", {"rewards": ["pear"]}, trials["entropy_clip_target"], "pear"),
    }
    plan = replace(frontier, methods={**frontier.methods, **longer}, sweeps={})
    while due := runs_due(plan, results)[0]:
        for spec in due:
            finish(spec, accuracy=0.5, entropy=0.3 if spec.method == "start" else 0.1)
    found = found_in(plan, results)
    settings = {p.method: p.setting for p in found}
    assert settings["pear"] == "pear_alpha 2"
    assert settings["target_pear"] == "pear_alpha 2, entropy_clip_target 0.5x"
    assert {row["rival"] for row in compare(plan, found)} == {"grpo"}  # PEAR is not to keep entropy


def test_points_are_of_the_seeds_that_sweeps_have(
    frontier: Plan, results: Results, finish: Callable[..., None]
) -> None:
    fewer = replace(frontier, sweep_seeds=[1])
    _finish_all(fewer, results, finish, 0.0)
    found = found_in(fewer, results)
    assert len(found) == 5
    assert {run.spec["seed"] for p in found for run in p.group.runs} == {1}


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_the_difference_at_equal_entropy(
    frontier: Plan, results: Results, finish: Callable[..., None], gain: float
) -> None:
    _finish_all(frontier, results, finish, gain)
    found = found_in(frontier, results)
    line = [p for p in found if p.method in ("start", "grpo")]
    for setting in ("entropy_clip_target 0.5x", "entropy_clip_target 0.3x"):
        own = _point(found, setting)
        difference = at_equal_entropy(own, line, MEASURES["avg@k"])
        assert difference is not None
        # (The invented answers are drawn: their accuracy is the wanted one up to some hundredths.)
        assert difference.value == pytest.approx(gain, abs=0.03)
        assert difference.low <= difference.value <= difference.high


def _of(setting: str, entropies: list[float], accuracies: list[float]) -> Any:
    """A point that has these entropies and accuracies, one a seed, in each of its questions."""
    quantities = [Quantity(np.asarray(own)[:, None] * np.ones((len(own), 8)), np.ones((len(own), 8)))
                  for own in (entropies, accuracies)]  # fmt: skip
    group = SimpleNamespace(entropy=lambda: quantities[0], accuracy=lambda: quantities[1])
    return Point("any", setting, cast(Group, group), cast(Group, group))


def test_equal_entropy_is_that_of_each_seed() -> None:
    line = [_of("low", [0.1, 0.2], [0.6, 0.5]), _of("high", [0.4, 0.8], [0.2, 0.3]), _of("mid", [0.2, 0.4], [0.5, 0.4])]
    own = _of("own", [0.1 * 2**0.5, 0.8], [0.7, 0.4])
    found = at_equal_entropy(own, line, MEASURES["avg@k"])
    assert found is not None
    # Half way from 0.6 to 0.5 in the first seed, 0.3 in the second.
    assert found.value == pytest.approx(((0.7 - 0.55) + (0.4 - 0.3)) / 2)
    assert found.high - found.value == pytest.approx(12.7062 * np.std([0.15, 0.1], ddof=1) / 2**0.5, rel=1e-4)
    # Within the range of the means, not within that of the second seed.
    assert at_equal_entropy(_of("own", [0.15, 0.19], [0.7, 0.4]), line, MEASURES["avg@k"]) is None


def test_lines_are_read_off_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    places, heights, at = rng.random((4, 3, 50)), rng.random((4, 3, 50)), rng.normal(0.5, 0.5, (3, 50))
    places[1, :, :10] = places[2, :, :10]  # no line between two points at one place
    found = _read_off(at, places, heights)
    for seed, draw in np.ndindex(at.shape):
        order = np.argsort(places[:, seed, draw])
        wanted = np.interp(at[seed, draw], places[order, seed, draw], heights[order, seed, draw])
        assert found[seed, draw] == pytest.approx(wanted)


def test_what_a_setting_costs_beside_the_whole_run_of_the_baseline(
    frontier: Plan, results: Results, finish: Callable[..., None]
) -> None:
    _finish_all(frontier, results, finish, 0.0)
    rows = {row["setting"]: row for row in against_baseline(frontier, found_in(frontier, results))}
    assert rows.keys() == {"entropy_clip_target 0.5x", "entropy_clip_target 0.3x"}
    # The invented entropies are 0.16 and 0.1; the accuracies lie on a line in the logarithm of the entropy.
    assert rows["entropy_clip_target 0.3x"]["entropy"]["value"] == pytest.approx(1.6, rel=0.05)
    assert rows["entropy_clip_target 0.3x"]["avg@k"]["value"] == pytest.approx(-10 * np.log2(1.6), abs=4)
    assert against_baseline(replace(frontier, steps=11), found_in(frontier, results)) == []


def test_no_difference_where_the_rival_does_not_reach_the_entropy(
    frontier: Plan, results: Results, finish: Callable[..., None]
) -> None:
    _finish_all(frontier, results, finish, 0.0)
    found = found_in(frontier, results)
    high = [p for p in found if p.method == "start" or p.setting == "steps 5"]
    assert at_equal_entropy(_point(found, "entropy_clip_target 0.3x"), high, MEASURES["avg@k"]) is None
    assert at_equal_entropy(_point(found, "entropy_clip_target 0.5x"), high[:1], MEASURES["avg@k"]) is None


def test_how_a_target_was_kept(frontier: Plan, results: Results, finish: Callable[..., None]) -> None:
    spec = frontier.sweep_runs("target", {})["0.5x"][0]
    finish(spec)
    run = results.get(spec.name, spec.digest)
    assert run is not None
    steps = SETTLED + 1000
    rng = np.random.default_rng(0)
    entropy = np.concatenate([np.full(SETTLED, 9.0), rng.normal(0.21, 0.02, steps - SETTLED)])
    curves = {
        "entropy": {"steps": list(range(steps)), "values": entropy.tolist()},
        "target": {"steps": list(range(steps)), "values": [0.2] * steps},
        "at_bound": {"steps": list(range(steps)), "values": [1.0] * (SETTLED + 500) + [0.0] * 500},
    }
    found = held(replace(run, curves=curves))
    assert found.target == 0.2
    assert found.bias == pytest.approx(0.05, abs=0.005)
    assert found.deviation == pytest.approx(np.abs(entropy[SETTLED:] - 0.2).mean() / 0.2)
    # The mean absolute deviation of a normal distribution, relative to the target.
    assert found.noise == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.05)
    assert found.at_bound == 0.5


def _report(plan: Plan, results: Results, output: Path) -> tuple[str, dict[str, Any]]:
    for spec in all_runs(plan, runs_due(plan, results)[1]):
        if spec.method == "target":  # the invented curves have no target
            path = results.path(spec.name)
            data = json.loads(path.read_text(encoding="utf-8"))
            steps = list(range(SETTLED + 20))
            data["curves"] |= {name: {"steps": steps, "values": [0.2] * len(steps)} for name in ("entropy", "target")}
            path.write_text(json.dumps(data), encoding="utf-8")
    text = write_frontier(plan, Results(results.directory), output)
    return text, json.loads((output / "frontier.json").read_text(encoding="utf-8"))


def test_the_report(frontier: Plan, results: Results, finish: Callable[..., None], tmp_path: Path) -> None:
    _finish_all(frontier, results, finish, 0.1)
    text, data = _report(frontier, results, tmp_path)
    assert "| entropy_clip_target 0.5x | 0.0, 0.0 |" in text
    assert "| entropy_clip_target 0.3x | GRPO | +" in text
    assert len(data["points"]) == 5
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert not (tmp_path / "methods.png").exists()
    assert "methods" not in data


def test_methods_with_more_seeds_than_the_settings_have_tables_over_all_of_them(
    frontier: Plan, results: Results, finish: Callable[..., None], tmp_path: Path
) -> None:
    fewer = replace(frontier, sweep_seeds=[1])
    _finish_all(fewer, results, finish, 0.1)
    text, data = _report(fewer, results, tmp_path)
    assert {len(p["entropy"]) for p in data["points"]} == {1}
    assert [(p["method"], len(p["entropy"])) for p in data["methods"]] == [("start", 2), ("grpo", 2), ("target", 2)]
    [row] = data["methods_against_baseline"]
    assert row["method"] == "target"
    assert row["avg@k"]["low"] < row["avg@k"]["value"] < row["avg@k"]["high"]
    assert "Seeds 1: mean" in text
    assert f"Seeds {', '.join(map(str, fewer.seeds))}: mean" in text
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_the_figures_bars_are_intervals_and_all_means_are_inside(
    frontier: Plan, results: Results, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _finish_all(frontier, results, finish, 0.1)
    found = found_in(frontier, results)
    drawn: list[Any] = []
    monkeypatch.setattr("studies.methods.frontier.save", lambda figure, path, axes: drawn.extend(axes))
    figure(found, {"start": "start", "grpo": "GRPO", "target": "target"}, tmp_path / "no.png")
    for axes in drawn:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for container in axes.containers:
            x, y = container.lines[0].get_data()
            assert all(left < value < right for value in x)
            assert all(low < value < high for value in y)
    [start] = [container for container in drawn[0].containers if container.get_label() == "start"]
    horizontal, vertical = (lines.get_segments()[0] for lines in start.lines[2])
    group = _point(found, "").group
    entropy, accuracy = estimate([group.entropy()], np.asarray, positive=True), estimate([group.accuracy()], np.asarray)
    assert horizontal[:, 0] == pytest.approx([entropy.low, entropy.high])
    assert vertical[:, 1] == pytest.approx([100 * accuracy.low, 100 * accuracy.high])


def test_a_control_is_no_rival(frontier: Plan, results: Results, finish: Callable[..., None]) -> None:
    methods = {**frontier.methods, "shorter": Method("a length reward", "control", {"rewards": ["cosine_scaled"]})}
    plan = replace(frontier, methods=methods)
    _finish_all(frontier, results, finish, 0.1)
    for spec in runs_due(plan, results)[0]:
        finish(spec, entropy=0.2, thinking=25.0)
    found = found_in(plan, results)
    assert "shorter" in {p.method for p in found}
    assert {row["rival"] for row in compare(plan, found)} == {"grpo"}
    assert not [claim for claim in judge(plan, *collect(plan, results)[:2]) if "length reward" in claim.text]
    [row] = [row for row in against_baseline(plan, found) if row["method"] == "shorter"]
    assert row["thinking"]["value"] == pytest.approx(0.5, rel=0.02)
