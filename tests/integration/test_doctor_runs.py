"""The doctor in real runs: it finds what was provoked, ends the run where it is told to, and watches a TRL run too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import GRPOConfig, GRPOTrainer
from warm import WarmRanks, warm_run

from entropy_rft import RunDoctor
from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.training.checkpoints import flaw

pytestmark = pytest.mark.integration

SOON = {"window": 2, "horizon": 4}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The embedded model, and a reward that says nothing."""
    (tmp_path / "flat.py").write_text("def reward(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    fields = {
        "task": DEFAULT_TASK,
        "task_limit": 16,
        "rewards": ["flat:reward"],
        "entropy_clip": "none",
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 16,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # Answers are cut off on purpose.
        "doctor": SOON | {"truncated": False},
        "doctor_stop": "no_spread",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


def lines(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_a_run_without_spread_ends_with_a_checkpoint_and_goes_on_from_it(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = warm_run(["train", "--config", recipe], tmp_path)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("doctor: ")]
    assert len(said) == 3
    assert said[0].startswith("doctor: no_spread, update 2: in 100% of the groups of the last 2 updates")
    assert "raise num_generations from 4 to 8" in said[0]
    assert said[1] == "doctor: doctor_stop ends the run after update 2, with a checkpoint"
    assert said[2].startswith("doctor: found in this run: no_spread (update 2)")
    assert [entry["step"] for entry in lines(run, "metrics.jsonl")] == [1, 2]
    assert flaw(run / "checkpoint-2") is None
    assert (run / "checkpoint-2" / "complete.json").is_file()
    [finding] = lines(run, "findings.jsonl")

    again = warm_run(["train", "--config", recipe, "--resume_from_checkpoint", "auto"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert [entry["step"] for entry in lines(run, "metrics.jsonl")] == [1, 2, 3, 4]
    assert lines(run, "findings.jsonl") == [finding]
    assert "doctor_stop ends" not in again.stderr

    report = warm_run(["report", run], tmp_path)
    assert report.returncode == 0, report.stderr
    assert "doctor: run: no_spread, update 2" in report.stdout
    assert "What the doctor found" in (tmp_path / "report.html").read_text()


def test_switched_off_it_says_nothing(recipe: Path, tmp_path: Path) -> None:
    ended = warm_run(["train", "--config", recipe, "--doctor", "false", "--doctor_stop", "false"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "doctor" not in ended.stderr
    assert [entry["step"] for entry in lines(tmp_path / "run", "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (tmp_path / "run" / "findings.jsonl").exists()


def test_two_processes_end_together_and_one_speaks(recipe: Path, tmp_path: Path) -> None:
    environment = {"ACCELERATE_USE_CPU": "1"}
    code, output = WarmRanks(["train", "--config", recipe], tmp_path, environment, 2).finish(300)
    assert code == 0, output
    assert output.count("doctor: no_spread, update 2") == 1
    assert flaw(tmp_path / "run" / "checkpoint-2") is None
    assert len(lines(tmp_path / "run", "findings.jsonl")) == 1


def test_it_watches_a_plain_trl_run(
    make_trainer: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    doctor = RunDoctor(SOON, stop=["truncated"])
    trainer = make_trainer(
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        trainer_class=GRPOTrainer,
        config_class=GRPOConfig,
        max_steps=6,
        logging_steps=2,
        trainer_options={"callbacks": [doctor]},
    )
    trainer.train()
    assert {finding.name: finding.step for finding in doctor.findings} == {"no_spread": 2, "truncated": 2}
    assert trainer.state.global_step == 2
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert not (tmp_path / "run" / "findings.jsonl").exists()
    errors = capsys.readouterr().err
    assert "raise max_completion_length from 12 to 24" in errors
    assert "doctor_stop ends the run after update 2" in errors
