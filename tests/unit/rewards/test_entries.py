"""What a recipe's `rewards` may hold, and what two recipes are compared by."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.rewards.entries import RewardEntry, compared, entries


@pytest.mark.parametrize(
    ("value", "target", "arguments"),
    [
        ("pear", "pear", {}),
        ("mine:reward", "mine:reward", {}),
        ({"name": "pear"}, "pear", {}),
        ({"path": "mine:reward"}, "mine:reward", {}),
        ({"name": "cosine_scaled", "max_len": 100}, "cosine_scaled", {"max_len": 100}),
        ({"path": "mine:reward", "weights": [1, 2]}, "mine:reward", {"weights": [1, 2]}),
        ("{name: cosine_scaled, max_len: 100}", "cosine_scaled", {"max_len": 100}),
        ('{"path": "mine:reward", "max_len": 100}', "mine:reward", {"max_len": 100}),
    ],
)
def test_every_form(value: Any, target: str, arguments: dict[str, Any]) -> None:
    entry = RewardEntry.of(value)
    assert (entry.target, entry.arguments) == (target, arguments)
    assert RewardEntry.of(entry.plain()) == entry
    assert (entry.plain() == target) == (not arguments)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "rewards: 5 is no reward: give a name, module:function, or a mapping {name: ..., its arguments}"),
        ("", "rewards: '' is no reward"),
        ([], r"rewards: \[\] is no reward"),
        ({"nmae": "pear"}, "has neither name nor path; did you mean name?"),
        ({"name": "pear", "path": "mine:reward"}, "has both name and path"),
        ({"name": "mine:reward"}, r"name must be a name \(your own is path: module:function\), got 'mine:reward'"),
        ({"path": "pear"}, r"path must be module:function \(a name is name: ...\), got 'pear'"),
        ({"name": None}, "name must be a name .* got None"),
        ({"name": "pear", 3: 4}, "pear cannot have an argument called 3"),
        ({"name": "pear", "a b": 4}, "pear cannot have an argument called 'a b'"),
        ("{name: pear", "rewards: '{name: pear' is no mapping: while parsing a flow mapping"),
        ("{name: pear, alpha: 1, alpha: 2}", "the key 'alpha' occurs twice"),
    ],
)
def test_mistakes_are_one_line(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RewardEntry.of(value)
    assert "\n" not in str(error.value)


def test_one_entry_is_a_list_of_one() -> None:
    assert entries("pear") == entries({"name": "pear"}) == entries(["pear"])


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("task", ["task"], True),
        (["pear"], [{"name": "pear"}], True),
        ([{"name": "cosine_scaled", "max_len": 100}], ["{max_len: 100, name: cosine_scaled}"], True),
        ([{"name": "cosine_scaled", "max_len": 100}], [{"name": "cosine_scaled", "max_len": 200}], False),
        ([{"name": "pear", "alpha": "1e-1"}], [{"name": "pear", "alpha": 0.1}], True),
        ([{"name": "pear", "correctness": {"name": "accuracy"}}], [{"name": "pear", "correctness": "accuracy"}], True),
        ([{"path": "m:f", "correctness": {"name": "accuracy"}}], [{"path": "m:f", "correctness": "accuracy"}], False),
        (["task", "pear"], ["pear", "task"], False),
        ({"unreadable": 1}, {"unreadable": 1}, True),
        (None, ["task"], False),
    ],
)
def test_what_is_the_same_reward(before: Any, now: Any, same: bool) -> None:
    assert (compared(before) == compared(now)) is same
