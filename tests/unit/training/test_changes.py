from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from trl import ModelConfig

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.training.changes import FREE, changes, recorded, sentence
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.doctor import DoctorArguments
from entropy_rft.training.recipe import TaskArguments

BEFORE: dict[str, Any] = {
    "entropy_clip": "clip_b",
    "rewards": ["task"],
    "learning_rate": 1e-4,
    "model_name_or_path": DEFAULT_MODEL,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "output_dir": "runs/a",
    "save_steps": 20,
}


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [
        ("entropy_clip", "none", "clip_b"),
        ("rewards", ["pear"], ["task"]),
        ("rewards", [{"name": "pear", "alpha": 0.5}], ["task"]),
        ("learning_rate", 1e-5, 1e-4),
        ("beta", 0.04, 0.0),
        ("num_iterations", 2, 1),
        ("seed", 1, 42),
        ("task_options", {"levels": [2]}, None),
        ("lora_r", 4, 16),
        ("per_device_train_batch_size", 32, 64),
        ("steps_per_generation", 2, None),
        ("entropy_clip_refresh", True, False),
    ],
)
def test_what_changes_the_meaning_is_named_with_both_values(name: str, value: Any, before: Any) -> None:
    found = changes(BEFORE, BEFORE | {name: value})
    assert found == {name: (before, value)}
    assert changes(BEFORE | {name: value}, BEFORE) == {name: (value, before)}
    assert name in sentence(found)
    assert recorded(found, 7, "recipe-1.yaml") == {
        "after_step": 7,
        "fields": {name: {"before": before, "now": value}},
        "recipe_before": "recipe-1.yaml",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"output_dir": "elsewhere", "save_steps": 1, "save_strategy": "no", "max_steps": 90, "report_to": "wandb"},
        {"eval_strategy": "steps", "eval_steps": 5, "eval_split": "test", "entropy_audit_steps": 3, "use_cpu": True},
        {"deepspeed": "zero3.json", "gradient_checkpointing": False, "hub_token": "x", "logging_steps": 7},
        {"rewards": [{"name": "task"}]},
        {"rewards": "{name: task}"},
        {"learning_rate": "1e-4", "rewards": "task", "entropy_clip": "clip_b"},  # as YAML or a flag may give them
        {"beta": 0.0, "seed": 42, "loss_type": "dapo", "num_iterations": 1.0},  # the defaults, given
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 32, "steps_per_generation": 2},
    ],
    ids=str,
)
def test_what_only_moves_a_run_is_no_change(fields: dict[str, Any]) -> None:
    assert changes(BEFORE, BEFORE | fields) == {}


def test_more_processes_with_the_same_batch_are_the_same_run() -> None:
    now = BEFORE | {"per_device_train_batch_size": 32}
    assert changes(BEFORE, now, processes=(1, 2)) == {}
    assert changes(BEFORE, now, processes=(1, 1)) == {"per_device_train_batch_size": (64, 32)}
    assert changes(BEFORE, BEFORE, processes=(1, 2)) == {}  # their number alone moves the run


def test_every_free_field_exists() -> None:
    parts = (TaskArguments, EntropyGRPOConfig, ModelConfig, DoctorArguments)
    known = {f.name for part in parts for f in fields(part)}
    assert known >= FREE


def test_a_model_is_its_directory_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    before, now = (BEFORE | {"model_name_or_path": name} for name in ("~/m", "/home/someone/m"))
    assert changes(before, now) == {}
    assert changes(BEFORE, now) != {}
