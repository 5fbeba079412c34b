from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inventions import invented

from entropy_rft.training.findings import Levels
from studies.doctor import (
    ANY,
    CANDIDATES,
    FIXING,
    REPORTED,
    Judged,
    add_apart,
    alarms,
    choose,
    findings_in,
    judge,
    markdown,
    measure,
    only,
    part_of,
    per_update,
)
from studies.methods.plan import Measurement, RunSpec
from studies.methods.results import RunResult

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "scripts" / "results"
MEASUREMENT = Measurement("test", 40, 8, 64)


def run(
    name: str = "grpo-seed0",
    kind: str = "main",
    accuracy: float = 0.5,
    entropy: float = 0.3,
    curves: dict[str, list[float]] | None = None,
    **fields: Any,
) -> RunResult:
    """An invented run; a curve is a value for each update."""
    spec = RunSpec(name, kind, "grpo", "GRPO", int(name[-1]), 80 if kind != "start" else 0, fields, MEASUREMENT, {})
    result = invented(spec, accuracy, entropy)
    flat = {"accuracy": [0.5] * 80, "entropy": [0.3] * 80, "reward": [0.5] * 80}
    steps = list(range(1, 81))
    known = {curve: {"steps": steps, "values": values} for curve, values in {**flat, **(curves or {})}.items()}
    return replace(result, curves=known)


START = [run("start-seed0", "start")]


@pytest.mark.parametrize(
    ("name", "part"),
    [("grpo-seed0", FIXING), ("grpo-seed3", REPORTED), ("trial-pear-1-seed100", REPORTED), ("trial-a-2-seed0", FIXING)],
)
def test_the_parts_follow_from_the_name(name: str, part: str) -> None:
    assert part_of(run(name)) == part


def test_a_curve_has_a_value_for_each_update() -> None:
    result = run()
    result.curves["accuracy"] = {"steps": [1, 3, 5], "values": [0.1, 0.2, 0.3]}
    assert per_update(result, "accuracy") == [0.1, 0.2, 0.2, 0.3, 0.3]


@pytest.mark.parametrize(
    ("accuracy", "entropy", "curves", "verdict"),
    [
        (0.8, 0.1, {}, "healthy"),
        (0.57, 0.1, {}, "between"),
        (0.5, 0.1, {}, "entropy collapse"),
        (0.5, 0.4, {}, "entropy runaway"),
        (0.5, 0.3, {}, "stalled"),
        (0.8, 0.3, {"accuracy": [0.9] * 40 + [0.7] * 40}, "stalled"),
        (0.8, 0.3, {"accuracy": [0.5] * 40 + [0.9] * 40}, "healthy"),
    ],
)
def test_what_a_run_counts_as(accuracy: float, entropy: float, curves: dict, verdict: str) -> None:
    judged = judge(run(accuracy=accuracy, entropy=entropy, curves=curves), START, FIXING)
    assert judged.verdict == verdict
    assert (judged.collapse is None) is (verdict in ("healthy", "between"))


def test_the_update_of_a_collapse_is_where_the_curve_passes_the_limit() -> None:
    falls = [0.3] * 30 + [0.1] * 50
    assert judge(run(entropy=0.1, curves={"entropy": falls}), START, FIXING).collapse == 38  # 0.14 over ten of them
    assert judge(run(entropy=0.1), START, FIXING).collapse == 80


def test_findings_are_those_of_the_run_s_own_rule() -> None:
    idle = run(curves={"dropped": [0.0] * 80}, entropy_clip="clip_b", entropy_clip_mu_low=2.0, learning_rate=1e-4)
    [finding] = findings_in(idle, only({"rule_idle": 20}))
    assert finding.step == 20
    assert "lower entropy_clip_mu_low from 2 to 1.6" in finding.message
    assert findings_in(run(entropy_clip="none"), Levels()) == []


def test_the_most_sensitive_level_with_few_false_alarms_is_taken() -> None:
    drop = {0: 0.25, 1: 0.25, 2: 0.9}
    results = {
        f"{i}": run(f"grpo-seed{i}", curves={"entropy": [0.3] * 40 + [0.3 * (1 - share)] * 40})
        for i, share in drop.items()
    }
    verdicts = {0: "healthy", 1: "healthy", 2: "entropy collapse"}
    judged = {f"{i}": Judged(f"{i}", FIXING, verdict, False, 0, 1, 60, 80) for i, verdict in verdicts.items()}
    assert set(alarms(results, only({"entropy_collapse": 0.2}))) == {"0", "1", "2"}
    found = choose("entropy_collapse", results, judged)
    assert found["chosen"] == 0.3
    row = next(row for row in found["candidates"] if row["level"] == 0.3)
    assert (row["healthy_alarms"], row["collapsed_alarms"], row["by_kind"]["entropy collapse"]) == (0, 1, [1, 1])
    step = alarms(results, only({"entropy_collapse": 0.3}))["2"]
    assert (row["lead"], row["updates_left"]) == ([60 - step], [80 - step])


def test_the_stored_measurement_is_that_of_the_code_and_of_the_page() -> None:
    measured = json.loads((RESULTS / "doctor.json").read_text())
    # The first study's runs are in the history only; a run of `frontier` may be newer than the measurement.
    names = {run["name"] for run in measured["runs"] if run["part"] == "frontier"}
    again = copy.deepcopy(measured)
    add_apart(again, RESULTS / "frontier" / "runs", "frontier", names)
    assert json.loads(json.dumps(again)) == measured
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    for table in markdown(measured).split("\n\n"):
        assert table in page
    assert len(measured["runs"]) - len(names) == 91


def test_a_study_is_measured_with_the_levels_of_another(tmp_path: Path) -> None:
    for study, entropy in (("first", [0.3] * 40 + [0.1] * 40), ("frontier", [0.3] * 40 + [0.05] * 40)):
        (tmp_path / study).mkdir()
        found = run("start-seed0", "start"), run("grpo-seed1", accuracy=0.5, entropy=0.1, curves={"entropy": entropy})
        for result in found:
            result.save(tmp_path / study / f"{result.spec['name']}.json")
    measured = measure(tmp_path / "first")
    for _ in range(2):  # the second time in the place of the first
        add_apart(measured, tmp_path / "frontier", "frontier")
        assert [run["part"] for run in measured["runs"]] == [REPORTED, "frontier"]
        assert measured["table"]["entropy_collapse"]["frontier"]["by_kind"]["entropy collapse"] == [1, 1]
    assert measured["table"][ANY]["frontier"]["lead"] == measured["table"]["entropy_collapse"]["frontier"]["lead"]
    add_apart(measured, tmp_path / "frontier", "frontier", [])
    assert [run["part"] for run in measured["runs"]] == [REPORTED]


def test_the_defaults_are_the_levels_that_were_fixed() -> None:
    measured = json.loads((RESULTS / "doctor.json").read_text())
    assert {name: getattr(Levels(), name) for name in CANDIDATES} == {
        name: found["chosen"] for name, found in measured["chosen"].items()
    }
