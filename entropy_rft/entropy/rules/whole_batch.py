"""The valid tokens of an optimisation batch, and statistics for the rules over those of all processes.

A statistic of the part that one process or one micro-batch holds would make a rule depend on how a batch is split.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_rft.entropy.precision import wide
from entropy_rft.entropy.statistics import TokenStatistics

Advantages = Float[Tensor, " batch"] | Float[Tensor, "batch time"]
"""One per completion, or one per token."""


class WholeBatch:
    """The valid tokens that this process holds, in one row of N, and statistics over those of all processes.

    Args:
        statistics: ``(B, T)``.
        advantages: ``(B,)`` or ``(B, T)``.
        mask: ``(B, T)``, nonzero = valid.
        group: the processes that hold the other parts; ``None`` when this one holds everything. Each must call the
            same methods in the same order, even one without a valid token.

    Attributes:
        statistics: of the valid tokens, ``(N,)``, float64 (float32 on MPS, which has no float64).
        advantages: of the valid tokens, ``(N,)``.
        count: 0-dim, the valid tokens of all processes.

    Raises:
        ValueError: for tensors whose shapes do not fit.
    """

    def __init__(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None,
    ) -> None:
        if statistics.entropy.shape != mask.shape:
            shape = tuple(statistics.entropy.shape)
            raise ValueError(f"statistics of shape {shape} need a mask of that shape, got {tuple(mask.shape)}")
        self._valid = mask != 0
        self._group = group
        self.statistics = statistics.map(lambda x: x[self._valid].to(wide(x)))
        self.advantages = per_token(advantages, mask)[self._valid]
        self.count = self._total(self.statistics.entropy.new_tensor(float(self.statistics.entropy.numel())))

    def mean(self, values: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
        """Mean over the batch of a value of each token ``(N,)``; 0 for an empty batch."""
        return self._total(values.sum()) / self.count.clamp(min=1)

    def moments(self, values: Float[Tensor, " tokens"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean and population standard deviation over the batch; in two passes, to avoid cancellation."""
        mean = self.mean(values)
        return mean, self.mean((values - mean).square()).sqrt()

    def quantiles(self, values: Float[Tensor, " tokens"], shares: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Exact quantiles of a value of each token: for each share the smallest value with that share at or below it.

        The search halves the interval of all floating-point numbers until one is left, so the processes exchange only
        counts. 0 for an empty batch.

        Args:
            values: ``(N,)``; of the same type on all processes.
            shares: ``(n,)``, each above 0 and at most 1.
        """
        if int(self.count) == 0:
            return values.new_zeros(shares.shape)
        wanted = (shares.to(self.count) * self.count - 1e-6).ceil().clamp(min=1).to(torch.long)
        keys = _ordered(values).sort().values
        bounds = torch.iinfo(keys.dtype)
        low, high = (torch.full_like(wanted, bound, dtype=keys.dtype) for bound in (bounds.min, bounds.max))
        for _ in range(bounds.bits):
            middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
            reached = self._total(torch.searchsorted(keys, middle, right=True)) >= wanted
            low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
        return _unordered(high, values.dtype)

    def allowed(self, share: float) -> int:
        """How many tokens a share of the batch is; at least one."""
        return max(1, int(share * int(self.count) + 1e-9))

    def most_extreme(
        self, size: Float[Tensor, " tokens"], candidates: Bool[Tensor, " tokens"], limit: int
    ) -> Bool[Tensor, " tokens"]:
        """Of the candidates of all processes exactly the `limit` with the largest `size`; ties go to the earlier one.

        Each process sends only its own largest `limit`.

        Args:
            size: ``(N,)``.
            candidates: bool ``(N,)``.
            limit: at least 1.

        Returns:
            bool ``(N,)``, those that this process holds.
        """
        indices = candidates.nonzero().squeeze(1)
        indices = indices[size[indices].argsort(descending=True, stable=True)][:limit]
        offered, start = self._gathered(size[indices])
        return self._those(candidates, indices, offered.argsort(descending=True, stable=True)[:limit] - start)

    def at_random(
        self, order: Float[Tensor, " tokens"], candidates: Bool[Tensor, " tokens"], limit: int
    ) -> Bool[Tensor, " tokens"]:
        """`limit` of the candidates of all processes, drawn at random; all of them where there are no more.

        The draw is over the candidates sorted by `order`. Its random numbers depend only on the numbers of tokens and
        candidates in the whole batch. It is therefore the same for every split of the batch over processes and
        micro-batches, and after a resume, without a state.

        Args:
            order: ``(N,)``, a value of each token that distinguishes the candidates.
            candidates: bool ``(N,)``.
            limit: at least 1.

        Returns:
            bool ``(N,)``, those that this process holds.
        """
        indices = candidates.nonzero().squeeze(1)
        offered, start = self._gathered(order[indices])
        total = offered.numel()
        numbers = blake2b(f"{int(self.count)}/{total}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(numbers, "big") >> 1)
        drawn = torch.randperm(total, generator=generator)[:limit].to(offered.device)
        return self._those(candidates, indices, offered.argsort(stable=True)[drawn] - start)

    def kept(self, dropped: Bool[Tensor, " tokens"]) -> Bool[Tensor, "batch time"]:
        """bool ``(N,)`` of the dropped tokens as the mask of kept ones, ``(B, T)``."""
        keep = torch.ones_like(self._valid)
        keep[self._valid] = ~dropped
        return keep

    def spread(self, values: Float[Tensor, " tokens"]) -> Float[Tensor, "batch time"]:
        """A value of each token ``(N,)`` in its place, ``(B, T)``; 0 where no token is valid."""
        placed = values.new_zeros(self._valid.shape)
        placed[self._valid] = values
        return placed

    def _total(self, value: Tensor) -> Tensor:
        return total(value, self._group)

    def _gathered(self, values: Tensor) -> tuple[Tensor, int]:
        """The values ``(n,)`` of all processes one after the other, and the index where this one's begin."""
        if self._group is None:
            return values, 0
        rank, ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        lengths = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(ranks)]
        dist.all_gather(lengths, torch.tensor([values.numel()], device=values.device), group=self._group)
        counts = [int(length) for length in lengths]
        padded = values.new_zeros(max(counts))
        padded[: values.numel()] = values
        rows = [torch.empty_like(padded) for _ in counts]
        if max(counts):  # the same on every process
            dist.all_gather(rows, padded, group=self._group)
        return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)]), sum(counts[:rank])

    @staticmethod
    def _those(candidates: Tensor, indices: Tensor, places: Tensor) -> Tensor:
        """True at ``indices[place]`` for each place that is this process's own."""
        chosen = torch.zeros_like(candidates)
        chosen[indices[places[(places >= 0) & (places < indices.numel())]]] = True
        return chosen


def total(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of `value` over the processes of `group`; `value` itself without a group."""
    if group is not None:
        value = value.clone()
        dist.all_reduce(value, group=group)
    return value


def per_token(advantages: Advantages, mask: Shaped[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """`advantages` ``(B,)`` or ``(B, T)`` as ``(B, T)``."""
    if advantages.dim() == 1 and advantages.shape[0] == mask.shape[0]:
        advantages = advantages.unsqueeze(1).expand(mask.shape)
    if advantages.shape != mask.shape:
        raise ValueError(
            f"advantages must be (B,) or (B, T) for a mask of shape {tuple(mask.shape)}, got {tuple(advantages.shape)}"
        )
    return advantages


def _ordered(values: Tensor) -> Tensor:
    """float32 or float64 numbers as integers of the same order: their bits; of negative numbers all but the sign
    flipped."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _unordered(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`_ordered`."""
    return torch.where(keys < 0, keys ^ torch.iinfo(keys.dtype).max, keys).view(dtype)
