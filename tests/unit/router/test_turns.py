"""Within a turn of an agent the difficulty is never lowered."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.difficulty.strategies import Difficulty
from entropy_rft.router.policy import REASONS, Decision, normal
from entropy_rft.router.turns import Turns

EASY, HARD = (Decision(difficulty, 0.9, "probe") for difficulty in (Difficulty.EASY, Difficulty.HARD))
ASKED: list[dict[str, Any]] = [{"role": "system", "content": "s"}, {"role": "user", "content": "Mend the parser."}]
CALLED: list[dict[str, Any]] = [
    *ASKED,
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "read"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "a file"},
]
ANSWERED = [*CALLED, {"role": "assistant", "content": "It is mended. Shall I go on?"}]
NEXT = [*ANSWERED, {"role": "user", "content": "yes, go on"}]


def test_it_is_not_lowered_in_a_turn_and_the_next_turn_is_decided_anew() -> None:
    turns = Turns()
    assert turns.kept(ASKED, HARD) is HARD
    kept = turns.kept(CALLED, EASY)
    assert (kept.difficulty, kept.reason, kept.confidence) == (Difficulty.HARD, "turn", 0.9)
    assert turns.kept(CALLED, normal("feature_timeout")).difficulty is Difficulty.HARD
    assert turns.kept(NEXT, EASY) is EASY
    assert "turn" in REASONS


def test_a_reminder_beside_a_tools_result_begins_no_turn() -> None:
    turns = Turns()
    turns.kept(ASKED, HARD)
    reminded = [*CALLED, {"role": "user", "content": "<reminder>Keep to the plan.</reminder>"}]
    assert turns.kept(reminded, EASY).difficulty is Difficulty.HARD
    called_again = [*reminded, *CALLED[2:], {"role": "user", "content": "<reminder/>"}]
    assert turns.kept(called_again, EASY).difficulty is Difficulty.HARD
    assert turns.kept([*called_again, {"role": "assistant", "content": "Done."}, NEXT[-1]], EASY) is EASY


def test_it_is_raised_in_a_turn_and_stays_there() -> None:
    turns = Turns()
    assert turns.kept(ASKED, EASY) is EASY
    assert turns.kept(CALLED, EASY) is EASY
    assert turns.kept(CALLED, HARD) is HARD
    assert turns.kept(ANSWERED, EASY).difficulty is Difficulty.HARD


def test_another_conversation_or_the_same_question_again_is_another_turn() -> None:
    turns = Turns()
    turns.kept(ASKED, HARD)
    assert turns.kept([{**ASKED[0], "content": "another"}, *CALLED[1:]], EASY) is EASY
    assert turns.kept(ASKED, EASY) is EASY
    assert turns.kept(CALLED, EASY) is EASY


@pytest.mark.parametrize(
    "messages", [None, [], [{"role": "system", "content": "s"}], [{"role": "user", "content": {1}}]]
)
def test_what_has_no_turn(messages: Any) -> None:
    turns = Turns()
    assert turns.kept(messages, HARD) is HARD
    assert turns.kept(messages, EASY) is EASY


def test_what_continues_a_stored_answer_is_not_lowered() -> None:
    turns = Turns()
    turns.remember("resp_1", HARD)
    assert turns.continued("resp_1", EASY).difficulty is Difficulty.HARD
    assert turns.continued("resp_1", EASY).reason == "turn"
    turns.remember("resp_2", EASY)
    assert turns.continued("resp_2", HARD) is HARD
    assert turns.continued("resp_3", EASY) is EASY


def test_its_memory_is_bounded() -> None:
    turns = Turns(most=10)
    for number in range(100):
        turns.kept([{"role": "user", "content": str(number)}], HARD)
        turns.remember(f"resp_{number}", HARD)
    assert len(turns._known) == len(turns._answers) == 10
