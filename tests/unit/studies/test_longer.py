"""A longer control against the study that it explains, from results that nobody trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inventions import invented

from studies.methods.compare import Estimate, Group
from studies.methods.longer import COSTS, SLOWER, UNDECIDED, WINDOW, rise, verdict, write_longer
from studies.methods.plan import Method, Plan
from studies.methods.results import Results
from studies.methods.search import runs_due


@pytest.mark.parametrize(
    ("change", "risen", "expected"),
    [
        ((0.5, -0.9, 1.9), (3.0, 1.0, 5.0), SLOWER),
        ((-3.0, -4.0, -2.0), (0.2, -0.5, 0.9), COSTS),
        ((-3.0, -4.0, -2.0), (2.0, 0.5, 3.5), UNDECIDED),  # it still rises
        ((-3.0, -4.0, -2.0), (2.0, -1.0, 5.0), UNDECIDED),  # or may rise
        ((0.5, -0.9, 1.9), (3.0, np.nan, np.nan), UNDECIDED),  # one seed
        ((-3.0, -7.0, 1.0), (0.0, -1.0, 1.0), UNDECIDED),
    ],
)
def test_what_decides(change: tuple, risen: tuple, expected: str) -> None:
    assert verdict(Estimate(*change), Estimate(*risen)) == expected


@pytest.fixture
def plans(plan: Plan) -> tuple[Plan, Plan]:
    methods = {
        "grpo": Method("GRPO", "accuracy"),
        "target": Method("target", "entropy", {"entropy_clip": "target", "entropy_clip_target": "0.75x"}),
    }
    first = replace(plan, methods=methods, sweeps={}, test=replace(plan.test, also_at=[0.6]))
    return first, replace(first, name="longer", steps=2 * WINDOW)


def _finish(plan: Plan, results: Results, accuracies: dict[str, float]) -> None:
    for spec in runs_due(plan, results)[0]:
        result = invented(spec, accuracy=accuracies[spec.method], entropy=0.1)
        # Right answers in training rise by 2 points from one half to the other, and by 1 more in each further seed.
        half = [0.5] * (spec.steps // 2)
        later = [0.52 + 0.01 * spec.seed] * (spec.steps - len(half))
        result.curves["accuracy"] = {"steps": list(range(spec.steps)), "values": half + later}
        result.save(results.path(spec.name))


def test_the_longer_run_is_compared_with_all_three(plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    first, longer = plans
    earlier, later = Results(tmp_path / "first"), Results(tmp_path / "longer")
    assert write_longer(longer, later, first, earlier, tmp_path) == "not measured yet\n"
    _finish(first, earlier, {"start": 0.3, "grpo": 0.6, "target": 0.5})
    _finish(longer, later, {"start": 0.3, "grpo": 0.7, "target": 0.9})
    text = write_longer(longer, Results(tmp_path / "longer"), first, Results(tmp_path / "first"), tmp_path)
    assert (tmp_path / "longer.md").read_text(encoding="utf-8") == text
    assert f"target, {2 * WINDOW} updates: **{SLOWER}**" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "updates" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| GRPO, 10 updates", f"| GRPO, {2 * WINDOW} updates", "| target, 10 updates",
    ]  # fmt: skip
    gains = [float(row.split(" | ")[1].split()[0]) for row in rows]
    assert gains[2] > gains[0] > gains[1] > 0
    assert "last 50 updates minus the 50 before: +2.5 (" in text


def test_the_rise_is_a_mean_over_seeds_with_its_interval(plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    _, longer = plans
    results = Results(tmp_path / "longer")
    _finish(longer, results, {"start": 0.3, "grpo": 0.6, "target": 0.5})
    runs = [results.get(spec.name, spec.digest) for spec in longer.mains("grpo", {})]
    found = rise(Group([run for run in runs if run is not None]))
    assert found.value == pytest.approx(2.5)
    # Two values, 2 and 3: Student's t with one degree of freedom is 12.706.
    assert found.high - found.value == pytest.approx(12.706 * np.sqrt(0.5) / np.sqrt(2), rel=1e-4)
