from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from entropy_rft.entropy import TokenStatistics, token_statistics
from entropy_rft.entropy.rules.clip_cov import ClipCov


def batch(seed: int = 0, rows: int = 12, length: int = 50) -> tuple[TokenStatistics, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 12, generator=generator) * 3
    ids = torch.randint(0, 12, (rows, length), generator=generator)
    mask = (torch.rand(rows, length, generator=generator) > 0.2).long()
    return token_statistics(logits, ids), torch.randn(rows, generator=generator), mask


def covariances(statistics: TokenStatistics, advantages: Tensor, mask: Tensor) -> np.ndarray:
    """The definition in float64 numpy, of the valid tokens."""
    valid = mask.numpy() != 0
    log_prob = statistics.log_prob.numpy().astype(np.float64)[valid]
    reward = np.repeat(advantages.numpy().astype(np.float64)[:, None], mask.shape[1], 1)[valid]
    return (log_prob - log_prob.mean()) * (reward - reward.mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounds", [(1.0, 5.0), (0.0, 0.5), (2.0, 1e9)])
def test_without_a_limit_every_token_between_the_bounds_goes(bounds: tuple[float, float], seed: int) -> None:
    statistics, advantages, mask = batch(seed)
    decision = ClipCov(*bounds, max_fraction=1).decide(statistics, advantages, mask)
    expected = covariances(statistics, advantages, mask)
    between = (expected > bounds[0]) & (expected < bounds[1])
    assert between.any()
    assert (~decision.keep)[mask != 0].tolist() == between.tolist()
    assert decision.metrics["covariance"].item() == pytest.approx(expected.mean(), rel=1e-6)
    assert decision.metrics["candidates"].item() == pytest.approx(between.mean())


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.05])
def test_the_share_is_exact_and_drawn_from_the_candidates(fraction: float) -> None:
    statistics, advantages, mask = batch()
    everything = ~ClipCov(max_fraction=1).keep_mask(statistics, advantages, mask)
    dropped = ~ClipCov(max_fraction=fraction).keep_mask(statistics, advantages, mask)
    assert int(dropped.sum()) == max(1, int(fraction * int(mask.sum())))
    assert int(dropped.sum()) < int(everything.sum())
    assert not (dropped & ~everything).any()


def test_the_draw_is_repeated_for_the_same_batch_and_even_over_batches() -> None:
    """One of the candidates each time: its place among them, by size, is uniform."""
    rule = ClipCov(max_fraction=1e-9)
    places = []
    for seed in range(300):
        statistics, advantages, mask = batch(seed)
        keep = rule.keep_mask(statistics, advantages, mask)
        assert torch.equal(rule.keep_mask(statistics, advantages, mask), keep)
        values = covariances(statistics, advantages, mask)
        between = np.sort(values[(values > 1) & (values < 5)])
        (drawn,) = values[~keep[mask != 0].numpy()]
        places.append((np.searchsorted(between, drawn - 1e-9) + 0.5) / len(between))
    assert abs(np.mean(places) - 0.5) < 0.05  # three standard errors of a uniform mean
    assert np.histogram(places, 4, (0, 1))[0].min() > 50


def test_nothing_between_the_bounds() -> None:
    statistics, _, mask = batch()
    assert ClipCov().keep_mask(statistics, torch.ones(len(mask)), mask).all()  # no advantage differs from the mean


def test_bounds_that_leave_nothing_between_them() -> None:
    with pytest.raises(ValueError, match=r"cov_low must be below cov_high \(5\.0\), got 6"):
        ClipCov(cov_low=6)
