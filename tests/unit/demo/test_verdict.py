"""The sentence under the demo's table follows from the table."""

from __future__ import annotations

from typing import Any

from entropy_rft.demo.verdict import verdict
from entropy_rft.evaluation import Evaluation


def evaluation(
    right: float, hardest: float, entropy: float, thinking: float, *, levels: bool = True, digest: str = "same"
) -> Evaluation:
    scores: dict[str, Any] = {
        "questions": 40, "unscorable": 0, "avg_at_k": right, "avg_interval": None, "pass_at_k": {1: right, 8: 0.9},
        "tokens": thinking + 10, "thinking_tokens": thinking, "answer_tokens": 9.0, "truncated": 0.0,
        "marker_missing": 0.0, "entropy": entropy, "entropy_thinking": entropy, "entropy_answer": 0.0,
    }  # fmt: skip
    found = {level: {**scores, "pass_at_k": {1: value, 8: value}} for level, value in (("1", 0.9), ("10", hardest))}
    about = {"model": "m", "task": "t", "split": "test", "samples": 8, "settings": {}, "seconds": 1.0, "schema": 1}
    means = [right] * 40
    levels_of = found if levels else {}
    own = {"by_difficulty": levels_of, "question_means": means, "questions_digest": digest}
    return Evaluation.from_dict({**scores, **about, **own})


GRPO = ("GRPO", evaluation(0.7, 0.25, 0.05, 80))


def test_it_says_what_differs_from_the_first() -> None:
    rows = [GRPO, ("target", evaluation(0.71, 0.5, 0.1, 76)), ("PEAR", evaluation(0.7, 0.25, 0.05, 60))]
    assert verdict(rows) == (
        "What to look at: target has 2.0 times GRPO's entropy, 5 % fewer thinking tokens, pass@8 at level 10 "
        "+25.0 points, avg@8 +1.0 points; PEAR has 1.0 times GRPO's entropy, 25 % fewer thinking tokens, pass@8 at "
        "level 10 +0.0 points (within the noise), avg@8 +0.0 points (within the noise). Each is one run: another seed "
        "may differ by several points."
    )


def test_more_entropy_alone_is_no_gain() -> None:
    text = verdict([GRPO, ("Clip_B", evaluation(0.3, 0.25, 0.15, 86))])
    assert text is not None
    assert ". Nothing here is clearly better than GRPO: with these settings, use GRPO. Each is one run" in text
    assert "3.0 times GRPO's entropy, 7 % more thinking tokens" in text
    assert "-40.0 points" in text


def test_a_few_questions_more_are_no_gain() -> None:
    text = verdict([GRPO, ("target", evaluation(0.6, 0.3, 0.15, 86))])
    assert text is not None
    assert "pass@8 at level 10 +5.0 points (within the noise)" in text
    assert "Nothing here is clearly better than GRPO" in text


def test_what_cannot_be_compared_is_left_out() -> None:
    assert verdict([GRPO]) is None
    text = verdict([GRPO, ("other", evaluation(0.9, 0.5, 0.05, 80, levels=False, digest="others"))])
    assert text is not None
    assert "level" not in text
    assert "avg@8" not in text
