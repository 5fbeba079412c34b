from __future__ import annotations

import itertools
import random
import re

import pytest

from entropy_rft.tasks import STEP_BY_STEP, load_task
from entropy_rft.tasks.arithmetic import LEVELS, Sum, draw, questions
from entropy_rft.tasks.generated import SPLITS


def _asked(task) -> list[str]:
    return [prompt[-1]["content"] for prompt in task.dataset["prompt"]]


def test_solutions_are_what_python_computes():
    task = load_task("arithmetic", split="test", limit=300)
    for question, solution, difficulty in zip(
        _asked(task), task.dataset["solution"], task.dataset["difficulty"], strict=True
    ):
        expression = re.fullmatch(r"What is ([\d +-]+)\?", question)[1]
        assert str(eval(expression)) == solution
        assert len(re.findall(r"\d+", expression)) == difficulty


def test_partial_sums_stay_within_two_digits():
    rng = random.Random(1)
    for _ in range(500):
        partial = list(itertools.accumulate(draw(rng, 7, "train").terms))
        assert all(0 <= total <= 99 for total in partial)


def test_splits_share_no_question_whatever_the_seed():
    drawn = {
        split: {q for seed in range(3) for q in _asked(load_task("arithmetic", split=split, limit=1500, seed=seed))}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not drawn[one] & drawn[other]


def test_a_question_has_one_split():
    counts = dict.fromkeys(SPLITS, 0)
    for first, second in itertools.product(range(1, 51), range(1, 51)):
        counts[Sum((first, second)).split] += 1
    assert sum(counts.values()) == 2500
    assert counts["train"] / 2500 == pytest.approx(0.8, abs=0.03)


def test_levels_take_turns_and_a_smaller_limit_is_a_prefix():
    small, large = (load_task("arithmetic", limit=limit, seed=3) for limit in (60, 600))
    assert _asked(small) == _asked(large)[:60]
    assert small.dataset["difficulty"][:] == list(LEVELS) * 10
    assert len(set(_asked(large))) == 600


def test_seeds_differ_and_repeat():
    one, same, other = (_asked(load_task("arithmetic", limit=50, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other


def test_default_sizes():
    assert len(load_task("arithmetic")) == 4096
    assert len(load_task("arithmetic", split="validation")) == 600


def test_levels_option():
    task = load_task("arithmetic", limit=9, levels=[3, 5])
    assert task.dataset["difficulty"][:4] == [3, 5, 3, 5]
    assert set(load_task("arithmetic", limit=9, levels=4).dataset["difficulty"]) == {4}


@pytest.mark.parametrize("levels", [[], [1], [2, 8], ["3"], [True]])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels must be numbers of terms from 2 to 7"):
        load_task("arithmetic", levels=levels)


def test_instruction_is_a_system_message():
    prompt = load_task("arithmetic", limit=1, instruction=STEP_BY_STEP).dataset[0]["prompt"]
    assert prompt[0] == {"role": "system", "content": STEP_BY_STEP}
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_answer_format_follows_the_question():
    prompt = load_task("arithmetic", limit=1, answer_format="Box it.").dataset[0]["prompt"]
    assert prompt[0]["content"].endswith("?\n\nBox it.")


def test_unknown_split_and_path():
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_task("arithmetic", split="dev")
    with pytest.raises(ValueError, match=r"reads no file, but path is 'x\.jsonl'"):
        load_task("arithmetic", path="x.jsonl")


def test_a_level_that_is_used_up_says_so():
    stream = questions("test", levels=[2])
    with pytest.raises(ValueError, match="split 'test' has no more different questions of 2 terms"):
        list(itertools.islice(stream, 10_000))
