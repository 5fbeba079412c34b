"""Is there a U: on traces whose entropies are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropy_rft.difficulty.labels import NoProbeError
from entropy_rft.difficulty.traces import Traces
from studies.methods.difficulty import NO_U, UNDECIDED, U, study_models, u_shape
from studies.probe_study import StudySettings


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


@pytest.fixture
def study(random_model_dir: Path, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Of the random model, which is never right: at a size that takes a second."""
    settings = StudySettings(train_questions=40, test_questions=6, samples=1, answer_samples=1, max_tokens=2)
    return lambda: study_models({"m": str(random_model_dir)}, settings, [0], tmp_path, log=lambda text: None)


def test_questions_that_make_no_probe_are_a_finding(study: Callable[[], dict[str, Any]]) -> None:
    found = study()["models"]["m"]
    assert found.keys() == {"impossible"}
    assert "no thresholds leave each of easy, normal and hard" in found["impossible"]


def test_a_damaged_file_is_no_finding(study: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    study()
    chunk = next((tmp_path / "m" / "seed-0" / "train" / "data").glob("*.parquet"))
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is corrupted .*: delete it and collect again"):
        study()


@pytest.mark.parametrize("error", [NoProbeError("alike"), ValueError("something else")])
def test_only_that_error_is_a_finding(
    error: ValueError, study: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("studies.methods.difficulty.ProbeStudy.run", fails)
    if isinstance(error, NoProbeError):
        assert study()["models"] == {"m": {"impossible": "alike"}}
    else:
        with pytest.raises(ValueError, match="something else"):
            study()


def test_ten_comes_after_nine() -> None:
    assert u_shape([traces([0.4] * 9)])["levels"][-1] == "10"
