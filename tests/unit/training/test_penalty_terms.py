from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from entropy_rft.entropy import RULES, Penalty
from entropy_rft.training.micro_batch import PENALTY
from entropy_rft.training.penalty import PenaltyTerms, does_nothing, with_penalties

DISTANCE = Penalty(torch.tensor([[0.0, 2.0, 3.0]]), lambda now, old: (now - old).square())


def test_only_later_updates_get_a_penalty() -> None:
    prepared: list[dict[str, Any]] = [{"number": 0}, {"number": 1}]
    assert with_penalties(prepared, None, [2, 2]) == prepared
    assert with_penalties(prepared, [DISTANCE] * 2, [1, 1]) == prepared
    first, second = with_penalties(prepared, [DISTANCE] * 2, [2, 1])
    assert first == {"number": 0, PENALTY: DISTANCE}
    assert second[PENALTY].weight.tolist() == [[0.0, 0.0, 0.0]]
    assert all(PENALTY not in inputs for inputs in prepared)  # TRL's own, for the next iteration


def test_the_sum_its_gradient_and_the_mean_of_the_step() -> None:
    """A token without a weight may hold anything."""
    terms = PenaltyTerms()
    now = torch.tensor([[float("nan"), -1.0, -2.0]], requires_grad=True)
    inputs = {PENALTY: DISTANCE, "old_per_token_logps": torch.tensor([[float("inf"), -1.5, -5.0]])}
    added = terms.add(inputs, now, torch.tensor([[1.0, 0.5, 0.25]]))
    assert added.item() == pytest.approx(0.5 * 2 * 0.25 + 0.25 * 3 * 9)
    added.backward()
    assert now.grad is not None
    assert now.grad.tolist() == [[0.0, pytest.approx(0.5 * 2 * 1.0), pytest.approx(0.25 * 3 * 6.0)]]
    none = {PENALTY: Penalty(torch.zeros(1, 3), DISTANCE.term), "old_per_token_logps": torch.zeros(1, 3)}
    assert terms.add(none, now, torch.ones(1, 3)).item() == 0
    assert terms.mean(None) == pytest.approx((0.25 + 9) / 2)
    terms.add(none, now, torch.ones(1, 3))
    assert terms.mean(None) == 0  # the next step


def test_the_line_names_the_fields_to_change() -> None:
    args = SimpleNamespace(num_iterations=1, steps_per_generation=4, gradient_accumulation_steps=8)
    line = does_nothing(RULES["kl_cov"](), args)
    assert "set num_iterations to 2 or more (it is 1)" in line
    assert "(they are 4 and 8)" in line
