"""Is there a U: on traces whose entropies are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entropy_rft.difficulty.labels import NoProbeError
from studies.methods.difficulty import study_models
from studies.probe_study import StudySettings


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
