"""The command line as a user types it, on the random model: runs, resumes, logs, and names mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from gsm8k import DATA
from warm import WarmRanks, warm_run

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.cli.main import main

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def entropy_rft(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm_run(arguments, cwd, environment)


@pytest.fixture
def recipe(tmp_path: Path, random_model_dir: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    # The random model is never right, so the task's reward alone would leave it as it is.
    (tmp_path / "varied.py").write_text(
        "def length_reward(completions, **kwargs):\n    return [float(len(str(c)) % 5) for c in completions]\n"
    )
    fields = {
        "model_name_or_path": str(random_model_dir),
        "task": DEFAULT_TASK,
        "task_limit": 16,
        "rewards": ["pear", "varied:length_reward"],
        "pear_floor": 0.1,
        "entropy_clip": "clip_b",
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
    }
    file.write_text(yaml.safe_dump(fields))
    return file


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def test_trains_resumes_evaluates_and_reports(recipe: Path, tmp_path: Path, random_model_dir: Path) -> None:
    straight = entropy_rft("train", "--config", recipe, cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    run = tmp_path / "run"
    assert {"run.json", "recipe.yaml", "metrics.jsonl", "model.safetensors", "checkpoint-4"} <= {
        path.name for path in run.iterdir()
    }
    assert [entry["step"] for entry in metrics(run)] == [1, 2, 3, 4]
    assert metrics(run)[0].keys() >= {"entropy_clip/sigma", "pear/penalty", "entropy/predicted_change", "reward"}

    # Two steps, then the rest from the checkpoint: the same run, line for line and bit for bit.
    parts = tmp_path / "parts"
    for flags in (["--max_steps", "2"], ["--resume_from_checkpoint", "auto"]):
        result = entropy_rft("train", "--config", recipe, "--output_dir", parts, *flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert not (tmp_path / "parts.1").exists()
        if flags[0] == "--max_steps":  # a checkpoint may be kept on another disk
            (parts / "checkpoint-2").rename(tmp_path / "kept")
            (parts / "checkpoint-2").symlink_to(tmp_path / "kept")
    ignored = ("step_time", "time", "num_tokens", "epoch")
    compared = [
        [{name: value for name, value in entry.items() if name not in ignored} for entry in metrics(directory)]
        for directory in (run, parts)
    ]
    assert compared[0] == compared[1]
    import torch

    start = weights(random_model_dir)
    for name, tensor in weights(run).items():
        assert not torch.equal(start[name], tensor), name
        assert torch.equal(weights(parts)[name], tensor), name

    # The resolved recipe makes the run again; the earlier one is set aside, not overwritten.
    again = entropy_rft("train", "--config", run / "recipe.yaml", "--max_steps", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{run} held an earlier run, which is now in {run}.1" in again.stderr
    assert metrics(run)[0]["loss"] == metrics(tmp_path / "run.1")[0]["loss"]

    evaluation = entropy_rft(
        *("evaluate", "--model", parts, "--task", DEFAULT_TASK, "--limit", "6", "--samples", "2"),
        *("--max_tokens", "8"),
        cwd=tmp_path,
    )
    assert evaluation.returncode == 0, evaluation.stderr
    written = json.loads((parts / f"evaluation-{DEFAULT_TASK}-test.json").read_text())
    assert (written["questions"], written["samples"]) == (6, 2)
    report = entropy_rft("report", parts, tmp_path / "run.1", "--output", "page.html", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_rewards_with_arguments_train_and_resume(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(max_len: int) -> None:
        rewards = [
            {"name": "pear", "correctness": {"name": "cosine_scaled", "max_len": max_len}, "format_score": -0.25},
            {"name": "repetition_penalty", "ngram_size": 1},
            "repetition_penalty",
            {"path": "varied:length_reward", "unit": "characters"},
        ]
        recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"rewards": rewards}))

    write(8)
    result = entropy_rft("train", "--config", recipe, "--max_steps", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert [entry["step"] for entry in metrics(run)] == [1, 2]
    for entry in metrics(run):
        assert entry["rewards/pear_reward/mean"] == -0.25  # the random model is never right
        assert entry["rewards/repetition_penalty_reward/mean"] <= entry["rewards/repetition_penalty_reward_2/mean"] <= 0
        assert entry["rewards/length_reward/mean"] > 0
        assert "pear/penalty" in entry
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    assert stored["rewards"] == yaml.safe_load(recipe.read_text())["rewards"]

    auto = ("train", "--config", recipe, "--resume_from_checkpoint", "auto")
    result = entropy_rft(*auto, "--max_steps", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [entry["step"] for entry in metrics(run)] == [1, 2, 3]

    write(9)
    monkeypatch.chdir(tmp_path)
    assert main([str(word) for word in (*auto, "--max_steps", "4")]) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "had another recipe: rewards was [" in line
    assert '"max_len": 8' in line.partition("is now")[0]
    assert '"max_len": 9' in line.partition("is now")[2]
    assert [entry["step"] for entry in metrics(run)] == [1, 2, 3]


def test_evaluates_during_training(recipe: Path, tmp_path: Path) -> None:
    flags = ["--eval_split", "validation", "--eval_limit", "2", "--eval_strategy", "steps", "--eval_steps", "1"]
    result = entropy_rft("train", "--config", recipe, "--max_steps", "1", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert any("eval_entropy/thinking" in entry for entry in metrics(tmp_path / "run"))
    # The step before it is logged too, though nothing else asks for that here.
    more = ["--max_steps", "3", "--logging_steps", "50", "--save_strategy", "best", "--metric_for_best_model", "reward"]
    more += ["--load_best_model_at_end", "true", "--eval_on_start", "true"]
    result = entropy_rft("train", "--config", recipe, *flags, *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    evaluated = [line["step"] for line in lines if "eval_reward" in line]
    assert evaluated == [0, 1, 2, 3]
    # Ended between the last step and the final model, it ends up with the best one, and evaluates nothing twice.
    best = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    result = entropy_rft("train", "--config", recipe, *flags, *more, "--resume_from_checkpoint", "auto", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == best
    assert [line["step"] for line in metrics(tmp_path / "run") if "eval_reward" in line] == evaluated


def test_two_processes_are_one_run(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    words = ["train", "--config", recipe, "--per_device_train_batch_size", "4"]
    code, output = WarmRanks(words, tmp_path, {"ACCELERATE_USE_CPU": "1"}, 2).finish(300)
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert (tmp_path / "run.1" / "run.json").read_text() == "{}"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real questions are not at {DATA}")
def test_real_questions_run_through(tmp_path: Path) -> None:
    """GSM8K with the embedded model's architecture and byte-level tokenizer: the pipeline is what is shown."""
    result = entropy_rft(
        *("train", "--config", ROOT / "recipes/tiny/target_pear.yaml", "--task", "gsm8k"),
        *("--task_path", DATA / "gsm8k_train.jsonl", "--max_steps", "5", "--output_dir", tmp_path / "gsm8k"),
        *("--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "48"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    logged = metrics(tmp_path / "gsm8k")
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4, 5]
    assert all(entry["entropy/thinking"] > 0 for entry in logged)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "missing.yaml"], "recipe 'missing.yaml' cannot be read"),
        (["--learning_rat", "1"], "unknown option --learning_rat; did you mean --learning_rate?"),
        (["--rewards", "pearl"], "there is no reward 'pearl'; did you mean pear?"),
        (["--rewards", "{name: cosine_scaled, min_len: 1}"], "has no argument 'min_len'; did you mean max_len?"),
        (
            ["--rewards", "pear", '{"name": "cosine_scaled"}'],
            "cosine_scaled needs max_len: write {name: cosine_scaled,",
        ),
        (["--entropy_clip_mu_low", "0"], "entropy_clip_mu_low must be above 0, got 0"),
        (["--entropy_clip", "clipb"], "did you mean clip_b?"),
        (["--num_generations", "3"], "must be divisible by num_generations (3)"),
        (["--task", "gsm8k", "--task_path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--task", "arithmetics"], "arithmetic"),
        (["--model_name_or_path", "./no-model"], "'./no-model' is not a directory"),
        (["--resume_from_checkpoint", "./no-checkpoint"], "is not a checkpoint directory"),
        (["--eval_strategy", "steps"], "no eval_split"),
        (["--num_generations", "0"], "num_generations must be at least 1, got 0"),
        (["--temperature", "0"], "temperature must be above 0, got 0.0"),
        (["--loss_type", "grop"], "did you mean grpo?"),
        (["--pear_floor", "3"], "pear_floor must not be above"),
        (["--task_limit", "1"], "has 1 questions, but a generation takes 2"),
        (["--task_options", '{"path": "x"}'], "'path' is not an option of a task"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    flags: list[str],
    message: str,
    recipe: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from entropy_rft.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(recipe), *flags]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("entropy-rft: error:")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["raise_exception('System role\\nnot supported')", "1 / 0", "nothing.at.all"])
