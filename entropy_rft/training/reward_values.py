"""What a reward function may return, checked where it returns it, so that a mistake there has the reward's name."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from entropy_rft.errors import UserValueError


class WrongReward(UserValueError):
    """A reward function returned something other than one number or None for each completion; one line."""


def checked(reward: Any, name: str, report: Callable[[int], None]) -> Any:
    """`reward`, raising :class:`WrongReward` for a wrong return, and with None for what is not finite.

    NaN and the infinities are no rewards: an infinite one would make every advantage of its group NaN or 0. They are
    treated as None, "cannot be scored", and counted. Every other value passes through as it is. A model, which TRL
    runs itself, stays what it is.

    Args:
        reward: a TRL reward function, plain or ``async``.
        name: what the messages call it.
        report: is given the number of values that were not finite, at each call.
    """
    if isinstance(reward, torch.nn.Module):
        return reward

    def check(returned: Any, completions: list) -> list:
        values = _values(returned, name, len(completions))
        finite = [None if value is None or not math.isfinite(value) else value for value in values]
        report(sum(value is not None and kept is None for value, kept in zip(values, finite, strict=True)))
        return finite

    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004

        @functools.wraps(reward)
        async def asynchronous(*args: Any, **kwargs: Any) -> list:
            return check(await reward(*args, **kwargs), kwargs["completions"])

        return asynchronous

    @functools.wraps(reward)
    def synchronous(*args: Any, **kwargs: Any) -> list:
        return check(reward(*args, **kwargs), kwargs["completions"])

    return synchronous


def _values(returned: Any, name: str, expected: int) -> list:
    wanted = f"a list of {expected} numbers or None, one for each completion"
    if isinstance(returned, str | bytes | dict | set) or not isinstance(returned, Iterable):
        raise WrongReward(f"rewards: {name} must return {wanted}, got {_shown(returned)}")
    if isinstance(returned, torch.Tensor):
        returned = returned.tolist()
    try:
        values = list(returned)
    except TypeError:  # an array without a dimension
        raise WrongReward(f"rewards: {name} must return {wanted}, got {_shown(returned)}") from None
    if len(values) != expected:
        raise WrongReward(f"rewards: {name} must return {wanted}, got {len(values)}: {_shown(values)}")
    for index, value in enumerate(values):
        if value is not None and not _is_number(value):
            raise WrongReward(f"rewards: {name} must return {wanted}, got {_shown(value)} for completion {index}")
    return values


def _is_number(value: Any) -> bool:
    if isinstance(value, str | bytes):  # which float() would read
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False
    return True


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
