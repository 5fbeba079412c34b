"""The first-order entropy change compared with the real one, on a model's own distributions, in float64.

Three statements, each weaker than the one before:

- ``logits``: one token's own logits move by ``α (e_a - π)``; the paper's formula ``ΔH = -α (S* - E_π[S])`` is exact to
  first order. Nothing is shared between tokens.
- ``parameters``: a step ``δθ`` on the policy loss changes the entropy of token t by ``∇H_t · δθ`` to first order,
  whatever the step is. It is computed by forward-mode differentiation.
- ``shared``: how well the paper's formula, token by token, predicts the real change under a step of the parameters, in
  which every token changes the logits of every other token. Nothing guarantees a slope or a correlation here: they are
  reported.

Plain SGD makes a step in proportion to the gradient, so that ``α`` is defined. Adam's first step is
``-lr · g / (|g| + ε)``: another direction, in which each parameter moves by the learning rate, independent of its
gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_rft.entropy import (
    change_sums,
    fit_changes,
    predicted_entropy_change,
    split_entropy_change,
    token_statistics,
)
from entropy_rft.errors import UserValueError
from entropy_rft.sampling import progress_bar
from studies.methods.batches import Batch, SamplingSettings, sample_batches

OPTIMIZERS = ("sgd", "adam")
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class TheorySettings(SamplingSettings):
    """What is sampled and how far it is moved.

    Attributes:
        alphas: of the steps of single tokens' logits, for an advantage of 1.
        sgd_rates, adam_rates: learning rates of the steps of the parameters.
        swept: batches that are moved by every rate; the others only by `one_sgd_rate` and `one_adam_rate`.
    """

    alphas: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    sgd_rates: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    adam_rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
    swept: int = 2
    one_sgd_rate: float = 0.1
    one_adam_rate: float = 3e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.swept < 1:
            raise UserValueError(f"swept must be at least 1, got {self.swept}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class EntropyModel:
    """A model in float64, as a function of its parameters that gives each token's logits and entropy."""

    def __init__(self, model: Any) -> None:
        self.model = _in_float64(model)
        self.parameters: dict[str, Tensor] = {k: v.detach() for k, v in self.model.named_parameters()}

    def logits(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        """(N, V)."""
        arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        with sdpa_kernel(SDPBackend.MATH):  # the one with forward-mode derivatives
            logits: Tensor = functional_call(self.model, parameters, kwargs=arguments).logits
        return logits[batch.predicts]

    def entropy(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        """(N,), nats."""
        return entropy_of(self.logits(parameters, batch))

    @torch.no_grad()
    def entropy_after(self, step: dict[str, Tensor], scale: float, batch: Batch) -> Tensor:
        """(N,), nats, with the parameters moved by ``scale · step``."""
        return self.entropy({k: v + scale * step[k] for k, v in self.parameters.items()}, batch)

    def direction(self, step: dict[str, Tensor], batch: Batch) -> Tensor:
        """``∇H_t · step`` of every token, (N,): the exact first-order change, by one forward-mode pass."""
        return jvp(lambda p: self.entropy(p, batch), (self.parameters,), (step,))[1]

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        """Of the on-policy policy loss ``-1/N Σ_t A_t log π(a_t)`` (token-mean; the importance ratio is 1)."""
        parameters = {k: v.clone().requires_grad_() for k, v in self.parameters.items()}
        log_prob = self.logits(parameters, batch).log_softmax(-1).gather(-1, batch.token_ids.unsqueeze(-1)).squeeze(-1)
        loss = -(batch.advantages * log_prob).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))


def entropy_of(logits: Tensor) -> Tensor:
    """Nats, of each row of ``(N, V)`` logits."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def step_direction(gradient: dict[str, Tensor], optimizer: str) -> dict[str, Tensor]:
    """The parameters' step per unit of learning rate: SGD's, or the first that Adam makes."""
    if optimizer == "sgd":
        return {k: -g for k, g in gradient.items()}
    return {k: -g / (g.abs() + _ADAM_EPSILON) for k, g in gradient.items()}


def logits_rows(logits: Tensor, batch: Batch, alphas: Sequence[float]) -> list[dict[str, Any]]:
    """Each token's own logits moved by ``α A (e_a - π)``: predicted and measured, one row for each α."""
    statistics = token_statistics(logits, batch.token_ids)
    probs = logits.softmax(-1)
    push = -probs
    push[torch.arange(len(push)), batch.token_ids] += 1
    push *= batch.advantages.unsqueeze(1)
    start = entropy_of(logits)
    rows = []
    for alpha in alphas:
        predicted = _paper(statistics, batch, alpha)
        rows.append(_row(alpha, predicted, entropy_of(logits + alpha * push) - start, batch))
    return rows


def _paper(statistics: Any, batch: Batch, step_size: float) -> Tensor:
    """The paper's formula, (N,)."""
    one = statistics.map(lambda x: x.unsqueeze(0))
    advantages = batch.advantages.unsqueeze(0)
    return predicted_entropy_change(one, advantages, torch.ones_like(advantages), step_size)[0]