@pytest.mark.parametrize("verb", ["train", "evaluate", "collect"])
def test_a_template_that_refuses_the_prompts(
    verb: str,
    fault: str,
    recipe: Path,
    tmp_path: Path,
    random_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the template's program raises is one line that names the roles, and nothing is begun."""
    model = shutil.copytree(random_model_dir, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(
        f"{{% if messages[0]['role'] == 'system' %}}{{{{ {fault} }}}}{{% endif %}}" + template.read_text()
    )
    options = ("--task_options", '{"instruction": "Think."}')
    small = ("--task", DEFAULT_TASK, "--task_option", "instruction=Think.", "--limit", "2", "--samples", "2")
    words = {
        "train": ("train", "--config", recipe, "--model_name_or_path", model, "--rewards", "pear", *options),
        "evaluate": ("evaluate", "--model", model, *small),
        "collect": ("probe", "collect", "--model", model, *small, "--output_dir", tmp_path / "traces"),
    }[verb]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("entropy-rft: error: the chat template refuses a prompt of the roles system, user: ")
    assert not (tmp_path / "traces").exists()
    assert not (tmp_path / "run").exists()


def test_pear_with_a_tokenizer_that_lacks_the_marker(recipe: Path, tmp_path: Path, random_model_dir: Path) -> None:
    import shutil

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = tmp_path / "model"
    shutil.copytree(random_model_dir, model)
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<eos>": 2, "What": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    for file in model.glob("token*"):
        file.unlink()
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template="{{ messages[0]['content'] }}",
    ).save_pretrained(model)
    earlier = tmp_path / "run" / "run.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    result = entropy_rft("train", "--config", recipe, "--model_name_or_path", model, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "think_end_token '</think>' is not in the vocabulary" in line
    assert earlier.read_text() == "{}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task_option", "thinking=5"], "thinking must be true or false, not 5"),
        (["--task_option", "levels=none"], "levels must be a number or a list"),
        (["--task_option", "path=x"], "'path' is not an option of a task"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["--samples", "0"], "samples"),
        (["--model", "./nothing"], "'./nothing' is not a directory"),
    ],
)
def test_evaluate_names_mistakes_in_one_line(
    flags: list[str],
    message: str,
    random_model_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from entropy_rft.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--model", str(random_model_dir), "--task", DEFAULT_TASK, "--limit", "2", *flags]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("entropy-rft: error:")
    assert message in line


def test_what_is_logged_last_is_kept_and_another_runs_checkpoint_overwrites_nothing(
    recipe: Path, tmp_path: Path
) -> None:
    flags = ["--max_steps", "2", "--logging_steps", "10"]
    assert entropy_rft("train", "--config", recipe, *flags, cwd=tmp_path).returncode == 0
    (entry,) = metrics(tmp_path / "run")
    assert entry["step"] == 2
    assert entry.keys() >= {"reward", "entropy_clip/sigma"}
    assert not entry.keys() & {"train_runtime", "train_loss"}

    other = tmp_path / "other"
    assert entropy_rft("train", "--config", recipe, "--output_dir", other, *flags, cwd=tmp_path).returncode == 0
    checkpoint = tmp_path / "run" / "checkpoint-2"
    result = entropy_rft(
        *("train", "--config", recipe, "--output_dir", other, "--max_steps", "3"),
        *("--resume_from_checkpoint", checkpoint),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert [entry["step"] for entry in metrics(tmp_path / "other.1")] == [2]
    assert [entry["step"] for entry in metrics(other)] == [3]


def test_help_and_version(tmp_path: Path) -> None:
    for arguments in (
        ["--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["report", "--help"],
        ["demo", "--help"],
        ["probe", "--help"],
        *(["probe", part, "--help"] for part in ("collect", "train", "evaluate", "tune-strategies")),
    ):
        result = entropy_rft(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "usage: entropy-rft" in result.stdout
    assert "--entropy_clip_mu_low" in entropy_rft("train", "--help", cwd=tmp_path).stdout
    unknown = entropy_rft("trian", cwd=tmp_path)
    assert unknown.returncode == 2
    assert len(unknown.stderr.splitlines()) == 1
