"""Measures the entropy change of an optimisation step on its own batch, to compare it with the predicted one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.entropy import change_sums, fit_changes, split_entropy_change
from entropy_rft.entropy.dynamics import SIGNS
from entropy_rft.entropy.phases import PHASES
from entropy_rft.entropy.rules.whole_batch import total


@dataclass(frozen=True)
class AuditedBatch:
    """One micro-batch of the step: the prediction, and what is needed to measure its entropies again.

    Attributes:
        predicted: ``(B, T)``, nats for a unit logit step.
        before: ``(B, T)``, nats: the entropies in the loss itself, that is of the policy that the step starts from.
        advantages: ``(B,)`` or ``(B, T)``.
        mask: ``(B, T)``, nonzero = valid.
        phases: of `PHASES`, ``(B, T)`` each.
        forward: computes the entropies ``(B, T)`` of the policy at the time of the call, without a gradient and with
            the dropout masks of `before`, so that both can be compared.
        update: which update of its generation the step is, from 1; None where each generation has one only.
    """

    predicted: Tensor
    before: Tensor
    advantages: Tensor
    mask: Tensor
    phases: Mapping[str, Tensor]
    forward: Callable[[], Tensor]
    update: int | None = None


class RandomState:
    """The state of the random number generators on the CPU and on the devices of a model.

    Args:
        devices: every device of the model.
    """

    @classmethod
    def of(cls, model: torch.nn.Module) -> RandomState:
        """The state as it is now, of the CPU and of the devices that hold `model`."""
        return cls({parameter.device for parameter in model.parameters()})

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = sorted({device for device in devices if device.type not in ("cpu", "meta")}, key=str)
        self._states = self._read()

    @contextmanager
    def again(self) -> Iterator[None]:
        """In the block the numbers that followed this state are drawn again; then the earlier state is restored."""
        earlier = self._read()
        self._write(self._states)
        try:
            yield
        finally:
            self._write(earlier)

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(_of(d).get_rng_state(*_index(d)) for d in self._devices)]

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            _of(device).set_rng_state(state, *_index(device))


def _of(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one MPS device, and its functions take no device


class EntropyAudit(TrainerCallback):
    """Every `steps` optimisation steps, measures the entropies of the step's batch again after the update.

    Args:
        steps: at least 1.
        log: is called with the metrics, before the step's own log.
        group: returns the group of the processes that hold the other parts of the batch; called when it is needed.
        observer: is called with the measured changes of the valid tokens that this process holds, ``(N,)``, nats.
    """

    def __init__(
        self,
        steps: int,
        log: Callable[[dict[str, float]], None],
        group: Callable[[], dist.ProcessGroup | None],
        observer: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.steps = steps
        self._log = log
        self._group = group
        self._observer = observer
        self._batches: list[AuditedBatch] = []

    def due(self, finished_steps: int) -> bool:
        """Whether the step after `finished_steps` is audited."""
        return (finished_steps + 1) % self.steps == 0

    def add(self, batch: AuditedBatch) -> None:
        """Add a micro-batch of the current step."""
        self._batches.append(batch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batches.clear()  # left by an interrupted step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._batches:
            return
        batches, self._batches = self._batches, []
        measured = [batch.forward() - batch.before for batch in batches]
        if self._observer is not None:
            self._observer(torch.cat([m[b.mask != 0] for b, m in zip(batches, measured, strict=True)]))
        found = audit_metrics(batches, measured, self._group())
        if batches[0].update is not None:
            names = ("entropy/measured_change", "entropy/audit_slope", "entropy/audit_correlation")
            found |= {f"{name}_update_{batches[0].update}": found[name] for name in names if name in found}
        self._log(found)


@torch.no_grad()
def audit_metrics(
    batches: Sequence[AuditedBatch], measured: Sequence[Tensor], group: dist.ProcessGroup | None
) -> dict[str, float]:
    """Mean measured change (nats per token), its slope and correlation with the prediction, and its parts.

    The parts by the sign of the advantage add up to the whole, for the predicted and for the measured change; so do
    those by phase. Slope and correlation are left out where they are not defined: no predicted or no measured change.
    """
    sums = torch.stack([change_sums(b.predicted, m, b.mask) for b, m in zip(batches, measured, strict=True)]).sum(0)
    split = torch.stack([_split(b, m) for b, m in zip(batches, measured, strict=True)]).sum(0).to(sums)
    sums, split = total(sums, group), total(split, group)
    fit = fit_changes(sums)
    found = {
        "entropy/measured_change": fit.measured,
        "entropy/audit_slope": fit.slope,
        "entropy/audit_correlation": fit.correlation,
    }
    if fit.tokens:
        for kind, table in zip(("predicted", "measured"), split / fit.tokens, strict=True):
            parts = [*zip(SIGNS, table.sum(1).tolist(), strict=True)]
            parts += zip((*PHASES, "other"), table.sum(0).tolist(), strict=True)
            found |= {f"entropy/{kind}_change/{part}": value for part, value in parts}
    return {name: value for name, value in found.items() if value == value}


def _split(batch: AuditedBatch, measured: Tensor) -> Tensor:
    """Sums of the predicted and of the measured change, ``(2, signs, phases and other)``, nats; on the CPU."""
    tables = [split_entropy_change(c, batch.advantages, batch.mask, batch.phases) for c in (batch.predicted, measured)]
    return torch.tensor([[[*table[sign].values()] for sign in SIGNS] for table in tables])
