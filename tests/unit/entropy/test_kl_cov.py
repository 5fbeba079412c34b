from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from entropy_rft.entropy import Decision, TokenStatistics, token_statistics
from entropy_rft.entropy.rules.kl_cov import KLCov


def batch(seed: int = 0, rows: int = 12, length: int = 50) -> tuple[TokenStatistics, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 12, generator=generator) * 3
    ids = torch.randint(0, 12, (rows, length), generator=generator)
    mask = (torch.rand(rows, length, generator=generator) > 0.2).long()
    return token_statistics(logits, ids), torch.randn(rows, generator=generator), mask


def weights(rule: KLCov, *arguments: Tensor | TokenStatistics) -> Tensor:
    decision: Decision = rule.decide(*arguments)  # type: ignore[arg-type]
    assert decision.keep.all()
    assert decision.penalty is not None
    assert decision.penalty.weight.shape == decision.keep.shape
    return decision.penalty.weight


def expected(statistics: TokenStatistics, advantages: Tensor, mask: Tensor, share: float) -> set[tuple[int, int]]:
    """The definition, token by token in plain float64; of equal covariances the earlier token comes first."""
    tokens = [(row, t) for row in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[row, t]]
    log_prob = {place: float(statistics.log_prob[place]) for place in tokens}
    reward = {place: float(advantages[place[0]]) for place in tokens}
    mean_log_prob = math.fsum(log_prob.values()) / len(tokens)
    mean_reward = math.fsum(reward.values()) / len(tokens)
    covariance = {place: (log_prob[place] - mean_log_prob) * (reward[place] - mean_reward) for place in tokens}
    count = max(1, math.floor(Fraction(str(share)) * len(tokens)))
    largest = sorted(
        (place for place in tokens if covariance[place] > 0), key=lambda p: (-covariance[p], tokens.index(p))
    )
    return set(largest[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [1e-9, 2e-4, 2e-3, 0.01, 0.1, 0.3])
def test_the_tokens_of_the_largest_covariance_get_the_weight(share: float, seed: int) -> None:
    statistics, advantages, mask = batch(seed)
    weight = weights(KLCov(share=share, beta=0.7), statistics, advantages, mask)
    assert {tuple(place) for place in weight.nonzero().tolist()} == expected(statistics, advantages, mask, share)
    assert weight.unique().tolist() == pytest.approx([0.0, 0.7])


def test_the_preset_is_the_published_codes() -> None:
    assert (KLCov().share, KLCov().beta) == (2e-4, 1.0)


def test_the_mean_covariance_is_logged() -> None:
    statistics, advantages, mask = batch()
    valid = mask != 0
    log_prob = statistics.log_prob[valid].double()
    reward = advantages.unsqueeze(1).expand(mask.shape)[valid].double()
    metrics = KLCov().decide(statistics, advantages, mask).metrics
    # The mean of a product minus the product of the means, which the rule does not compute.
    plain = (log_prob * reward).mean() - log_prob.mean() * reward.mean()
    assert metrics["covariance"].item() == pytest.approx(plain.item(), rel=1e-6)


def test_extremes() -> None:
    """A banned token has the lowest finite log-probability; beside it a token's covariance is rounding or far off."""
    statistics, advantages, mask = batch(rows=4)
    advantages = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    mask[0, 3] = mask[1, 5] = 1
    lowest = torch.finfo(torch.float32).min
    for row, place in ((0, 3), (1, 5)):
        log_prob = statistics.log_prob.clone()
        log_prob[row, place] = lowest
        spoiled = TokenStatistics(log_prob, statistics.entropy, statistics.expected_discriminant)
        weight = weights(KLCov(share=1e-9), spoiled, advantages, mask)
        assert torch.isfinite(weight).all()
        assert {tuple(p) for p in weight.nonzero().tolist()} == expected(spoiled, advantages, mask, 1e-9)
        # A wrong token that could not be sampled has a low log-probability and a low advantage: the largest covariance.
        assert bool(weight[row, place] > 0) == (row == 0)


def test_of_equal_tokens_the_earlier_ones_are_chosen_and_never_too_many() -> None:
    log_prob = torch.tensor([[-1.0, -1.0, -1.0, -3.0], [-2.0, -2.0, -2.0, -3.0]])
    statistics = TokenStatistics(log_prob, torch.ones(2, 4), torch.zeros(2, 4))
    advantages, mask = torch.tensor([1.0, -1.0]), torch.ones(2, 4)
    # Means -1.875 and 0: covariances .875 .875 .875 -1.125 and .125 .125 .125 1.125.
    for share, chosen in (
        (0.125, [[1, 3]]),
        (0.375, [[0, 0], [0, 1], [1, 3]]),
        (0.5, [[0, 0], [0, 1], [0, 2], [1, 3]]),
        (0.75, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 3]]),
        (1.0, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3]]),  # not the one below 0
    ):
        assert weights(KLCov(share=share), statistics, advantages, mask).nonzero().tolist() == chosen


def test_nothing_is_chosen_where_nothing_varies_together() -> None:
    statistics, _, mask = batch()
    for value in (0.0, 0.1, -1.3):
        equal = torch.full((len(mask),), value)
        assert not weights(KLCov(share=1.0), statistics, equal, mask).any()


@pytest.mark.parametrize("options", [{"share": 0}, {"beta": 0}, {"beta": 0.0, "share": 0.5}])
def test_without_a_share_or_a_weight_it_is_idle(options: dict) -> None:
    statistics, advantages, mask = batch()
    rule = KLCov(**options)
    assert rule.idle
    assert not weights(rule, statistics, advantages, mask).any()
    assert not KLCov().idle


def test_the_term_is_the_distance_and_has_no_gradient_on_policy() -> None:
    statistics, advantages, mask = batch()
    penalty = KLCov().decide(statistics, advantages, mask).penalty
    assert penalty is not None
    old = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
    now = torch.tensor([-1.5, -1.0, -3.0, -4.0], dtype=torch.float64, requires_grad=True)
    term = penalty.term(now, old)
    term.sum().backward()
    assert term.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert now.grad is not None
    assert now.grad.tolist() == [-1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share must be at most 1, got 1.5"),
        ({"share": -0.1}, "share must be at least 0, got -0.1"),
        ({"share": None}, "share must be a number, got None"),
        ({"beta": -1}, "beta must be at least 0, got -1"),
        ({"beta": math.nan}, "beta must be at least 0, got nan"),
    ],
)
def test_a_value_that_cannot_be_is_named(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        KLCov(**options)
