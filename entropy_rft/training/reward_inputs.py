"""The inputs of the rewards beside TRL's own columns, and what is done with rewards that are NaN or infinite."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from entropy_rft.rewards.parameters import ENTROPIES, THINKING_OPENED, parameters_of
from entropy_rft.rewards.values import checked
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.training.batch import phase_means


class RewardInputs:
    """The columns that the rewards ask for, and the text that they read.

    Args:
        rewards: of the trainer; a name in a signature asks for that column.
        marker: ends the thinking.

    Attributes:
        need_entropies: whether a reward asks for the entropies of the old policy.
    """

    def __init__(self, rewards: Sequence[Any], marker: ThinkEndMarker) -> None:
        wanted = {name for reward in rewards for name in _parameters(reward)}
        self.need_entropies = not wanted.isdisjoint(ENTROPIES)
        self._want_token_entropies = "token_entropies" in wanted
        self._want_openings = THINKING_OPENED in wanted
        self._marker = marker

    def texts(self, completions: Sequence[Any], ids: Sequence[list[int]]) -> list[Any]:
        """The completions as the rewards read them; `ids` are their tokens."""
        return [self._text(completion, own) for completion, own in zip(completions, ids, strict=True)]

    def _text(self, completion: Any, ids: list[int]) -> Any:
        """What the rewards read of a completion; TRL handles a conversation with tools."""
        if isinstance(completion, str):
            return self._marker.reward_text(completion, ids)
        if len(completion) != 1 or not isinstance(text := completion[0].get("content"), str):
            return completion
        read = self._marker.reward_text(text, ids)
        return completion if read == text else [completion[0] | {"content": read}]

    def columns(
        self,
        prompts: Sequence[list[int]],
        completions: Sequence[list[int]],
        entropy: Tensor | None,
        tool_mask: Sequence[list[int]] | None,
    ) -> dict[str, list]:
        """One list per column, with a value for each completion.

        Args:
            prompts: their tokens.
            completions: their tokens.
            entropy: of the old policy, ``(B, T)``, nats; ``None`` where nothing needs it.
            tool_mask: of each completion, 0 for a token that a tool wrote; ``None`` without tools.
        """
        columns: dict[str, list] = {}
        if self._want_openings:
            columns[THINKING_OPENED] = [self._marker.opened(ids) for ids in prompts]
        if entropy is not None:
            columns["phase_entropies"] = self._phase_entropies(completions, entropy, tool_mask)
            if self._want_token_entropies:
                on_cpu = entropy.cpu()
                columns["token_entropies"] = [
                    row[: len(ids)].clone() for row, ids in zip(on_cpu, completions, strict=True)
                ]
        return columns

    def _phase_entropies(
        self, completions: Sequence[list[int]], entropy: Tensor, tool_mask: Sequence[list[int]] | None
    ) -> list[tuple[float, float]]:
        ids = torch.zeros(entropy.shape, dtype=torch.long)
        mask = torch.zeros(entropy.shape, dtype=torch.bool)
        for row, completion in enumerate(completions):
            ids[row, : len(completion)] = torch.tensor(completion)
            own = True if tool_mask is None else torch.tensor(tool_mask[row]).bool()
            mask[row, : len(completion)] = own
        thinking, answer = self._marker.phases(ids.to(entropy.device), mask.to(entropy.device))
        return phase_means(entropy, thinking, answer)


def counted(rewards: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], dict[str, int]]:
    """The rewards with their values checked, and for each the count of its values that are NaN or infinite."""
    not_finite = dict.fromkeys(names, 0)

    def count(name: str, values: int) -> None:
        not_finite[name] += values

    return [
        checked(reward, name, functools.partial(count, name)) for reward, name in zip(rewards, names, strict=True)
    ], not_finite


def not_finite_metrics(
    counts: Mapping[str, int], device: torch.device, group: dist.ProcessGroup | None
) -> dict[str, float]:
    """``rewards/NAME/not_finite`` of each reward that had such values, over all processes; also warns of each."""
    total = torch.tensor(list(counts.values()), device=device)
    if group is not None:
        dist.all_reduce(total, group=group)
    found: dict[str, float] = {}
    for name, values in zip(counts, total.tolist(), strict=True):
        if values:
            found[f"rewards/{name}/not_finite"] = float(values)
            warnings.warn(
                f"rewards: {name} returned NaN or an infinity, which is treated as None (cannot be scored) and "
                f"counted in rewards/{name}/not_finite",
                stacklevel=2,
            )
    return found


def _parameters(reward: Any) -> set[str]:
    if isinstance(reward, torch.nn.Module):
        return set()
    return parameters_of(reward)
