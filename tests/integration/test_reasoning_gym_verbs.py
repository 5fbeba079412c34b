"""The task `reasoning_gym` in the verbs, on the embedded model, which of its questions knows only the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from warm import warm_run

from entropy_rft.assets import DEFAULT_MODEL

pytestmark = pytest.mark.integration

TASK = ["--task", "reasoning_gym"]
OPTIONS = {"generator": "chain_sum", "levels": [0, 2], "partial_credit": True, "answer_format": None}


def test_trains_with_partial_credit_and_pear(tmp_path: Path) -> None:
    (tmp_path / "varied.py").write_text(
        "def length_reward(completions, **kwargs):\n    return [float(len(str(c)) % 5) for c in completions]\n"
    )
    arguments = ["--config", "recipes/tiny/clip_b.yaml", "--output_dir", "run", *TASK, "--task_limit", "8"]
    arguments += ["--task_options", json.dumps(OPTIONS), "--rewards", "task", "pear", "varied:length_reward"]
    arguments += ["--max_steps", "2", "--per_device_train_batch_size", "8", "--num_generations", "4"]
    arguments += ["--eval_split", "validation", "--eval_limit", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
    done = warm_run(["train", *arguments, "--pear_floor", "0.1", "--per_device_eval_batch_size", "8"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert len(steps) == 2
    for line in steps:
        score = line["rewards/reasoning_gym_reward/mean"] + line["rewards/partial_credit/mean"]
        assert 0 <= score <= 1
        assert line["grad_norm"] > 0
    assert "pear/penalty" in steps[0]
    assert any("eval_rewards/reasoning_gym_reward/mean" in line for line in lines)


def test_evaluates_by_level_and_names_the_generator(tmp_path: Path) -> None:
    options = [word for key, value in OPTIONS.items() for word in ("--task_option", f"{key}={json.dumps(value)}")]
    words = ["evaluate", "--model", DEFAULT_MODEL, *TASK, *options, "--limit", "4", "--samples", "2"]
    done = warm_run([*words, "--max_tokens", "160"], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "evaluation-reasoning_gym-chain_sum-test.json").read_text())
    assert found["task"] == "reasoning_gym/chain_sum"
    assert list(found["by_difficulty"]) == ["0", "2"]
    collected = warm_run(["probe", "collect", "--output_dir", "traces", *words[1:], "--split", "train"], tmp_path)
    assert collected.returncode == 0, collected.stderr

    from entropy_rft.difficulty import load_traces

    assert sorted(row["level"] for row in load_traces(tmp_path / "traces").rows) == ["0", "0", "2", "2"]


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    words = ["--config", "recipes/tiny/clip_b.yaml", "--output_dir", "run", *TASK]
    done = warm_run(["train", *words, "--task_options", '{"generator": "chain_sum", "max_term": 3}'], tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "generator 'chain_sum' has no setting 'max_term'; did you mean max_terms?" in line
