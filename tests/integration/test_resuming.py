"""What lies in output_dir belongs to a run: another one does not go on in it, overwrite it or join it unasked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import warm_run

from entropy_rft.training.lock import DirectoryLock
from entropy_rft.training.recipe import RecipeParser
from entropy_rft.training.run import TrainingRun

pytestmark = pytest.mark.integration

Start = Callable[..., TrainingRun]


@pytest.fixture
def start(tmp_path: Path, random_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """``start(field=value)``: a run made ready from a recipe with these fields."""
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i), "image": None} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "resumed_rewards.py").write_text(
        "def reward(completions, **kwargs):\n    return [float(len(str(c)) % 5) for c in completions]\n"
        "def one(completions, **kwargs):\n    return [1.0]\n"
        "def infinite(completions, **kwargs):\n"
        "    return [float('inf')] + [float(len(str(c)) % 5) for c in completions[1:]]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").symlink_to(random_model_dir)
    base = {
        "model_name_or_path": "~/m",
        "task": "jsonl",
        "task_path": str(tmp_path / "rows.jsonl"),
        "rewards": ["resumed_rewards:reward"],
        "entropy_clip": "clip_b",
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }

    def make(**fields: Any) -> TrainingRun:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(base | fields))
        return TrainingRun(RecipeParser().parse(["--config", str(file)]))

    return make


def steps(directory: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_another_recipe_goes_on_only_when_told_to_and_is_recorded(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start().train()
    before = (run / "recipe.yaml").read_bytes()
    auto = {"resume_from_checkpoint": "auto", "max_steps": 2}
    changed = {"entropy_clip": "none", "learning_rate": 1e-4}
    with pytest.raises(
        ValueError, match=r"entropy_clip was clip_b, is now none; learning_rate was 0.001, is now 0.0001; "
    ):
        start(**auto, **changed)
    assert (run / "recipe.yaml").read_bytes() == before
    assert steps(run) == [1]

    start(**auto, **changed, resume_with_changes=True).train()
    description = json.loads((run / "run.json").read_text())
    assert description["changes"] == [
        {
            "after_step": 1,
            "fields": {
                "entropy_clip": {"before": "clip_b", "now": "none"},
                "learning_rate": {"before": 1e-3, "now": 1e-4},
            },
            "recipe_before": "recipe-1.yaml",
        }
    ]
    assert (run / "recipe-1.yaml").read_bytes() == before
    assert yaml.safe_load((run / "recipe.yaml").read_text())["entropy_clip"] == "none"
    assert steps(run) == [1, 2]

    # The changed recipe is the run's own from now on, and what was recorded stays.
    start(**auto | {"max_steps": 3}, **changed).train()
    assert json.loads((run / "run.json").read_text())["changes"] == description["changes"]
    assert not (run / "recipe-2.yaml").exists()
    # A checkpoint that is named counts as much, also for a run elsewhere.
    with pytest.raises(ValueError, match="entropy_clip was none, is now clip_b"):
        start(resume_from_checkpoint=str(run / "checkpoint-3"), output_dir=str(tmp_path / "other"), learning_rate=1e-4)


def test_a_run_may_go_on_with_the_target_rule_and_with_another_target(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    auto = {"resume_from_checkpoint": "auto", "resume_with_changes": True}
    start(entropy_clip="none").train()

    def kept(step: int) -> dict[str, Any]:
        state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
        return dict(state["stateful_callbacks"]["RuleState"]["attributes"])

    target = {"entropy_clip": "target", "entropy_clip_target": "0.5x"}
    start(**auto, **target, max_steps=2).train()
    first = kept(2)
    assert first["target"] == pytest.approx(0.5 * first["first"])
    start(**auto, **target, max_steps=3, restore_callback_states_from_checkpoint=True).train()
    assert (kept(3)["batches"], kept(3)["first"], kept(3)["target"]) == (2, first["first"], first["target"])
    start(**auto, **target | {"entropy_clip_target": "0.75x"}, max_steps=4).train()
    assert kept(4)["target"] == pytest.approx(0.75 * first["first"])
    logged = [json.loads(line).get("entropy_clip/target") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged[0] is None
    assert logged[1:] == [pytest.approx(share * first["first"], rel=1e-4) for share in (0.5, 0.5, 0.75)]


def test_what_only_moves_a_run_and_old_directories_go_on(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start().train()
    moved = shutil.copy(tmp_path / "rows.jsonl", tmp_path / "moved.jsonl")
    auto = {"resume_from_checkpoint": "auto", "max_steps": 2}
    start(**auto, task_path=str(moved), logging_steps=3, save_steps=2, run_name="x", eval_on_start=False)
    moved.write_text(moved.read_text().replace("14", "15"))
    with pytest.raises(ValueError, match=r"the questions \(their digest\) was [0-9a-f]{16}, is now [0-9a-f]{16}"):
        start(**auto, task_path=str(moved))
    # As versions before this one left it.
    description = json.loads((run / "run.json").read_text())
    for name in ("questions", "changes", "processes"):
        description.pop(name, None)
    (run / "run.json").write_text(json.dumps(description))
    start(**auto)
    (run / "recipe.yaml").unlink()
    start(**auto, learning_rate=1e-5).train()
    assert steps(run) == [1, 2]


def test_auto_without_a_checkpoint_overwrites_its_own_run_only(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    auto = {"resume_from_checkpoint": "auto"}
    for recipe, aside in (({"max_steps": 2}, False), ({"learning_rate": 1e-4}, True)):
        start(save_strategy="no").train()
        for file in (*run.glob("*.safetensors"), run / "config.json"):
            file.unlink()  # as if it had been killed
        lines = (run / "metrics.jsonl").read_bytes()
        start(**auto, **recipe).train()
        assert (tmp_path / "run.1").exists() is aside
        if aside:
            assert (tmp_path / "run.2" if (tmp_path / "run.2").exists() else tmp_path / "run.1").is_dir()
            assert lines in {path.read_bytes() for path in tmp_path.glob("run.*/metrics.jsonl")}
        else:
            assert "holds no complete checkpoint yet: the run starts from the beginning" in capsys.readouterr().err
            shutil.rmtree(run)


def test_what_the_lens_recorded_after_the_checkpoint_is_recorded_again(start: Start, tmp_path: Path) -> None:
    run, names = tmp_path / "run", ("lens.jsonl", "lens_tokens.jsonl")
    recorded = {"entropy_lens_steps": 1, "entropy_lens_tokens": 1, "lr_scheduler_type": "constant"}
    start(max_steps=3, **recorded).train()
    whole = [(run / name).read_bytes() for name in names]
    shutil.rmtree(run)
    start(max_steps=2, **recorded).train()
    resumed = {"resume_from_checkpoint": str(run / "checkpoint-1"), "max_steps": 3}
    start(**resumed, **recorded).train()
    assert [(run / name).read_bytes() for name in names] == whole
    # Also by a run that does not record any more.
    start(**resumed | {"max_steps": 2}, lr_scheduler_type="constant").train()
    assert [json.loads(line)["step"] for line in (run / "lens.jsonl").read_text().splitlines()] == [1]


def test_a_second_run_is_refused_while_the_first_trains(start: Start, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    refused: list[subprocess.CompletedProcess[str]] = []

    class Second(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            words = ("train", "--config", tmp_path / "recipe.yaml", "--learning_rate", "1e-4")
            refused.append(warm_run(words, tmp_path, {}))

    first = start()
    first.trainer.add_callback(Second())
    first.train()
    (second,) = refused
    assert second.returncode == 2
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("entropy-rft: error")]
    assert f"run' is in use by another run (process {os.getpid()} on " in line
    assert steps(tmp_path / "run") == [1]
    assert DirectoryLock(tmp_path / "run").holder() is None
    assert not list(tmp_path.glob("run.*"))
    start(learning_rate=1e-4)  # and afterwards it may begin


def test_a_run_that_came_and_went_while_this_one_was_loading_is_not_overwritten(start: Start, tmp_path: Path) -> None:
    from entropy_rft.training.failures import TrainingFailed

    late = start(resume_from_checkpoint="auto")
    start(max_steps=2).train()
    run = tmp_path / "run"
    for file in (*run.glob("*.safetensors"), run / "config.json"):
        file.unlink()  # as if it had been killed
    with pytest.raises(TrainingFailed, match="was changed by another run while this one was loading") as error:
        late.train()
    assert error.value.exit_code == 2
    assert steps(run) == [1, 2]
    assert sorted(path.name for path in run.glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]
    # The home directory is `tmp_path` here.
    assert start(resume_from_checkpoint="~/run/checkpoint-2", max_steps=3).checkpoint == run / "checkpoint-2"


def test_a_lock_that_may_not_be_opened_is_one_line(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_rft.training.failures import TrainingFailed

    ready = start()

    def refused(self: DirectoryLock) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "run" / ".entropy_rft.lock"))

    monkeypatch.setattr(DirectoryLock, "acquire", refused)
    with pytest.raises(TrainingFailed, match=r"Permission denied: .*\.entropy_rft\.lock") as error:
        ready.train()
    assert error.value.exit_code == 2


def test_a_link_stays_and_leads_to_the_new_run(start: Start, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "big")
    for _ in range(2):
        start(output_dir=str(tmp_path / "link"), save_strategy="no").train()
    assert (tmp_path / "link").is_symlink()
    for directory in (tmp_path / "link", tmp_path / "disk" / "big.1"):
        assert steps(directory) == [1]


def test_the_models_own_directory_is_no_output_dir(start: Start, tmp_path: Path, random_model_dir: Path) -> None:
    model = shutil.copytree(random_model_dir, tmp_path / "model")
    with pytest.raises(ValueError, match="is model_name_or_path too"):
        start(model_name_or_path=str(model), output_dir=str(model))


def test_a_reward_that_returns_the_wrong_thing_is_one_line_of_the_user(start: Start, tmp_path: Path) -> None:
    from entropy_rft.training.failures import TrainingFailed

    with pytest.raises(
        TrainingFailed, match=r"^rewards: one must return a list of 4 numbers .* got 1: list \[1\.0\] \(in step 1\)"
    ) as error:
        start(rewards=["resumed_rewards:one"]).train()
    assert error.value.exit_code == 2


def test_an_infinite_reward_is_taken_for_none_and_counted(start: Start, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="rewards: infinite returned NaN or an infinity"):
        start(rewards=["resumed_rewards:infinite", "resumed_rewards:reward"]).train()
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert entry["rewards/infinite/not_finite"] == 1
    assert "rewards/reward/not_finite" not in entry
    assert entry["reward"] is not None
    assert entry["grad_norm"] is not None
