"""The lens: sums by bucket against a reference in plain Python, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from rule_matrix import loose_rules
from torch import Tensor

from entropy_rft.entropy import Rule, TokenStatistics, token_statistics
from entropy_rft.entropy.lens import COLUMNS, PARTITIONS, bucket_sums, by_partition, lens_batch
from entropy_rft.entropy.rules.whole_batch import WholeBatch

SIGNS, PHASES = ("positive", "negative", "zero"), ("thinking", "answer", "other")


def tokens(count: int = 400, seed: int = 0) -> tuple[TokenStatistics, Tensor, Tensor, Tensor]:
    """One row of tokens: statistics and advantages ``(1, N)``, phases and dropped ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, count, 12, generator=generator) * 3
    ids = torch.randint(0, 12, (1, count), generator=generator)
    advantages = torch.randn(1, count, generator=generator)
    advantages[0, ::7] = 0
    phases = torch.randint(0, 3, (count,), generator=generator)
    return token_statistics(logits, ids), advantages, phases, torch.rand(count, generator=generator) > 0.8


def recorded(
    statistics: TokenStatistics, advantages: Tensor, phases: Tensor, dropped: Tensor
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    found = lens_batch(WholeBatch(statistics, advantages, torch.ones_like(advantages), None), phases, dropped)
    return by_partition(bucket_sums(found.index, found.sums, None).tolist()), found.edges.tolist()


def by_hand(
    statistics: TokenStatistics, advantages: Tensor, phases: Tensor, dropped: Tensor
) -> dict[str, dict[str, list[float]]]:
    rows = zip(
        statistics.log_prob[0].tolist(),
        statistics.entropy[0].tolist(),
        statistics.expected_discriminant[0].tolist(),
        advantages[0].tolist(),
        phases.tolist(),
        dropped.tolist(),
        strict=True,
    )
    scored = [(math.exp(lp), math.exp(lp) * (h + lp), e, a, phase, drop) for lp, h, e, a, phase, drop in rows]
    ordered = sorted(s for _, s, *_ in scored)
    edges = [ordered[math.ceil(k * len(ordered) / 10) - 1] for k in range(1, 10)]
    sums = {name: {bucket: [0.0] * 6 for bucket in buckets} for name, buckets in PARTITIONS.items()}
    for probability, s, expected, advantage, phase, drop in scored:
        change = -advantage * (s - expected)
        sign = 0 if advantage > 0 else 1 if advantage < 0 else 2
        tenth = min(math.ceil(probability * 10), 10) - 1 if probability > 0 else 0
        decile = sum(edge < s for edge in edges) + 1
        places = {
            "advantage_phase": f"{SIGNS[sign]}/{PHASES[phase]}",
            "probability": PARTITIONS["probability"][tenth],
            "discriminant": str(decile),
        }
        one = [1.0, min(change, 0.0), max(change, 0.0)]
        for partition, bucket in places.items():
            for column, value in enumerate([*one, *(drop * x for x in one)]):
                sums[partition][bucket][column] += value
    return sums


def test_every_bucket_has_the_sums_of_its_tokens() -> None:
    batch = tokens()
    found, _ = recorded(*batch)
    expected = by_hand(*batch)
    assert found.keys() == expected.keys() == PARTITIONS.keys()
    for partition, buckets in expected.items():
        assert list(found[partition]) == list(buckets)
        for bucket, row in buckets.items():
            assert found[partition][bucket] == pytest.approx(row, rel=1e-9, abs=1e-12), (partition, bucket)
    assert all(row[0] == 40 for row in found["discriminant"].values())
    filled = [sum(row[0] > 0 for row in found[partition].values()) for partition in PARTITIONS]
    assert filled == [9, 10, 10]  # or else equality says nothing of the empty ones


def test_each_partition_has_all_tokens_and_the_whole_change() -> None:
    statistics, advantages, phases, dropped = tokens()
    found, _ = recorded(statistics, advantages, phases, dropped)
    whole = [[math.fsum(column) for column in zip(*rows.values(), strict=True)] for rows in found.values()]
    assert whole[1] == pytest.approx(whole[0], rel=1e-12)
    assert whole[2] == pytest.approx(whole[0], rel=1e-12)
    names = dict(zip(COLUMNS, whole[0], strict=True))
    change = -(advantages * statistics.centred_discriminant).double()
    assert names["tokens"] == 400
    assert names["dropped"] == int(dropped.sum())
    assert names["loss"] + names["gain"] == pytest.approx(float(change.sum()), rel=1e-5)
    assert names["dropped_loss"] + names["dropped_gain"] == pytest.approx(float(change[0, dropped].sum()), rel=1e-5)


@pytest.mark.parametrize("rule", loose_rules(), ids=lambda rule: rule.name)
def test_what_a_rule_dropped_is_what_its_mask_removed(rule: Rule) -> None:
    statistics, advantages, phases, _ = tokens()
    keep = rule.keep_mask(statistics, advantages, torch.ones_like(advantages))
    assert int((~keep).sum()) < 300
    assert bool((~keep).any()) is not rule.later_updates_only  # those add to the loss and drop nothing
    found, _ = recorded(statistics, advantages, phases, ~keep[0])
    removed = -(advantages * statistics.centred_discriminant)[~keep].double()
    for rows in found.values():
        sums = dict(zip(COLUMNS, map(math.fsum, zip(*rows.values(), strict=True)), strict=True))
        assert sums["dropped"] == int((~keep).sum())
        assert sums["dropped_loss"] == pytest.approx(float(removed.clamp(max=0).sum()), rel=1e-5)
        assert sums["dropped_gain"] == pytest.approx(float(removed.clamp(min=0).sum()), rel=1e-5)


def test_equal_tokens_are_in_one_decile_and_an_empty_batch_in_none() -> None:
    statistics, advantages, phases, dropped = tokens(20)
    same = statistics.map(lambda x: x[:, :1].expand(1, 20).contiguous())
    found, edges = recorded(same, advantages, phases, dropped)
    assert [row[0] for row in found["discriminant"].values()] == [20, *[0] * 9]
    assert len(set(edges)) == 1
    none = statistics.map(lambda x: x[:, :0])
    found, edges = recorded(none, advantages[:, :0], phases[:0], dropped[:0])
    assert edges == [0.0] * 9
    assert not any(map(any, found["discriminant"].values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_are_tokens_of_the_batch(dtype: torch.dtype) -> None:
    statistics, advantages, _, _ = tokens(101)
    batch = WholeBatch(statistics, advantages, torch.ones_like(advantages), None)
    values = torch.randn(101, generator=torch.Generator().manual_seed(3)).to(dtype)
    values[:30] = values[:30].round()  # ties, and zeros of both signs
    shares = torch.tensor([0.001, 0.1, 0.25, 0.5, 0.9, 1.0])
    ordered = sorted(values.tolist())
    expected = [ordered[max(math.ceil(share * 101 - 1e-6), 1) - 1] for share in shares.tolist()]
    assert batch.quantiles(values, shares).tolist() == expected
