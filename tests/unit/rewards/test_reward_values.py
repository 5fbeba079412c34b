from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from entropy_rft.rewards.values import WrongReward, checked

COMPLETIONS = ["a", "b"]


def returning(value: Any):
    def some_reward(completions: list, **kwargs: Any) -> Any:
        return value

    return some_reward


def called(value: Any, counts: list | None = None) -> list:
    return checked(returning(value), "some_reward", (counts if counts is not None else []).append)(
        completions=COMPLETIONS
    )


@pytest.mark.parametrize("value", [[1.0, None], (0, True), [np.float32(1.5), torch.tensor(2.0)]])
def test_a_right_return_is_floats_and_none(value: Any) -> None:
    counts: list[int] = []
    found = called(value, counts)
    assert found == list(value)
    assert {type(one) for one in found} <= {float, type(None)}
    assert counts == [0]


@pytest.mark.parametrize("value", [np.array([1.0, 0.5]), torch.tensor([1.0, 0.5])])
def test_arrays_and_tensors_are_lists(value: Any) -> None:
    assert called(value) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([1.0], r"got 1: list \[1\.0\]"),
        ([], r"got 0: list \[\]"),
        (None, "got NoneType None"),
        (1.0, r"got float 1\.0"),
        ("ab", "got str 'ab'"),
        ({"a": 1, "b": 2}, "got dict"),
        (np.array(1.0), "got ndarray"),
        (["1.0", 0.0], "got str '1.0' for completion 0"),
        ([1.0, [2.0]], r"got list \[2\.0\] for completion 1"),
        ([1.0, 1j], "got complex 1j for completion 1"),
        ([1.0, 10**400], "for completion 1"),
    ],
)
def test_a_wrong_return_is_one_line(value: Any, got: str) -> None:
    with pytest.raises(WrongReward, match=f"rewards: some_reward must return a list of 2 numbers or None.*{got}") as e:
        called(value)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), np.float64("inf"), torch.tensor(torch.inf)])
def test_what_is_not_finite_is_none_and_counted(odd: Any) -> None:
    counts: list[int] = []
    assert called([odd, None], counts) == [None, None]
    assert counts == [1]


def test_async_functions_and_callable_objects_keep_their_kind() -> None:
    class Reward:
        async def __call__(self, completions: list, **kwargs: Any) -> list[float]:
            return [1.0]

    async def some_reward(completions: list, **kwargs: Any) -> list[float]:
        return [float("inf"), 1.0]

    counts: list[int] = []
    assert asyncio.run(checked(some_reward, "some_reward", counts.append)(completions=COMPLETIONS)) == [None, 1.0]
    assert counts == [1]
    with pytest.raises(WrongReward, match="Reward must return"):
        asyncio.run(checked(Reward(), "Reward", counts.append)(completions=COMPLETIONS))
    model = torch.nn.Linear(1, 1)
    assert checked(model, "model", counts.append) is model
