from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from trl.rewards import accuracy_reward, reasoning_accuracy_reward

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.tasks import TASK_NAMES, level_of, load_task


def test_names():
    assert TASK_NAMES == ("arithmetic", "modulo", "gsm8k", "dapo_math", "jsonl", "reasoning_gym")


@pytest.mark.parametrize(
    ("name", "nearest"), [("gms8k", "gsm8k"), ("arithmetics", "arithmetic"), ("dapo-math", "dapo_math")]
)
def test_unknown_name_gives_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown task '{name}'; did you mean {nearest}\?") as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


def test_unknown_option_gives_the_nearest():
    with pytest.raises(ValueError, match=rf"{DEFAULT_TASK!r} has no option 'level'; did you mean levels\?"):
        load_task(DEFAULT_TASK, level=[2])
    with pytest.raises(ValueError, match=r"'gsm8k' has no option 'xyz' \(it has: instruction"):
        load_task("gsm8k", xyz=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": -3}, ValueError),
        ({"limit": 2.0}, TypeError),
        ({"limit": True}, TypeError),
        ({"seed": "1"}, TypeError),
        ({"split": None}, TypeError),
        ({"instruction": 5}, TypeError),
        ({"answer_format": ["x"]}, TypeError),
        ({"thinking": "no"}, TypeError),
    ],
)
def test_bad_arguments_are_named(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        load_task(DEFAULT_TASK, **arguments)


def test_rewards_are_trls_and_can_be_pickled():
    thinking = load_task(DEFAULT_TASK, limit=1)
    plain = load_task(DEFAULT_TASK, limit=1, thinking=False)
    assert thinking.reward_funcs == [reasoning_accuracy_reward]
    assert plain.reward_funcs == [accuracy_reward]
    assert pickle.loads(pickle.dumps(thinking.reward_funcs)) == thinking.reward_funcs


def test_rewards_score_the_dataset():
    task = load_task(DEFAULT_TASK, limit=3)
    golds = task.dataset["solution"][:]
    texts = [f"<think> x </think> \\boxed{{{golds[0]}}}", "<think> x </think> \\boxed{1000}", f"\\boxed{{{golds[2]}}}"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert task.reward_funcs[0](completions=completions, solution=golds) == [1.0, 0.0, 0.0]


def test_importing_the_room_is_light():
    code = "import sys, entropy_rft.tasks; print([m for m in ('torch', 'trl', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_counts_as_a_level():
    rows = [{"difficulty": 3, "level": 5}, {"level": "Level 5"}, {"difficulty": None, "level": 2}, {"level": [1]}, {}]
    assert [level_of(row) for row in rows] == [3, "Level 5", 2, None, None]
