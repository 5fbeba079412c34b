"""TRL's accuracy rewards, with a time limit on each check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.errors import UserTypeError
from entropy_rft.rewards.checking import CHECKER
from entropy_rft.rewards.text import content_of


class Accuracy:
    """TRL's `accuracy_reward`, or `reasoning_accuracy_reward`, one completion at a time, each limited to some seconds.

    math-verify alone has no limit that holds in C code or outside the main thread; see
    :mod:`entropy_rft.rewards.checking`. A reward of the user's own that checks answers can call this one
    instead of math-verify, and then has that limit too.

    Args:
        function: the name of TRL's function.
        reasoning_delimiters: the texts that end the thinking, for `reasoning_accuracy_reward`.

    Example:

    ```python
    >>> Accuracy()(completions=[r"\\boxed{\\frac{14}{2}}"], solution=["7"])
    [1.0]
    ```
    """

    def __init__(self, function: str = "accuracy_reward", reasoning_delimiters: list[str] | None = None) -> None:
        self.__name__ = function
        self.function = function
        self.reasoning_delimiters = reasoning_delimiters

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[str | None],
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward a completion: 1 for a right answer, 0 for a wrong one, ``None`` if the gold cannot be parsed.

        Raises:
            TypeError: a gold answer is neither text nor None.
        """
        other = next((gold for gold in solution if not isinstance(gold, str | None)), None)
        if other is not None:
            raise UserTypeError(f"solution must be text, got {other!r}: convert the column of the data set to text")
        budget = CHECKER.start_batch()
        checked = [
            CHECKER.check(self.function, content_of(completion), gold, self.reasoning_delimiters, budget)
            for completion, gold in zip(completions, solution, strict=True)
        ]
        if log_extra is not None and checked:
            for name in checked[0][1]:
                log_extra(name, [columns[name] for _, columns in checked])
        return [value for value, _ in checked]
