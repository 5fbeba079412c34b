"""A small plan, and results of it that nobody trained for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from inventions import QUESTIONS, SAMPLES, invented

from studies.methods.plan import Measurement, Method, Plan, RunSpec, Sweep
from studies.methods.results import Results


@pytest.fixture
def plan() -> Plan:
    return Plan(
        name="small",
        model={"name": "tiny_reasoner"},
        methods={
            "grpo": Method("GRPO", "accuracy", {}, [{"learning_rate": 1e-4}, {"learning_rate": 2e-4}]),
            "clip_b": Method(
                "Clip_B", "entropy", {"entropy_clip": "clip_b"},
                [{"entropy_clip_mu_low": 1.5}, {"entropy_clip_mu_low": 2.0}],
            ),
            "pear": Method("PEAR", "length", {"rewards": ["pear"]}, [{"pear_alpha": 0.5}, {"pear_alpha": 1.0}]),
        },
        fields={"per_device_train_batch_size": 16, "entropy_clip": "none"},
        steps=10,
        seeds=[0, 1],
        search_steps=5,
        search_seed=100,
        validation=Measurement("validation", 20, 4, 64),
        test=Measurement("test", QUESTIONS, SAMPLES, 64),
        sweeps={
            "mu": Sweep("clip_b", "entropy_clip_mu_low", [1.0, 1.5]),
            "alpha": Sweep("pear", "pear_alpha", [1.0, 2.0]),
        },
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


@pytest.fixture
def finish(results: Results) -> Callable[..., None]:
    """``finish(spec, accuracy=..., ...)``: the run is done."""

    def done(spec: RunSpec, **means: float) -> None:
        invented(spec, **means).save(results.path(spec.name))

    return done
