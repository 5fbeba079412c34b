from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.cli import evaluate as verb
from entropy_rft.cli.flags import parse_options
from entropy_rft.evaluation import Evaluation


def parsed(*words):
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *map(str, words)])


@pytest.fixture
def model_dir(random_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(random_model_dir, tmp_path / "model"))


SMALL = ("--task", DEFAULT_TASK, "--limit", 6, "--samples", 2, "--max_tokens", 8, "--device", "cpu")


def test_an_evaluation_from_the_command_line(model_dir, capsys):
    args = parsed("--model", model_dir, *SMALL)
    assert args.run(args) == 0
    assert "6 × 2" in capsys.readouterr().out
    result = Evaluation.load(model_dir / f"evaluation-{DEFAULT_TASK}-test.json")
    assert (result.model, result.task, result.split) == (str(model_dir), DEFAULT_TASK, "test")
    assert (result.questions, result.samples, result.settings["max_tokens"]) == (6, 2, 8)
    assert 0 < result.tokens <= 8
    assert result.entropy is not None
    assert result.entropy > 0
    again = parsed("--model", model_dir, *SMALL, "--output", model_dir / "again.json", "--batch_size", 5)
    again.run(again)
    repeated = Evaluation.load(model_dir / "again.json")
    assert (repeated.tokens, repeated.avg_at_k) == (result.tokens, result.avg_at_k)


def test_a_limit_on_the_thinking(tmp_path):
    words = ("--model", DEFAULT_MODEL, *SMALL, "--max_tokens", 48)
    plain = parsed(*words, "--output", tmp_path / "plain.json")
    plain.run(plain)
    assert Evaluation.load(tmp_path / "plain.json").thinking_tokens > 10
    limited = parsed(*words, "--thinking_tokens", 3, "--output", tmp_path / "limited.json")
    limited.run(limited)
    result = Evaluation.load(tmp_path / "limited.json")
    assert result.thinking_tokens <= 6  # the opening marker counts
    assert result.settings["thinking_tokens"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "./nowhere", "--task", DEFAULT_TASK, "--thinking_tokens", "-1"], "thinking_tokens"),
        (["--model", "./nowhere", "--task", DEFAULT_TASK, "--extra_body", "{"], "is not JSON"),
        (["--model", "./nowhere", "--task", DEFAULT_TASK], "nowhere"),
        (["--model", "./nowhere", "--task", "arithmetik"], "arithmetik"),
        (["--model", "./nowhere", "--task", DEFAULT_TASK, "--task_option", "thinking"], "key=value"),
        (["--model", "./nowhere", "--task", DEFAULT_TASK, "--task_option", "nonsense=1"], "nonsense"),
        (["--model", "./nowhere", "--task", DEFAULT_TASK, "--output", "/"], "--output"),
    ],
)
def test_mistakes_are_one_line(words, message):
    args = parsed(*words)
    with pytest.raises(ValueError, match=message) as caught:
        args.run(args)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_the_prompts_is_one_line(model_dir):
    template = model_dir / "chat_template.jinja"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(refuses + template.read_text())
    args = parsed("--model", model_dir, *SMALL, "--task_option", "instruction=Think.")
    message = "the chat template refuses a prompt of the roles system, user: TemplateError: System role not supported"
    with pytest.raises(ValueError, match=message) as caught:
        args.run(args)
    assert "\n" not in str(caught.value)
    plain = parsed("--model", model_dir, *SMALL)
    assert plain.run(plain) == 0


def test_settings_are_checked_before_the_model_is_loaded():
    args = parsed("--model", "./nowhere", "--task", DEFAULT_TASK, "--temperature", "-1")
    with pytest.raises(ValueError, match="temperature"):
        args.run(args)


def test_task_options_are_typed():
    assert parse_options(["a=1", "b=0.5", "c=true", "d=None", "e=x=y", "f="]) == {
        "a": 1, "b": 0.5, "c": True, "d": None, "e": "x=y", "f": "",
    }  # fmt: skip
    with pytest.raises(ValueError, match="twice"):
        parse_options(["a=1", "a=2"])


def test_a_hub_model_leaves_its_result_here():
    assert verb.default_output("owner/name", "gsm8k", "test") == Path("evaluation-gsm8k-test.json")
    assert verb.default_output("owner/name", "reasoning_gym/gcd", "test") == Path(
        "evaluation-reasoning_gym-gcd-test.json"
    )
