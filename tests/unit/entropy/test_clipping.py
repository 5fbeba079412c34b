from __future__ import annotations

import pickle

import pytest
import torch
from reference import kept
from torch import Tensor

from entropy_rft.entropy import EntropyClip, TokenStatistics, token_statistics


def batch(
    rows: int = 6, length: int = 30, vocabulary: int = 12, seed: int = 0
) -> tuple[TokenStatistics, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator) * 3
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    advantages = torch.randn(rows, generator=generator)
    mask = (torch.rand(rows, length, generator=generator) > 0.2).long()
    return token_statistics(logits, ids), advantages, mask


def chosen(x: Tensor, mask: Tensor) -> list[float]:
    return x[mask != 0].double().tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("which", ["negative", "positive", "all"])
@pytest.mark.parametrize("mus", [(1.0, None), (None, 1.5), (0.7, 0.9), (2.5, 2.5)])
@pytest.mark.parametrize("rule", ["clip_b", "clip_v"])
def test_agrees_with_the_definition(rule: str, mus: tuple, which: str, seed: int) -> None:
    statistics, advantages, mask = batch(seed=seed)
    keep = EntropyClip(rule, mus[0], mus[1], which, None).keep_mask(statistics, advantages, mask)
    expected = kept(
        rule,
        chosen(statistics.discriminant, mask),
        chosen(statistics.expected_discriminant, mask),
        chosen(advantages.unsqueeze(1).expand(mask.shape), mask),
        *(float("inf") if mu is None else mu for mu in mus),
        which,
    )
    assert keep.dtype == torch.bool
    assert keep[mask != 0].tolist() == expected
    assert keep[mask == 0].all()


def test_the_batches_above_have_tokens_to_drop() -> None:
    drops = {
        rule: [int((~EntropyClip.two_sided(rule, 0.7).keep_mask(*batch(seed=seed))).sum()) for seed in range(3)]
        for rule in ("clip_b", "clip_v")
    }
    assert min(min(counts) for counts in drops.values()) > 10


def test_presets() -> None:
    assert EntropyClip.clip_b() == EntropyClip("clip_b", 2.5, None, "negative", None)
    assert EntropyClip.clip_v() == EntropyClip("clip_v", 8.5, None, "negative", 1e-4)
    assert EntropyClip.two_sided("clip_v", 2.0) == EntropyClip("clip_v", 2.0, 2.0, "all", None)
    assert pickle.loads(pickle.dumps(EntropyClip.clip_v())) == EntropyClip.clip_v()


def test_per_token_advantages_and_padding_that_holds_anything() -> None:
    statistics, advantages, mask = batch()
    clip = EntropyClip.two_sided("clip_b", 1.0)
    spoiled = statistics.map(lambda x: torch.where(mask != 0, x, float("nan")))
    keep = clip.keep_mask(statistics, advantages, mask)
    assert torch.equal(clip.keep_mask(spoiled, advantages, mask), keep)
    assert torch.equal(clip.keep_mask(statistics, advantages.unsqueeze(1).expand(mask.shape), mask), keep)


@pytest.mark.parametrize("clip", [EntropyClip.two_sided("clip_b", 0.1), EntropyClip("clip_v", 0.1, 0.1, "all", 0.5)])
def test_degenerate_batches_keep_everything(clip: EntropyClip) -> None:
    statistics, advantages, mask = batch()
    assert clip.keep_mask(statistics, advantages, torch.zeros_like(mask)).all()
    empty = TokenStatistics(*(torch.zeros(2, 0) for _ in range(3)))
    assert clip.keep_mask(empty, torch.ones(2), torch.ones(2, 0)).shape == (2, 0)
    one_token = token_statistics(torch.randn(1, 1, 4), torch.zeros(1, 1, dtype=torch.long))
    assert clip.keep_mask(one_token, torch.ones(1), torch.ones(1, 1)).all()
    single_word = token_statistics(torch.randn(3, 5, 1), torch.zeros(3, 5, dtype=torch.long))
    assert clip.keep_mask(single_word, -torch.ones(3), torch.ones(3, 5)).all()


def test_sigma_below_threshold_keeps_everything() -> None:
    # z differs by 1e-13 only: far out in units of sigma, yet nothing but rounding.
    expected = torch.zeros(1, 50, dtype=torch.float64)
    expected[0, 0] = 1e-13
    statistics = TokenStatistics(torch.zeros(1, 50).double(), torch.zeros(1, 50).double(), expected)
    decision = EntropyClip("clip_v", 1.0, 1.0, "all", None).decide(statistics, -torch.ones(1), torch.ones(1, 50))
    assert 0 < decision.metrics["sigma"] < 1e-12
    assert decision.keep.all()


@pytest.mark.parametrize("fraction", [1e-4, 0.01, 0.03, 1.0])
def test_max_fraction_drops_exactly_the_most_extreme(fraction: float) -> None:
    statistics, advantages, mask = batch(rows=20, length=60)
    unlimited = EntropyClip("clip_v", 0.5, None, "negative", None).keep_mask(statistics, advantages, mask)
    limited = EntropyClip("clip_v", 0.5, None, "negative", fraction).keep_mask(statistics, advantages, mask)
    candidates, dropped = ~unlimited, ~limited
    allowed = max(1, int(fraction * int(mask.sum())))
    assert int(dropped.sum()) == min(allowed, int(candidates.sum()))
    assert not (dropped & ~candidates).any()
    z = statistics.centred_discriminant
    spared = candidates & ~dropped
    if spared.any():
        assert z[dropped].max() <= z[spared].min()


def test_max_fraction_breaks_ties_by_position() -> None:
    expected = torch.zeros(1, 100)
    expected[0, [5, 40, 70]] = 1.0  # z = -1 three times
    statistics = TokenStatistics(torch.zeros(1, 100), torch.zeros(1, 100), expected)
    keep = EntropyClip("clip_v", 2.0, None, "negative", 0.02).keep_mask(statistics, -torch.ones(1), torch.ones(1, 100))
    assert (~keep).nonzero()[:, 1].tolist() == [5, 40]


def test_smaller_mu_drops_a_superset() -> None:
    statistics, advantages, mask = batch(vocabulary=4)
    wide = EntropyClip.clip_b(1.5).keep_mask(statistics, advantages, mask)
    narrow = EntropyClip.clip_b(1.0).keep_mask(statistics, advantages, mask)
    assert not (narrow & ~wide).any()
    assert (~narrow).sum() > (~wide).sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rule": "clipb"}, ValueError, "rule must be one of clip_b, clip_v, got 'clipb'"),
        ({"mu_low": 0.0}, ValueError, r"mu_low must be above 0, got 0\.0"),
        ({"mu_high": -1}, ValueError, "mu_high must be above 0, got -1"),
        ({"mu_low": float("nan")}, ValueError, "mu_low must be above 0, got nan"),
        ({"mu_low": "2"}, TypeError, "mu_low must be a number or None, got '2'"),
        ({"advantages": "neg"}, ValueError, "advantages must be one of negative, positive, all, got 'neg'"),
        ({"max_fraction": 1.5}, ValueError, r"max_fraction must be at most 1, got 1\.5"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    good = {"rule": "clip_b", "mu_low": 2.5, "mu_high": None, "advantages": "negative", "max_fraction": None}
    with pytest.raises(error, match=message):
        EntropyClip(**(good | arguments))


def test_advantages_of_another_shape_are_named() -> None:
    statistics, _, mask = batch()
    with pytest.raises(ValueError, match=r"advantages must be \(B,\) or \(B, T\)"):
        EntropyClip.clip_b().keep_mask(statistics, torch.ones(3), mask)
