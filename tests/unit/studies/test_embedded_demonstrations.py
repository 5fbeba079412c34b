from __future__ import annotations

import random
import re
from statistics import fmean

import pytest

from entropy_rft.tasks.modulo import BASE, LEVELS, MOVES, Kind, apply, draw, kinds, questions
from studies.embedded.demonstrations import EARLY_STEPS, completion, drill, habit
from studies.embedded.measure import correct, written_steps
from studies.embedded.ways import Way, result, work_out

FACTS = [(digit, move) for move in MOVES for digit in range(BASE)]


def _answer(text: str) -> int:
    return int(re.fullmatch(r"<think>\n.*\n</think>\nThe answer is \\boxed\{(\d)\}\.", text, re.DOTALL)[1])


@pytest.mark.parametrize("fact", FACTS[::7])
def test_the_same_fact_and_way_always_give_the_same(fact):
    assert all(work_out(*fact, way) == work_out(*fact, way) for way in Way)


def test_each_kind_is_known_by_its_ways():
    right = {way: {fact for fact in FACTS if result(*fact, way) == apply(*fact)} for way in Way}
    for fact, kind in kinds().items():
        known = {way for way in Way if fact in right[way]}
        if kind is Kind.NO_RECALL:
            assert known in ({Way.SPLIT}, {Way.SPLIT, Way.TURN})
        else:
            assert (
                known
                == {
                    Kind.PLAIN: set(Way),
                    Kind.NO_TURN: {Way.RECALL, Way.SPLIT},
                    Kind.NO_SPLIT: {Way.RECALL, Way.TURN},
                    Kind.TURN_ONLY: {Way.TURN},
                }[kind]
            )


def test_where_only_turning_helps_a_check_finds_nothing():
    for fact, kind in kinds().items():
        if kind is Kind.TURN_ONLY:
            assert result(*fact, Way.RECALL) == result(*fact, Way.SPLIT) != apply(*fact)


def test_what_is_written_adds_up():
    """A wrong result comes of a wrong part."""
    for fact in FACTS:
        for way in (Way.SPLIT, Way.TURN):
            step = work_out(*fact, way)
            assert eval(step.parts) % BASE == step.result == result(*fact, way)


@pytest.mark.parametrize("style", ["step", "early", "direct"])
def test_each_step_starts_where_the_one_before_ended(style):
    rng = random.Random(0)
    for _ in range(300):
        item = draw(rng)
        text = completion(item, style, rng)
        steps = written_steps(text)
        assert len(steps) == {"step": len(item.moves), "early": EARLY_STEPS, "direct": 0}[style]
        digit = item.start
        for step, move in zip(steps, item.moves, strict=False):
            assert (step.digit, step.move) == (digit, move)
            assert step.first == result(digit, move, step.way)
            if step.checked is not None:
                assert step.checked == result(digit, move, Way.SPLIT)
            assert step.repeats == 0 or step.checked is not None
            digit = step.first if step.checked is None else step.checked
        if style == "step":
            assert _answer(text) == digit
        chain = re.search(r"(?m)^Recall (\d)((?:[-+*]\d=\d){2,})\.", text)
        assert (chain is None) == (style == "step")
        if chain:
            assert int(chain[1]) == digit
            assert len(chain[2]) == 4 * (len(item.moves) - len(steps))


def test_a_trace_is_right_where_every_way_is():
    rng = random.Random(1)
    stream = questions("train", levels=[1])
    for _ in range(30):
        item = next(stream)
        assert all(correct(completion(item, style, rng), item) for style in ("step", "early", "direct"))


def test_a_trace_is_right_when_no_step_ends_wrong():
    rng = random.Random(2)
    for _ in range(300):
        item = draw(rng)
        text = completion(item, "step", rng)
        ends = [s.first if s.checked is None else s.checked for s in written_steps(text)]
        if all(end == step.right for end, step in zip(ends, written_steps(text), strict=True)):
            assert correct(text, item)


def test_yes_and_no_say_whether_the_check_agrees():
    rng = random.Random(3)
    verdicts = set()
    for _ in range(300):
        for first, found, verdict in re.findall(
            r"=(\d)\. Check [^=]+=(\d) (yes|no)", completion(draw(rng), "step", rng)
        ):
            assert (first == found) == (verdict == "yes")
            verdicts.add(verdict)
    assert verdicts == {"yes", "no"}


def test_the_forks_have_their_chances():
    rng = random.Random(4)
    item = next(item for item in iter(lambda: draw(rng), None) if item.weight == 3)
    steps = [step for _ in range(600) for step in written_steps(completion(item, "step", rng))]
    for way, chance, check in zip(Way, habit(item).ways, habit(item).check, strict=True):
        taken = [step for step in steps if step.way is way]
        assert len(taken) / len(steps) == pytest.approx(chance, abs=0.04)
        assert fmean(step.checked is not None for step in taken) == pytest.approx(check, abs=0.1)


def test_harder_levels_are_less_often_right():
    rng = random.Random(5)
    stream = questions("train")
    right = {level: [] for level in LEVELS}
    for _ in range(300):
        item = next(stream)
        right[item.level] += [correct(completion(item, "step", rng), item) for _ in range(8)]
    means = [fmean(right[level]) for level in LEVELS]
    assert means[0] == 1
    assert means[3] > means[6] > means[9]


def test_drill_lines_are_steps():
    for line in drill(random.Random(0), count=100).splitlines():
        (step,) = written_steps(line)
        assert step.first == result(step.digit, step.move, step.way)
