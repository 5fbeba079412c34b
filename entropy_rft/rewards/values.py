"""What a reward function may return, checked when it returns, so that an error names the reward.

The same rule applies in training, in PEAR and in counting correct answers: one value a completion, a finite float or
None, "cannot be scored". NaN and the infinities are no rewards and count as None: an infinite one would make every
advantage of its group NaN or 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.parameters import is_async


class WrongReward(UserValueError):
    """A reward function returned something other than one number or None for each completion; one line."""


def reward_name(reward: Any) -> str:
    """What messages and logs call a reward: the name that TRL gives it."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def scored(returned: Any, name: str, completions: int) -> list[float | None]:
    """What the reward called `name` returned for that many completions: a finite float or None for each.

    Raises:
        WrongReward: it is not a list of that many numbers or None.
    """
    return _finite(_values(returned, name, completions))


def checked(reward: Any, name: str, report: Callable[[int], None]) -> Any:
    """`reward`, returning what :func:`scored` makes of its values. A model, which TRL runs itself, is unchanged.

    Args:
        reward: a TRL reward function, plain or ``async``.
        name: what the messages call it.
        report: is called with the number of values that were NaN or infinite, at each call.
    """
    import torch  # not at the top: the process that checks answers must not import it

    if isinstance(reward, torch.nn.Module):
        return reward

    def check(returned: Any, completions: list) -> list[float | None]:
        values = _values(returned, name, len(completions))
        finite = _finite(values)
        report(sum(value is not None and kept is None for value, kept in zip(values, finite, strict=True)))
        return finite

    if is_async(reward):

        @functools.wraps(reward)
        async def asynchronous(*args: Any, **kwargs: Any) -> list[float | None]:
            return check(await reward(*args, **kwargs), kwargs["completions"])

        return asynchronous

    @functools.wraps(reward)
    def synchronous(*args: Any, **kwargs: Any) -> list[float | None]:
        return check(reward(*args, **kwargs), kwargs["completions"])

    return synchronous


def _finite(values: list[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else value for value in values]


def _values(returned: Any, name: str, expected: int) -> list[float | None]:
    wanted = f"a list of {expected} numbers or None, one for each completion"
    if isinstance(returned, str | bytes | dict | set) or not isinstance(returned, Iterable):
        raise WrongReward(f"rewards: {name} must return {wanted}, got {_shown(returned)}")
    try:
        # Converts the elements of an array or a tensor at once, not one by one.
        values = list(returned.tolist() if hasattr(returned, "tolist") else returned)
    except TypeError:  # an array without a dimension
        raise WrongReward(f"rewards: {name} must return {wanted}, got {_shown(returned)}") from None
    if len(values) != expected:
        raise WrongReward(f"rewards: {name} must return {wanted}, got {len(values)}: {_shown(values)}")
    numbers: list[float | None] = []
    for index, value in enumerate(values):
        try:
            numbers.append(None if value is None else _number(value))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise WrongReward(
                f"rewards: {name} must return {wanted}, got {_shown(value)} for completion {index}"
            ) from None
    return numbers


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):  # which float() would parse
        raise TypeError
    return float(value)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
