"""The split and the fit of entropy changes, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_rft.entropy import change_sums, fit_changes, split_entropy_change


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    change = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0], [256.0, 512.0, 1024.0, 2048.0]])
    advantages = torch.tensor([1.5, -0.5, 0.0])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    thinking = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    answer = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    return change, advantages, mask, {"thinking": thinking, "answer": answer}


def test_split_by_sign_and_phase() -> None:
    split = split_entropy_change(*example())
    assert split == {
        "positive": {"thinking": 1.0, "answer": 4.0, "other": 2.0},
        "negative": {"thinking": 48.0, "answer": 128.0, "other": 64.0},
        "zero": {"thinking": 256.0, "answer": 0.0, "other": 0.0},
    }
    change, _, mask, _ = example()
    assert sum(sum(phases.values()) for phases in split.values()) == float(change[mask != 0].sum())


def test_split_refuses_phases_that_would_count_a_token_twice() -> None:
    change, advantages, mask, phases = example()
    with pytest.raises(ValueError, match="thinking, answer overlap"):
        split_entropy_change(change, advantages, mask, phases | {"answer": torch.ones_like(mask)})
    with pytest.raises(ValueError, match="'other'"):
        split_entropy_change(change, advantages, mask, {"other": mask})


def test_fit_of_parts_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    predicted, mask = torch.randn(4, 50), torch.rand(4, 50) < 0.7
    measured = 3 * predicted + 0.5 * torch.randn(4, 50)
    measured[~mask] = float("nan")  # what is no token's
    fit = fit_changes(sum(change_sums(predicted[i], measured[i], mask[i]) for i in range(4)))
    p, m = predicted[mask].double(), measured[mask].double()
    assert fit.tokens == int(mask.sum())
    assert fit.slope == pytest.approx(float((p * m).sum() / (p * p).sum()))
    assert fit.correlation == pytest.approx(float(torch.corrcoef(torch.stack([p, m]))[0, 1]))
    assert (fit.predicted, fit.measured) == pytest.approx((float(p.mean()), float(m.mean())))


def test_nothing_to_compare_is_not_a_number() -> None:
    none, still = torch.zeros(1, 3), torch.ones(1, 3)
    assert math.isnan(fit_changes(change_sums(none, none, none)).measured)
    fit = fit_changes(change_sums(none, still, still))
    assert fit.measured == 1.0
    assert math.isnan(fit.slope)
    assert math.isnan(fit.correlation)
