"""The lens: which tokens the predicted entropy change of a batch comes from, and what a rule drops of it.

The tokens are divided in three ways (:data:`PARTITIONS`). Each way contains every token once, so the sums over its
buckets are those of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from entropy_rft.entropy.dynamics import SIGNS, predicted_entropy_change
from entropy_rft.entropy.phases import PHASES
from entropy_rft.entropy.rules.whole_batch import WholeBatch, total

OTHER = "other"
_PARTS = 10

PARTITIONS: dict[str, tuple[str, ...]] = {
    "advantage_phase": tuple(f"{sign}/{phase}" for sign in SIGNS for phase in (*PHASES, OTHER)),
    "probability": tuple(f"{i / _PARTS:.1f} to {(i + 1) / _PARTS:.1f}" for i in range(_PARTS)),
    "discriminant": tuple(str(i + 1) for i in range(_PARTS)),
}
"""The buckets of each partition. ``advantage_phase``: the sign of the advantage and the phase. ``probability``: of the
sampled token, a tenth each, without the lower edge. ``discriminant``: the deciles of ``S*`` in the batch, 1 the lowest.
"""

COLUMNS = ("tokens", "loss", "gain", "dropped", "dropped_loss", "dropped_gain")
"""The sums of a bucket. ``tokens``: how many. ``loss`` and ``gain``: of the negative and of the positive predicted
changes without the rule, nats for a unit logit step. ``dropped…``: the same of the tokens that the rule drops."""


@dataclass(frozen=True)
class LensBatch:
    """The predicted change of each token that this process holds, in a row of N, and its buckets.

    Attributes:
        change: ``-A (S* - E_{v~π}[S_v])`` without the rule, nats for a unit logit step (arXiv 2602.03392).
        index: row of the table of each token and partition; the rows are those of :data:`PARTITIONS` in order.
        edges: the nine inner edges of the deciles of ``S*``, of all processes, nats.
        sums: the columns of :data:`COLUMNS` of this process's tokens.
    """

    change: Float[Tensor, " tokens"]
    index: Int[Tensor, "partitions tokens"]
    edges: Float[Tensor, " edges"]
    sums: Float[Tensor, "tokens columns"]


@torch.no_grad()
def lens_batch(
    batch: WholeBatch,
    phases: Int[Tensor, " tokens"],
    dropped: Bool[Tensor, " tokens"],
) -> LensBatch:
    """Divide the tokens of a batch; every process of its group must call.

    Args:
        batch: of one optimisation step.
        phases: index of each token's phase, 2 for a token in none of :data:`~entropy_rft.entropy.phases.PHASES`.
        dropped: what the rule drops.
    """
    statistics, advantages = batch.statistics, batch.advantages.to(batch.statistics.entropy)
    row = statistics.map(lambda x: x.unsqueeze(0))
    change = predicted_entropy_change(row, advantages.unsqueeze(0), torch.ones_like(row.entropy))[0]
    sign = torch.where(advantages > 0, 0, torch.where(advantages < 0, 1, 2))  # the order of SIGNS
    inner = torch.arange(1, _PARTS, device=change.device, dtype=change.dtype) / _PARTS
    edges = batch.quantiles(statistics.discriminant, inner)
    parts = [
        sign * (len(PHASES) + 1) + phases,
        torch.bucketize(statistics.log_prob.exp(), inner),
        torch.bucketize(statistics.discriminant, edges),
    ]
    starts = [0]
    for buckets in PARTITIONS.values():
        starts.append(starts[-1] + len(buckets))
    index = torch.stack([part + start for part, start in zip(parts, starts, strict=False)])
    loss, gain = change.clamp(max=0), change.clamp(min=0)
    columns = [torch.ones_like(change), loss, gain]
    sums = torch.stack([*columns, *(column * dropped for column in columns)], dim=1)
    return LensBatch(change, index, edges, sums)


@torch.no_grad()
def bucket_sums(
    index: Shaped[Tensor, "partitions tokens"],
    values: Float[Tensor, "tokens columns"],
    group: dist.ProcessGroup | None,
) -> Float[Tensor, "buckets columns"]:
    """Sums of `values` by bucket over all processes of `group`; the rows are those of :data:`PARTITIONS` in order."""
    table = values.new_zeros(sum(map(len, PARTITIONS.values())), values.shape[1])
    for rows in index:
        table.index_add_(0, rows.long(), values)
    return total(table, group)


def by_partition(rows: list[list[float]]) -> dict[str, dict[str, list[float]]]:
    """The rows of a table by partition and bucket."""
    remaining = iter(rows)
    return {name: {bucket: next(remaining) for bucket in buckets} for name, buckets in PARTITIONS.items()}
