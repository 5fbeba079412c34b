"""One command makes the probe of an embedded model; here with few questions and a fraction of the answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.difficulty import DifficultyProbe
from entropy_rft.sampling.identity import question_id
from entropy_rft.tasks import load_task, task_rows
from studies.assets.make_probe import main

pytestmark = pytest.mark.integration


def test_the_command_makes_a_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "probe"
    flags = ["--model", DEFAULT_MODEL, "--questions", "72", "--samples", "4", "--validation-questions", "12"]
    flags += ["--validation-samples", "2", "--max-tokens", "120", "--hidden-units", "8"]
    assert (
        main(["--model", DEFAULT_MODEL, "--output", str(output), *flags, "--max-tokens", "120", "--hidden-units", "8"])
        == 0
    )
    assert f"probe: {output}" in capsys.readouterr().out
    probe = DifficultyProbe.from_pretrained(output, base_model=DEFAULT_MODEL)
    assert set(probe.metrics["mean_tokens"]) == {"easy", "normal", "hard"}
    assert probe.metrics["mean_tokens_of"]["questions"] == 12
    assert max(probe.metrics["mean_tokens"].values()) <= 120
    train = {question_id(row) for row in task_rows(load_task(DEFAULT_TASK, split="train", limit=72))}
    assert set(probe.questions) <= train  # and nothing of the splits that it may be measured on
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["recipe"]["questions"] == 72
    assert (provenance["recipe"]["model"], provenance["recipe"]["task"]) == (DEFAULT_MODEL, DEFAULT_TASK)
    shutil.copytree(output, tmp_path / "moved")
    DifficultyProbe.from_pretrained(tmp_path / "moved")
