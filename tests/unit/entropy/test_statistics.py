from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import distribution, statistics
from torch import Tensor

from entropy_rft.entropy import TokenStatistics, fused_token_statistics, predicted_entropy_change, token_statistics

NAMES = ("log_prob", "entropy", "discriminant", "expected_discriminant")


def rows(kind: str, vocabulary: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, vocabulary, generator=generator) * 3
    if kind == "peaked":
        logits[:, vocabulary // 2] += 30
    elif kind == "one-hot":
        logits = torch.full_like(logits, float("-inf"))
        logits[torch.arange(6), torch.arange(6) % vocabulary] = 2.0
    elif kind == "uniform":
        logits = torch.full_like(logits, 7.5)
    elif kind == "banned":
        logits[:, ::3] = float("-inf")
        logits[:, -1] = 0.0
    elif kind == "large":
        logits = logits * 1e4
    return logits


def check(actual: TokenStatistics, logits: Tensor, ids: Tensor, temperature: float, relative: float) -> None:
    for name in NAMES:
        values = getattr(actual, name)
        assert torch.isfinite(values).all(), name
        for row, (value, token) in enumerate(zip(values, ids, strict=True)):
            expected = statistics(logits[row].double().numpy(), int(token), temperature)[name]
            if np.isfinite(expected):
                assert float(value) == pytest.approx(expected, rel=relative, abs=2e-6), (name, row)
            else:
                assert float(value) < -1e30
    assert (actual.log_prob <= 0).all()
    assert (actual.entropy >= 0).all()


KINDS = ["random", "peaked", "one-hot", "uniform", "banned", "large"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 1025])
@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_agree_with_the_definition(kind: str, vocabulary: int, temperature: float) -> None:
    logits = rows(kind, vocabulary)
    ids = torch.randint(0, vocabulary, (6,), generator=torch.Generator().manual_seed(1))
    check(token_statistics(logits, ids, temperature), logits, ids, temperature, relative=2e-5)
    # An identity head: hidden states are the logits themselves, -inf comes in through the bias.
    bias = torch.where(logits.isinf().any(0), float("-inf"), 0.0) if kind == "banned" else None
    if kind == "one-hot":
        return  # -inf differs by row, which hidden states cannot express
    hidden = logits.nan_to_num(neginf=0.0)
    fused = fused_token_statistics(hidden, torch.eye(vocabulary), ids, bias=bias, temperature=temperature)
    check(fused, logits, ids, temperature, relative=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_are_float32_whatever_the_logits(dtype: torch.dtype) -> None:
    logits = rows("random", 50).to(dtype)
    ids = torch.arange(6)
    result = token_statistics(logits, ids)
    assert {getattr(result, name).dtype for name in NAMES} == {torch.float32}
    check(result, logits, ids, 1.0, relative=2e-5)


def test_any_leading_shape() -> None:
    logits = torch.randn(2, 3, 4, 11)
    ids = torch.randint(0, 11, (2, 3, 4))
    result = token_statistics(logits, ids)
    assert result.entropy.shape == (2, 3, 4)
    flat = token_statistics(logits.reshape(-1, 11), ids.reshape(-1))
    assert torch.equal(result.discriminant.reshape(-1), flat.discriminant)
    assert token_statistics(torch.randn(0, 5), torch.zeros(0, dtype=torch.long)).entropy.shape == (0,)
    assert token_statistics(torch.randn(5), torch.tensor(2)).entropy.shape == ()


def test_mean_of_the_centred_discriminant_is_zero_on_policy() -> None:
    logits = torch.randn(5, 40, dtype=torch.float64) * 2
    tokens = torch.arange(40).expand(5, 40)
    every = token_statistics(logits.unsqueeze(1).expand(5, 40, 40), tokens)
    mean = (every.log_prob.exp() * every.centred_discriminant).sum(1)
    assert mean.abs().max() < 1e-14


def test_sign_of_the_discriminant_is_that_of_the_probability_against_exp_minus_entropy() -> None:
    logits = torch.randn(20, 30, dtype=torch.float64) * 2
    every = token_statistics(logits.unsqueeze(1).expand(20, 30, 30), torch.arange(30).expand(20, 30))
    assert torch.equal(every.discriminant.sign(), (every.log_prob.exp() - (-every.entropy).exp()).sign())


@pytest.mark.parametrize("advantage", [1.3, -0.7])
def test_predicted_change_is_the_derivative_along_a_grpo_step(advantage: float) -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 8, 25, dtype=torch.float64) * 2
    ids = torch.randint(0, 25, (1, 8))
    predicted = predicted_entropy_change(
        token_statistics(logits, ids), torch.tensor([advantage], dtype=torch.float64), torch.ones(1, 8), step_size=1.0
    )

    def entropy(step: Tensor) -> Tensor:
        pi = logits.softmax(-1)
        direction = advantage * (torch.nn.functional.one_hot(ids, 25) - pi)
        moved = (logits + step * direction).log_softmax(-1)
        return -(moved.exp() * moved).sum(-1)

    derivative = torch.autograd.functional.jacobian(entropy, torch.zeros((), dtype=torch.float64))
    assert torch.allclose(derivative, predicted, rtol=1e-10, atol=1e-14)
    # And to first order: halving a small step quarters what the prediction misses.
    errors = [(entropy(torch.tensor(s)) - entropy(torch.tensor(0.0)) - s * predicted).abs().sum() for s in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_one_pushed_logit_changes_the_entropy_by_minus_its_discriminant() -> None:
    logits = torch.randn(12, dtype=torch.float64)
    for token in range(12):
        z = logits.clone().requires_grad_()
        log_p = z.log_softmax(-1)
        (gradient,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), z)
        s = token_statistics(logits, torch.tensor(token)).discriminant
        assert float(gradient[token]) == pytest.approx(-float(s), rel=1e-10)


def test_predicted_change_is_zero_outside_the_mask() -> None:
    result = token_statistics(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    change = predicted_entropy_change(result, torch.tensor([1.0, -2.0]), torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert (change[0, 1], change[1].abs().sum()) == (0, 0)
    assert change[0, 0] != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"token_ids": torch.zeros(3, dtype=torch.long)}, r"token_ids of shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    good = {"logits": torch.randn(2, 4), "token_ids": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        token_statistics(**(good | arguments))
    with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
        token_statistics(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, dtype=torch.long))


def test_reference_itself() -> None:
    # The oracle against two cases known in closed form.
    uniform = statistics(np.zeros(8), 3)
    assert uniform["entropy"] == pytest.approx(np.log(8))
    assert uniform["discriminant"] == pytest.approx(0, abs=1e-15)
    assert distribution(np.array([0.0, np.log(3.0)]))[1] == pytest.approx(0.75)
