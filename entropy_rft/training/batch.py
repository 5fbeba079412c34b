"""The rules and the metrics over one whole optimisation batch: its micro-batches, and those of the other processes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from entropy_rft.entropy import Penalty, Rule, TokenStatistics, predicted_entropy_change
from entropy_rft.entropy.precision import wide
from entropy_rft.entropy.rules.whole_batch import per_token, total


@dataclass(frozen=True)
class MicroBatch:
    """What the rules need of one micro-batch; every tensor ``(B, T)`` but `advantages`, ``(B,)`` or ``(B, T)``."""

    statistics: TokenStatistics
    advantages: Tensor
    mask: Tensor

    @property
    def valid(self) -> Tensor:
        return self.mask != 0

    def valid_statistics(self) -> TokenStatistics:
        """The statistics of the valid tokens, ``(N,)``."""
        return self.statistics.map(lambda x: x[self.valid])


@dataclass(frozen=True)
class BatchDecision:
    """One keep mask ``(B, T)`` per micro-batch, the metrics of the whole batch, and one penalty per micro-batch.

    `penalty` is None for a rule that has none.
    """

    keep: list[Tensor]
    metrics: dict[str, float]
    penalty: list[Penalty] | None = None


def one_row(batches: Sequence[MicroBatch]) -> tuple[TokenStatistics, Tensor]:
    """The statistics and the advantages of all valid tokens, ``(1, N)``.

    The rules do not use which completion a token belongs to.
    """
    statistics = TokenStatistics.cat([b.valid_statistics() for b in batches]).map(lambda x: x.unsqueeze(0))
    return statistics, torch.cat([per_token(b.advantages, b.mask)[b.valid] for b in batches]).unsqueeze(0)


@torch.no_grad()
def decide(
    rule: Rule | None,
    batches: Sequence[MicroBatch],
    group: dist.ProcessGroup | None,
    apply: bool = True,
    updates: Sequence[int] | None = None,
) -> BatchDecision:
    """Apply `rule` to the valid tokens of all `batches` and of the other processes of `group` at once.

    Micro-batches may differ in length: only their valid tokens are joined. With ``apply=False`` (evaluation) the
    metrics say what the rule would drop, and ``entropy/predicted_change`` is that without the rule. `updates` says
    which update of its generation each micro-batch is prepared for, from 1: a penalty does not act in the first.
    """
    statistics, advantages = one_row(batches)
    ones = torch.ones_like(advantages)
    metrics: dict[str, float] = {}
    keep = torch.ones_like(advantages, dtype=torch.bool)
    penalty = None
    if rule is not None:
        if not apply:  # an evaluation must not change the state of a rule
            rule = copy.deepcopy(rule)
        decision = rule.decide(statistics, advantages, ones, group)
        keep, penalty = decision.keep, decision.penalty
        metrics |= {f"entropy_clip/{name}": value.item() for name, value in decision.metrics.items()}
    effective = torch.where(keep, advantages, 0.0) if apply else advantages
    change = predicted_entropy_change(statistics, effective, ones)
    dropped = ~keep
    penalised = torch.zeros_like(keep)
    if penalty is not None:
        late = [True] * len(batches) if updates is None else [update > 1 for update in updates]
        acts = torch.cat([b.mask.new_full((int(b.valid.sum()),), yes) for b, yes in zip(batches, late, strict=True)])
        penalised = (penalty.weight != 0) & (acts != 0)
    sums = torch.stack(
        [
            ones.to(wide(ones)).sum(),
            change.to(wide(ones)).sum(),
            dropped.sum().to(wide(ones)),
            (dropped & (advantages < 0)).sum().to(wide(ones)),
            (dropped & (advantages > 0)).sum().to(wide(ones)),
            penalised.sum().to(wide(ones)),
        ]
    )
    tokens, change_sum, *drops, penalties_sum = _total(sums, group)
    if tokens > 0:
        metrics["entropy/predicted_change"] = change_sum / tokens
        if rule is not None:
            names = ("dropped", "dropped_negative", "dropped_positive")
            metrics |= {f"entropy_clip/{name}": drop / tokens for name, drop in zip(names, drops, strict=True)}
        if penalty is not None:
            metrics["entropy_clip/penalised"] = penalties_sum / tokens
    penalties = None
    if penalty is not None:
        weights = _split_back(penalty.weight[0], batches, outside=0.0)
        penalties = [replace(penalty, weight=weight) for weight in weights]
    return BatchDecision(_split_back(keep[0], batches, outside=True), metrics, penalties)


@torch.no_grad()
def phase_metrics(
    entropy: Tensor | None, thinking: Tensor, answer: Tensor, group: dist.ProcessGroup | None
) -> dict[str, float]:
    """Mean lengths (tokens per completion) and, given the entropies, mean phase entropies (nats per token).

    A completion without a valid token (a truncated one that TRL masks) does not count. Processes exchange sums,
    not means, so that every token has the same weight.
    """
    counted = (thinking | answer).any(1)
    phases = (thinking, answer)
    sums = [counted.sum(), *(phase.sum() for phase in phases)]
    if entropy is not None:
        sums += [(entropy.to(wide(entropy)) * phase).sum() for phase in phases]
    completions, *rest = _total(torch.stack([value.to(wide(value)) for value in sums]), group)
    metrics: dict[str, float] = {}
    if completions > 0:
        metrics["completions/thinking_length"] = rest[0] / completions
        metrics["completions/answer_length"] = rest[1] / completions
    for name, tokens, nats in zip(("thinking", "answer"), rest[:2], rest[2:], strict=False):
        if tokens > 0:
            metrics[f"entropy/{name}"] = nats / tokens
    return metrics


def phase_means(entropy: Tensor, thinking: Tensor, answer: Tensor) -> list[tuple[float, float]]:
    """``(H_think, H_answer)`` of each completion, nats; 0 for an empty phase."""
    means = [
        (torch.where(phase, entropy, 0.0).sum(1) / phase.sum(1).clamp(min=1)).tolist() for phase in (thinking, answer)
    ]
    return list(zip(*means, strict=True))


def _total(sums: Tensor, group: dist.ProcessGroup | None) -> list[float]:
    return total(sums.to(wide(sums)), group).tolist()


def _split_back(values: Tensor, batches: Sequence[MicroBatch], outside: float) -> list[Tensor]:
    """`values` ``(N,)`` of the valid tokens as one ``(B, T)`` per micro-batch, with `outside` where none is valid."""
    placed: list[Tensor] = []
    start: Any = 0
    for batch in batches:
        valid = batch.valid
        end = start + int(valid.sum())
        part = torch.full(valid.shape, outside, dtype=values.dtype, device=values.device)
        part[valid] = values[start:end]
        placed.append(part)
        start = end
    return placed