def _row(rate: float, predicted: Tensor, measured: Tensor, batch: Batch) -> dict[str, Any]:
    """One comparison. The error is that of the mean over tokens; `rms_error` is over tokens."""
    everything = torch.ones_like(predicted)
    fit = fit_changes(change_sums(predicted, measured, everything))
    return {
        "rate": rate,
        **asdict(fit),
        "error": abs(fit.measured - fit.predicted),
        "rms_error": float((measured - predicted).square().mean().sqrt()),
        "split": {
            name: _per_token(split_entropy_change(*_one_row(change, batch)), len(change))
            for name, change in (("predicted", predicted), ("measured", measured))
        },
    }


def _one_row(change: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    phases = {name: phase.unsqueeze(0) for name, phase in batch.phases.items()}
    change = change.unsqueeze(0)
    return change, batch.advantages.unsqueeze(0), torch.ones_like(change), phases


def _per_token(split: dict[str, dict[str, float]], tokens: int) -> dict[str, dict[str, float]]:
    return {sign: {phase: value / tokens for phase, value in phases.items()} for sign, phases in split.items()}


def order_of(rates: Sequence[float], errors: Sequence[float]) -> float | None:
    """The power of the rate by which the error shrinks: the slope in log-log of the smaller half of the rates.

    Errors at float64's own rounding (below 1e-14 nats) have no information and are left out; None with fewer than two
    left.
    """
    points = sorted((r, e) for r, e in zip(rates, errors, strict=True) if e > 1e-14)
    points = points[: max(2, -(-len(points) // 2))]
    if len(points) < 2:
        return None
    logs = np.log(np.asarray(points))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def study(settings: TheorySettings, model: Any, tokenizer: Any, progress: bool = True) -> dict[str, Any]:
    """Everything the theory's figure and table need; plain JSON values.

    Args:
        settings: what is sampled and how far it is moved.
        model, tokenizer: of the name in the settings; the model is not changed.
        progress: show a bar, on a terminal.
    """
    batches = sample_batches(settings, model, tokenizer, progress)
    moved = EntropyModel(model)
    logit_rows: list[list[dict[str, Any]]] = []
    swept: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in OPTIMIZERS}
    shared: dict[str, list[dict[str, Any]]] = {name: [] for name in OPTIMIZERS}
    with progress_bar("batches", len(batches), progress) as advance:
        for index, batch in enumerate(batches):
            with torch.no_grad():
                logits = moved.logits(moved.parameters, batch)
            start, statistics = entropy_of(logits), token_statistics(logits, batch.token_ids)
            if index < settings.swept:
                logit_rows.append(logits_rows(logits, batch, settings.alphas))
            del logits
            gradient = moved.gradient(batch)
            for name in OPTIMIZERS:
                advance(0, name)
                step = step_direction(gradient, name)
                derivative = moved.direction(step, batch)
                all_rates: tuple[float, ...] = getattr(settings, f"{name}_rates")
                one_rate: float = getattr(settings, f"one_{name}_rate")
                if index < settings.swept:
                    rows = [
                        _row(rate, rate * derivative, moved.entropy_after(step, rate, batch) - start, batch)
                        for rate in all_rates
                    ]
                    swept[name].append(rows)
                measured = moved.entropy_after(step, one_rate, batch) - start
                # SGD's step on the token-mean loss has α = lr · A / N. For Adam there is no α: its step is not in
                # proportion to the gradient. A unit step gives the correlation, which no factor changes.
                size = one_rate / len(start) if name == "sgd" else 1.0
                shared[name].append(_row(one_rate, _paper(statistics, batch, size), measured, batch))
            advance(1, "")
    return {
        "settings": settings.to_dict(),
        "tokens": [len(batch.token_ids) for batch in batches],
        "logits": _sweep(logit_rows),
        "parameters": {name: _sweep(rows) for name, rows in swept.items()},
        "shared": {name: _shared(rows) for name, rows in shared.items()},
    }


def _sweep(batches: list[list[dict[str, Any]]]) -> dict[str, Any]:
    rates = [row["rate"] for row in batches[0]]
    errors = [float(np.mean([rows[i]["error"] for rows in batches])) for i in range(len(rates))]
    rms = [float(np.mean([rows[i]["rms_error"] for rows in batches])) for i in range(len(rates))]
    return {"batches": batches, "order": order_of(rates, errors), "rms_order": order_of(rates, rms)}


def _shared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The paper's formula over batches: each batch's mean change is one point."""
    predicted, measured = (torch.tensor([row[name] for row in rows]) for name in ("predicted", "measured"))
    over_batches = fit_changes(change_sums(predicted, measured, torch.ones_like(predicted)))
    return {
        "batches": rows,
        "over_batches": {"slope": over_batches.slope, "correlation": over_batches.correlation, "batches": len(rows)},
        "same_sign": float((predicted.sign() == measured.sign()).double().mean()),
        "mean_token_correlation": float(np.mean([row["correlation"] for row in rows])),
        "mean_token_slope": float(np.mean([row["slope"] for row in rows])),
    }


def _in_float64(model: Any) -> Any:
    """A copy that computes in float64 throughout: transformers' RMSNorm rounds to float32 on the way."""
    exact = copy.deepcopy(model).double().cpu().eval()
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return exact
