from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from entropy_rft.tasks import STEP_BY_STEP, load_task
from entropy_rft.tasks.generated import SPLITS
from entropy_rft.tasks.modulo import BASE, LEVELS, MOVES, Chain, Kind, apply, draw, kinds, questions, weight


def _asked(task) -> list[str]:
    return [prompt[-1]["content"] for prompt in task.dataset["prompt"]]


def test_solutions_are_what_python_computes():
    task = load_task("modulo", split="test", limit=300)
    for question, solution in zip(_asked(task), task.dataset["solution"], strict=True):
        start, moves = re.fullmatch(r"Start at (\d), then ((?: ?[-+*]\d){5}), modulo 10\?", question).groups()
        value = int(start)
        for move in moves.split():
            value = eval(f"({value}){move}")
        assert str(value % 10) == solution


def test_all_questions_have_the_same_length():
    assert len({len(question) for question in _asked(load_task("modulo", limit=500))}) == 1


def test_a_wrong_digit_is_never_put_right_by_a_right_move():
    for move in MOVES:
        assert {apply(digit, move) for digit in range(BASE)} == set(range(BASE))


def test_kinds_have_their_shares():
    table = kinds()
    assert set(table) == {(digit, move) for digit in range(BASE) for move in MOVES}
    heavy = Counter(kind for (_, move), kind in table.items() if weight(move) == 2)
    assert heavy[Kind.TURN_ONLY] == 12
    assert sum(heavy.values()) == 40
    assert not any(kind is Kind.TURN_ONLY for (_, move), kind in table.items() if weight(move) < 2)


def _level(*kinds_on_the_way: Kind) -> int | None:
    """The level of a chain that meets facts of these kinds, and plain ones besides."""
    rng = random.Random(str(kinds_on_the_way))
    wanted = Counter(kinds_on_the_way) + Counter({Kind.PLAIN: 5 - len(kinds_on_the_way)})
    return next(item for item in iter(lambda: draw(rng), None) if Counter(item.kinds) == wanted).level


def test_levels():
    trap, unknown, turn = Kind.NO_TURN, Kind.NO_RECALL, Kind.TURN_ONLY
    assert _level() == 1
    assert _level(trap) == 2
    assert _level(trap, Kind.NO_SPLIT) == _level(trap, trap, trap) == 3
    assert (_level(unknown), _level(unknown, trap)) == (4, 5)
    assert [_level(*[unknown] * n) for n in (2, 3, 4)] == [6, 7, 8]
    assert (_level(turn), _level(turn, unknown)) == (9, 10)
    assert _level(turn, turn) is None


def test_splits_share_no_question_whatever_the_seed():
    drawn = {
        split: {q for seed in range(2) for q in _asked(load_task("modulo", split=split, limit=600, seed=seed))}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not drawn[one] & drawn[other]


def test_levels_take_turns_and_a_smaller_limit_is_a_prefix():
    small, large = (load_task("modulo", limit=limit, seed=3) for limit in (50, 300))
    assert _asked(small) == _asked(large)[:50]
    assert small.dataset["difficulty"][:] == list(LEVELS) * 5
    assert len(set(_asked(large))) == 300


def test_seeds_differ_and_repeat():
    one, same, other = (_asked(load_task("modulo", limit=50, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other


def test_levels_option():
    assert load_task("modulo", limit=6, levels=[3, 10]).dataset["difficulty"][:] == [3, 10] * 3
    assert set(load_task("modulo", limit=9, levels=7).dataset["difficulty"]) == {7}


@pytest.mark.parametrize("levels", [[], [0], [11], ["3"], [True]])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels must be numbers from 1 to 10"):
        load_task("modulo", levels=levels)


def test_instruction_is_a_system_message():
    prompt = load_task("modulo", limit=1, instruction=STEP_BY_STEP).dataset[0]["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_unknown_split_and_path():
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_task("modulo", split="dev")
    with pytest.raises(ValueError, match=r"reads no file, but path is 'x\.jsonl'"):
        load_task("modulo", path="x.jsonl")


def test_the_reward_checks_the_answer():
    task = load_task("modulo", limit=1)
    answer = task.dataset[0]["solution"]
    wrong = str((int(answer) + 1) % 10)
    texts = [f"<think>\n1\n</think>\nThe answer is \\boxed{{{digit}}}." for digit in (answer, wrong)]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert task.reward_funcs[0](completions=completions, solution=[answer, answer]) == [1.0, 0.0]


def test_a_level_that_is_used_up_says_so(monkeypatch):
    monkeypatch.setattr("entropy_rft.tasks.modulo._PATIENCE", 20)
    stream = questions("test", levels=[1])
    with pytest.raises(ValueError, match="split 'test' has no more different questions of level 1"):
        list(itertools.islice(stream, 10_000))


def test_answer_is_the_last_digit_of_the_way():
    chain = Chain(7, (("*", 9), ("+", 3), ("-", 8), ("*", 3), ("+", 2)))
    assert chain.digits == (7, 3, 6, 8, 4, 6)
    assert chain.answer == 6
