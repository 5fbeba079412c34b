"""What holds for every rule, whatever it looks at."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from rule_matrix import acted_on, loosened
from torch import Tensor

from entropy_rft.entropy import RULES, EntropyClip, Rule, TokenStatistics, token_statistics


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param](**loosened(request.param))


def batch(rows: int = 8, length: int = 40, seed: int = 0) -> tuple[TokenStatistics, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 12, generator=generator) * 3
    ids = torch.randint(0, 12, (rows, length), generator=generator)
    mask = (torch.rand(rows, length, generator=generator) > 0.2).long()
    return token_statistics(logits, ids), torch.randn(rows, generator=generator), mask


def acted(rule: Rule, *arguments: Tensor | TokenStatistics) -> Tensor:
    """Of the rule as it is: a decision changes the state of one that learns."""
    return acted_on(copy.deepcopy(rule).decide(*arguments))  # type: ignore[arg-type]


def test_it_acts_on_some_valid_tokens_and_no_other(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    decision = rule.decide(statistics, advantages, mask)
    chosen = acted_on(decision)
    assert decision.keep.dtype == torch.bool
    assert decision.keep.shape == mask.shape
    assert 5 < int(chosen.sum()) < int(mask.sum()) / 2
    assert not chosen[mask == 0].any()
    # A rule has its effect where its class says.
    assert type(rule).later_updates_only == (decision.penalty is not None)
    assert not rule.idle
    assert all(value.dim() == 0 and torch.isfinite(value) for value in decision.metrics.values())
    assert torch.equal(rule.keep_mask(statistics, advantages, mask), decision.keep)


def test_padding_may_hold_anything_and_its_place_does_not_matter(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    expected = acted(rule, statistics, advantages, mask)
    spoiled = statistics.map(lambda x: torch.where(mask != 0, x, float("nan")))
    assert torch.equal(acted(rule, spoiled, advantages.unsqueeze(1).expand(mask.shape), mask), expected)
    # One row of valid tokens only: as the trainer joins micro-batches of different lengths.
    joined = statistics.map(lambda x: x[mask != 0].unsqueeze(0))
    flat = advantages.unsqueeze(1).expand(mask.shape)[mask != 0].unsqueeze(0)
    assert torch.equal(acted(rule, joined, flat, torch.ones_like(flat))[0], expected[mask != 0])


def test_the_order_of_the_completions_does_not_matter(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(1))
    moved = acted(rule, statistics.map(lambda x: x[order]), advantages[order], mask[order])
    assert torch.equal(moved, acted(rule, statistics, advantages, mask)[order])


def test_nothing_is_done_to_degenerate_batches(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    empty = TokenStatistics(*(torch.zeros(2, 0) for _ in range(3)))
    one_token = token_statistics(torch.randn(1, 1, 4), torch.zeros(1, 1, dtype=torch.long))
    single_word = token_statistics(torch.randn(3, 5, 1), torch.zeros(3, 5, dtype=torch.long))
    for arguments in (
        (statistics, advantages, torch.zeros_like(mask)),
        (empty, torch.ones(2), torch.ones(2, 0)),
        (one_token, torch.ones(1), torch.ones(1, 1)),
        (single_word, -torch.ones(3), torch.ones(3, 5)),
    ):
        chosen = acted(copy.deepcopy(rule), *arguments)
        assert chosen.shape == arguments[2].shape
        assert not chosen.any()


def test_a_broken_token_costs_no_other(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    broken = statistics.map(lambda x: x.masked_fill(torch.arange(x.shape[1]) == 3, float("nan")))
    assert not acted(rule, broken, advantages, mask).any()


def test_shapes_that_do_not_fit_are_named(rule: Rule) -> None:
    statistics, advantages, mask = batch()
    with pytest.raises(ValueError, match=r"advantages must be \(B,\) or \(B, T\)"):
        rule.decide(statistics, advantages[:3], mask)
    with pytest.raises(ValueError, match="need a mask of that shape"):
        rule.decide(statistics, advantages, mask[:, :5])


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_a_frozen_dataclass_that_says_what_it_is(name: str) -> None:
    kind = RULES[name]
    rule = kind()
    assert kind.name == name
    assert kind.__doc__
    assert "arXiv" in kind.__doc__
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert loosened(name)
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        assert each.metadata["help"].endswith(".")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, each.name, None)
        with pytest.raises((ValueError, TypeError), match=f"^{each.name} must be"):
            kind(**{each.name: "maybe"})


def test_the_public_name_is_the_same_rule() -> None:
    statistics, advantages, mask = batch()
    for public, rule in (
        (EntropyClip.clip_b(0.5), RULES["clip_b"](mu_low=0.5)),
        (EntropyClip.clip_v(0.5, 0.05), RULES["clip_v"](mu_low=0.5, max_fraction=0.05)),
        (EntropyClip.two_sided("clip_v", 0.5), RULES["clip_v"](0.5, 0.5, "all", None)),
    ):
        keep = rule.keep_mask(statistics, advantages, mask)
        assert not keep.all()
        assert torch.equal(public.keep_mask(statistics, advantages, mask), keep)
