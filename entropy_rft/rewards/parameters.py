"""What a reward is given when it is called, and what it asks for by naming it in its signature."""

from __future__ import annotations

import inspect
from typing import Any

THINKING_OPENED = "thinking_opened"
"""The keyword that says, for each completion, whether its prompt ends with the tag that opens the thinking."""

ENTROPIES = frozenset({"phase_entropies", "token_entropies"})
"""The keywords that the trainer computes from the old policy's token entropies."""

CALLED_WITH = frozenset({"prompts", "completions", "completion_ids"})
"""The keywords that TRL calls every reward function with."""

FROM_THE_TRAINER = (
    CALLED_WITH | ENTROPIES | {THINKING_OPENED, "trainer_state", "log_extra", "log_metric", "environments"}
)
"""All keywords that are not columns of the data set. Those columns are the others."""


def parameters_of(reward: Any) -> set[str]:
    """The keywords that a reward names in its signature; of PEAR also those of the reward it wraps, which gets them."""
    try:
        own = set(inspect.signature(reward).parameters)
    except ValueError:  # a callable written in C names no parameters
        return set()
    inner = getattr(reward, "correctness", None)
    return own if not callable(inner) else own | parameters_of(inner)


def is_async(reward: Any) -> bool:
    """Whether calling `reward` gives a coroutine."""
    own_call = getattr(reward, "__call__", None)  # noqa: B004 - the bound method is what is inspected
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(own_call)
