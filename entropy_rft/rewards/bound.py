"""A reward function together with arguments that a recipe gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from entropy_rft.rewards.parameters import is_async
from entropy_rft.rewards.values import reward_name


class Bound:
    """`function` with `arguments` at each call, besides what the trainer gives it; picklable if both are.

    `functools.partial` would let a column of the data set replace an argument of that name; here the recipe's is used.
    `inspect` finds the signature by ``__wrapped__``; the trainer reads in it what to compute for a reward.
    """

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self.__name__ = reward_name(function)
        self.__wrapped__ = function
        self.arguments = dict(arguments)

    def __call__(self, **kwargs: Any) -> Any:
        return self.__wrapped__(**{**kwargs, **self.arguments})


class AsyncBound(Bound):
    """The same for a coroutine function, which TRL recognises by its ``__call__``."""

    async def __call__(self, **kwargs: Any) -> Any:
        return await super().__call__(**kwargs)


def bound(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Bound:
    """`function` with `arguments`, plain or ``async`` as it is."""
    return (AsyncBound if is_async(function) else Bound)(function, arguments)
