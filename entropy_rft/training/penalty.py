"""A rule's penalty in the loss of one optimisation step's micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from trl import GRPOConfig

from entropy_rft.entropy import Penalty, Rule
from entropy_rft.entropy.rules.whole_batch import total
from entropy_rft.training.micro_batch import PENALTY


def with_penalties(
    prepared: Sequence[dict[str, Any]], penalties: Sequence[Penalty] | None, updates: Sequence[int]
) -> list[dict[str, Any]]:
    """The micro-batches of a step with their penalties in them; without any where the step has none.

    In the first update of a generation the policy is the one that sampled. A penalty and its gradient are 0 there, but
    not those of rounding: ``|log π - log π_old|`` has a gradient of full size at 1e-7. Such a micro-batch gets weights
    of 0, so that all micro-batches and processes of a step take the same path.

    Args:
        prepared: the micro-batches.
        penalties: of each; None for a rule that has none.
        updates: which update of its generation each is prepared for, from 1.
    """
    if penalties is None or max(updates, default=1) == 1:
        return list(prepared)
    return [
        inputs | {PENALTY: penalty if update > 1 else replace(penalty, weight=torch.zeros_like(penalty.weight))}
        for inputs, penalty, update in zip(prepared, penalties, updates, strict=True)
    ]


def does_nothing(rule: Rule, args: GRPOConfig) -> str:
    """One line for a rule that acts in later updates of a generation only, where there are none."""
    return (
        f"{rule.name} does nothing in this run: each generation serves a single update, in which the policy is the one "
        f"that sampled; set num_iterations to 2 or more (it is {args.num_iterations}), or steps_per_generation above "
        f"gradient_accumulation_steps (they are {args.steps_per_generation} and {args.gradient_accumulation_steps})"
    )


class PenaltyTerms:
    """The penalties that one optimisation step adds to its loss, and their mean."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, inputs: Mapping[str, Any], log_prob: Tensor, loss_weights: Tensor) -> Tensor:
        """What is added to the loss of a micro-batch, 0-dim, with its gradient.

        Args:
            inputs: the micro-batch, with a penalty.
            log_prob: ``(B, T)``, of the policy that is trained, with its gradient.
            loss_weights: ``(B, T)``, how much the loss changes with the loss of one token.
        """
        penalty = inputs[PENALTY]
        chosen = penalty.weight != 0
        term = penalty.term(log_prob[chosen], inputs["old_per_token_logps"][chosen])
        self._sums.append(torch.stack([term.detach().sum().float(), chosen.sum().float()]))
        return (loss_weights[chosen] * penalty.weight[chosen] * term).sum()

    def mean(self, group: dist.ProcessGroup | None) -> float:
        """The mean term of the step's penalised tokens on all processes, without its weight; a new step begins."""
        term, tokens = total(torch.stack(self._sums).sum(0), group)
        self._sums.clear()
        return (term / tokens.clamp(min=1)).item()
