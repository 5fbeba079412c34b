"""A study's settings from a file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from entropy_rft.difficulty import Difficulty, Thresholds
from studies.probe_settings import StudySettings, read_config

PARTS = [{"level": 1, "options": {"levels": [2]}}, {"level": 2, "options": {"levels": [7]}}]
RECIPE = Path(__file__).parents[3] / "recipes" / "studies" / "smollm2-difficulty.yaml"


def test_plain_values() -> None:
    settings = StudySettings(thresholds=Thresholds(0.8, 0.3, 0.5), parts=PARTS, train_questions=4, test_questions=2)
    data = settings.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["strategies"]["normal"]["max_tokens_fraction"] == 1.0
    assert data["thresholds"]["entropy_normal"] == 0.3
    assert data["parts"] == PARTS
    assert StudySettings().to_dict()["parts"] == []  # as it comes back from JSON


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_questions": 3}, "train_questions must be a multiple of the 2 parts, not 3"),
        ({"test_questions": 0}, "test_questions must be a multiple of the 2 parts, not 0"),
        ({"parts": [{"level": 1}]}, "parts: each is a mapping of level and options .*number 1 is {'level': 1}"),
        ({"parts": ["easy"]}, "number 1 is 'easy'"),
        ({"parts": [{"level": 1, "options": [2]}]}, r"the options of number 1 must be a mapping, not \[2\]"),
        ({"parts": [{"level": 1, "options": {"limit": 2}}]}, "'limit' is not an option of a task"),
    ],
)
def test_refused(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudySettings(**{"parts": PARTS, "train_questions": 4, "test_questions": 2, **changed})


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("samples: 3\nname: x\nstrategies: {easy: {temperature: 0.1}}\n")
    data = read_config(path, ["name"])
    assert (data["samples"], data["name"]) == (3, "x")
    assert data["strategies"][Difficulty.EASY].temperature == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels: 3", "unknown setting 'sampels'.*samples"),
        ("name: x", "unknown setting 'name'"),
        ("- 1", r"must map settings to values, not be \[1\]"),
        ("a: [", "is not YAML"),
        ("strategies: {medium: {}}", "no difficulty 'medium'"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path, [])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml", [])


def test_the_recipe_of_smollm2() -> None:
    """Every level in the same wordings, with generators that exist."""
    pytest.importorskip("reasoning_gym")
    from entropy_rft.tasks import load_task

    data = yaml.safe_load(RECIPE.read_text())
    wordings: dict[int, list[str | None]] = {}
    for part in data["parts"]:
        load_task(data["task"], limit=1, **part["options"])
        wordings.setdefault(part["level"], []).append(part["options"]["answer_format"])
    assert len(wordings) >= 5
    assert {len(set(own)) for own in wordings.values()} == {2}
    assert len({tuple(own) for own in wordings.values()}) == 1
    for name in ("train_questions", "test_questions"):
        assert data[name] % len(data["parts"]) == 0
