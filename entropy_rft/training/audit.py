"""The real entropy change of an optimisation step beside the predicted one, on the tokens of its own batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.entropy import change_sums, fit_changes


@dataclass(frozen=True)
class AuditedBatch:
    """One micro-batch of the step: what was predicted, and what is needed to look at it again.

    Attributes:
        predicted: ``(B, T)``, nats for a unit logit step.
        before: ``(B, T)``, nats: the entropies in the loss itself, that is of the policy that the step starts from.
        mask: ``(B, T)``, nonzero = valid.
        forward: gives the entropies ``(B, T)`` of the policy as it then is, without a gradient.
    """

    predicted: Tensor
    before: Tensor
    mask: Tensor
    forward: Callable[[], Tensor]


class EntropyAudit(TrainerCallback):
    """Every `steps` optimisation steps, looks at the step's batch once more after the weights have moved.

    Args:
        steps: at least 1.
        log: is given the metrics, in time for the step's own log.
        group: of the processes that hold the other parts of the batch, asked for when it is needed.
    """

    def __init__(
        self,
        steps: int,
        log: Callable[[dict[str, float]], None],
        group: Callable[[], dist.ProcessGroup | None],
    ) -> None:
        self.steps = steps
        self._log = log
        self._group = group
        self._batches: list[AuditedBatch] = []

    def due(self, finished_steps: int) -> bool:
        """Whether the step after `finished_steps` is looked at."""
        return (finished_steps + 1) % self.steps == 0

    def add(self, batch: AuditedBatch) -> None:
        """One more micro-batch of the step under way."""
        self._batches.append(batch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batches.clear()  # what an interrupted step left

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._batches:
            return
        batches, self._batches = self._batches, []
        self._log(audit_metrics(batches, self._group()))


@torch.no_grad()
def audit_metrics(batches: Sequence[AuditedBatch], group: dist.ProcessGroup | None) -> dict[str, float]:
    """Mean measured change (nats per token), and how it follows the prediction over tokens.

    Slope and correlation are left out where there is none: nothing predicted, or nothing moved.
    """
    sums = torch.stack([change_sums(b.predicted, b.forward() - b.before, b.mask) for b in batches]).sum(0)
    if group is not None:
        dist.all_reduce(sums, group=group)
    fit = fit_changes(sums)
    found = {
        "entropy/measured_change": fit.measured,
        "entropy/audit_slope": fit.slope,
        "entropy/audit_correlation": fit.correlation,
    }
    return {name: value for name, value in found.items() if value == value}
