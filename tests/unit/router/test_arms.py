"""Which conversations get a strategy: the same for all their turns, and the share that was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.router.dialects import DIALECTS, Endpoint
from entropy_rft.router.experiment import Experiment, beginning
from entropy_rft.router.policy import unchanged
from entropy_rft.router.settings import RouterSettings


def experiment(share: float, salt: str = "", mode: Any = "route", before: Experiment | None = None) -> Experiment:
    return Experiment(RouterSettings(rollout=share, rollout_salt=salt, mode=mode), before)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def places(share: float, salt: str, count: int = 4000) -> list[float]:
    bodies = [{"messages": [user(f"question {number}")]} for number in range(count)]
    one = experiment(share, salt)
    found = [one.place(body, DIALECTS["chat"]) for body in bodies]
    return [place for place in found if place is not None]


SYSTEM = {"role": "system", "content": "Be short."}
ANSWER = {"role": "assistant", "content": "4"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

# The first turn and a later one of the same conversation.
TURNS: list[tuple[Endpoint, dict[str, Any], dict[str, Any]]] = [
    ("chat", {"messages": [SYSTEM, user("2+2?")]}, {"messages": [SYSTEM, user("2+2?"), ANSWER, user("go on")]}),
    (
        "chat",
        {"messages": [user([{"type": "text", "text": "2+2?"}, IMAGE])], "temperature": 1},
        {"messages": [user([{"type": "text", "text": "2+2?"}, IMAGE]), ANSWER, user("go on")]},
    ),
    (
        "responses",
        {"instructions": "Be short.", "input": "2+2?"},
        {
            "instructions": "Be short.",
            "input": [{"type": "message", **user([{"type": "input_text", "text": "2+2?"}])}, ANSWER, user("go on")],
        },
    ),
    (  # the mark of the cache moves on, and a line of the client's differs in every request
        "messages",
        {
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: 1"},
                {"type": "text", "text": "Be short."},
            ],
            "messages": [user([{"type": "text", "text": "2+2?", "cache_control": {"type": "ephemeral"}}])],
        },
        {
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: 2"},
                {"type": "text", "text": "Be short."},
            ],
            "messages": [user("2+2?"), ANSWER, user([{"type": "text", "text": "go on", "cache_control": {}}])],
        },
    ),
]


@pytest.mark.parametrize(("endpoint", "first", "later"), TURNS)
def test_all_turns_of_a_conversation_have_one_place(
    endpoint: Endpoint, first: dict[str, Any], later: dict[str, Any]
) -> None:
    dialect = DIALECTS[endpoint]
    assert beginning(first, dialect) == beginning(later, dialect)
    place = experiment(0.5).place(first, dialect)
    assert place == experiment(0.5).place(later, dialect)
    assert place is not None
    assert 0 <= place < 1


@pytest.mark.parametrize("change", [[user("3+3?")], [{**SYSTEM, "content": "Be long."}, user("2+2?")]])
def test_another_beginning_is_another_conversation(change: list[dict[str, Any]]) -> None:
    chat = DIALECTS["chat"]
    assert experiment(0.5).place({"messages": [SYSTEM, user("2+2?")]}, chat) != experiment(0.5).place(
        {"messages": change}, chat
    )


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("completions", {"prompt": "2 + 2 ="}),
        ("completions", {"prompt": [1, 2, 3]}),
        ("chat", {"messages": [ANSWER]}),
        ("chat", {"messages": [{"role": "user"}]}),
        ("responses", {"input": [{"type": "function_call", "arguments": "{}"}, {"content": 3}]}),
    ],
)
def test_every_body_has_a_place(endpoint: Endpoint, body: dict[str, Any]) -> None:
    assert experiment(0.5).place(body, DIALECTS[endpoint]) is not None


def test_the_share_is_kept_and_a_larger_one_keeps_the_smaller_ones_conversations() -> None:
    found = places(0.1, "a")
    ours, larger = experiment(0.1), experiment(0.3)
    small = {number for number, place in enumerate(found) if ours.arm(place, False) == "treatment"}
    large = {number for number, place in enumerate(found) if larger.arm(place, False) == "treatment"}
    assert len(small) / len(found) == pytest.approx(0.1, abs=0.015)  # 3 standard errors
    assert small < large
    other = {number for number, place in enumerate(places(0.1, "b")) if place < 0.1}
    assert len(small & other) / len(found) == pytest.approx(0.01, abs=0.006)  # independent


@pytest.mark.parametrize(
    ("mode", "share", "place", "asked", "arm"),
    [
        ("route", 1.0, None, False, "treatment"),
        ("route", 0.0, None, False, "control"),
        ("route", 0.5, 0.4, False, "treatment"),
        ("route", 0.5, 0.5, False, "control"),
        ("route", 0.5, 0.9, True, "client"),
        ("route", 1.0, None, True, "client"),
        ("shadow", 1.0, None, False, "shadow"),
        ("shadow", 0.5, 0.9, False, "control"),
        ("shadow", 0.0, None, False, "control"),
        ("shadow", 0.5, 0.9, True, "shadow"),
    ],
)
def test_arms(mode: str, share: float, place: float | None, asked: bool, arm: str) -> None:
    assert experiment(share, mode=mode).arm(place, asked) == arm


def test_no_place_is_computed_where_it_does_not_matter() -> None:
    for share in (0.0, 1.0):
        assert experiment(share).place({"messages": [user("2+2?")]}, DIALECTS["chat"]) is None


def test_an_answer_that_is_continued_keeps_its_conversations_arm() -> None:
    dialect, one = DIALECTS["responses"], experiment(0.5)
    place = one.place({"input": "2+2?"}, dialect)
    one.remember("resp_1", place)
    assert one.place({"input": "go on", "previous_response_id": "resp_1"}, dialect) == place
    # An unknown one never gets a strategy, so that no conversation of the control arm gets one in the middle.
    unknown = {"input": "go on", "previous_response_id": "resp_2"}
    assert one.arm(one.place(unknown, dialect), False) == "control"
    later = experiment(0.7, before=one)
    assert later.place({"input": "go on", "previous_response_id": "resp_1"}, dialect) == place
    salted = experiment(0.7, "other", before=one)
    assert salted.place({"input": "go on", "previous_response_id": "resp_1"}, dialect) == 1.0


def test_an_unchanged_request_is_the_clients_own_bytes() -> None:
    raw, body = b'{"model": "m",  "x": 1.50}', {"model": "m", "x": 1.5}
    assert unchanged(raw, body) is raw
    assert unchanged(raw, body, "m") is raw
    assert unchanged(raw, body, "other") == b'{"model":"other","x":1.5}'
    assert unchanged(b"", {**body, "difficulty": "easy"}) == b'{"model":"m","x":1.5}'
