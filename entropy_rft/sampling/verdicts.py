"""Which completions are right, by a reward that is called as TRL calls it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from entropy_rft.rewards.fitting import fitted
from entropy_rft.rewards.parameters import THINKING_OPENED, parameters_of
from entropy_rft.rewards.values import reward_name, scored
from entropy_rft.sampling.completion import Completion
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.tags import THINK_END


def verdicts(
    reward: Any,
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Completion]],
    marker: ThinkEndMarker | None = None,
) -> list[list[Any]]:
    """Whether each completion is right: one list per question; ``None`` where the reward gives no verdict.

    The same rule holds for a ``None`` everywhere (`evaluate`, probes, strategies, studies). The answer is left out of
    every count of right answers. A question whose answers all have no verdict is left out too. The answer's length and
    entropy still count. `right_and_scored` is that rule.

    Right is a reward above 0. A reward of None, NaN or infinity gives no verdict, as in training
    (:mod:`entropy_rft.rewards.values`). The reward is called once, as TRL calls it, with ``prompts``, ``completions``,
    ``completion_ids`` and the row's other columns repeated per completion. With `marker` it reads what
    :meth:`ThinkEndMarker.reward_text` gives, and TRL's own rewards search for that marker. Without `marker` they
    search for ``</think>`` in the unchanged text.

    Raises:
        ValueError: the reward returned something other than one number or None for each completion.
    """
    pairs = [(row, completion) for row, group in zip(rows, groups, strict=True) for completion in group]
    if not pairs:
        return [[] for _ in groups]
    own = ("prompt", "completion", "completion_ids")
    texts = [completion.text for _, completion in pairs]
    extra: dict[str, list[Any]] = {}
    if marker is not None:
        texts = [marker.reward_text(completion.text, completion.token_ids) for _, completion in pairs]
    reward = fitted(reward, THINK_END if marker is None else marker.text)
    if marker is not None and THINKING_OPENED in parameters_of(reward):
        extra = {THINKING_OPENED: [marker.opened(completion.prompt_ids) for _, completion in pairs]}
    returned = reward(
        prompts=[row["prompt"] for row, _ in pairs],
        # As in TRL: a conversation is answered by a conversation, plain text by plain text.
        completions=[
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for text, (row, _) in zip(texts, pairs, strict=True)
        ],
        completion_ids=[completion.token_ids for _, completion in pairs],
        **{key: [row[key] for row, _ in pairs] for key in rows[0] if key not in own},
        **extra,
    )
    values = scored(returned, reward_name(reward), len(pairs))
    flat = iter([None if value is None else value > 0 for value in values])
    return [[next(flat) for _ in group] for group in groups]


def right_and_scored(group: Iterable[bool | None]) -> tuple[int, int]:
    """Number of right answers of a question, and number of its answers with a verdict; see `verdicts`."""
    known = [verdict for verdict in group if verdict is not None]
    return sum(known), len(known)
