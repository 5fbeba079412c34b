"""Fitting a probe's weights, and the temperature that calibrates its confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from entropy_rft.difficulty.labels import NoProbeError
from entropy_rft.difficulty.network import initial_weights, logits
from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES
from entropy_rft.errors import UserValueError


@dataclass(frozen=True)
class Fit:
    """A fitted network.

    Attributes:
        tensors: the weights, and the mean and the deviation of their inputs.
        temperature: the logits are divided by it.
        metrics: rows on both sides of the split, number of epochs, the best epoch, and the settings.
    """

    tensors: dict[str, Tensor]
    temperature: float
    metrics: dict[str, Any]


def fit_weights(
    states: Tensor,
    targets: Tensor,
    groups: Sequence[str],
    *,
    kind: str,
    hidden_units: int,
    validation_fraction: float,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    patience: int,
    balanced: bool,
    seed: int,
) -> Fit:
    """What `DifficultyProbe.fit` does; its arguments are explained there.

    Args:
        states: (N, D) float32, finite.
        targets: classes, (N,) int64.
        groups: N names.

    Raises:
        ValueError: an argument is out of range, there are fewer than 2 groups, or nothing could be learned.
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if count < 1:
            raise UserValueError(f"{name} must be at least 1, got {count}")
    if not 0 < learning_rate < math.inf:
        raise UserValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
    validating = split_groups(groups, validation_fraction, seed)
    train, held_out = np.flatnonzero(~validating), np.flatnonzero(validating)
    if not len(train) or not len(held_out):
        raise UserValueError(f"a probe needs at least 2 different questions, got {len(set(groups))}")
    generator = torch.Generator().manual_seed(seed)
    mean = states[train].mean(0)
    deviation = states[train].std(0, correction=0)
    # A feature that does not vary has no information. Division by its rounding noise would turn that noise into an
    # input.
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    learned = initial_weights(kind, states.shape[1], hidden_units, generator)
    tensors = {"mean": mean, "std": deviation, **learned}
    weights = class_weights(targets[train]) if balanced else torch.ones(len(DIFFICULTIES))
    if not bool(weights[targets[held_out]].sum() > 0):
        absent = ", ".join(NAMES[int(index)] for index in targets[held_out].unique())
        raise NoProbeError(
            f"the {len(held_out)} validation rows are all {absent}, which none of the {len(train)} training rows is: "
            "collect more questions, or take another seed"
        )
    parameters = list(learned.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    best, best_loss, best_epoch, epoch = [p.detach().clone() for p in parameters], math.inf, 0, 0
    for epoch in range(1, epochs + 1):
        order = train[torch.randperm(len(train), generator=generator).numpy()]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            functional.cross_entropy(logits(tensors, states[batch]), targets[batch], weights).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(functional.cross_entropy(logits(tensors, states[held_out]), targets[held_out], weights))
        if loss < best_loss:
            best, best_loss, best_epoch = [p.detach().clone() for p in parameters], loss, epoch
        elif epoch - best_epoch >= patience:
            break
    if not best_epoch:
        raise UserValueError(
            f"the validation loss was not finite in any of {epoch} epochs with learning_rate {learning_rate:g}: "
            "take a smaller one"
        )
    for parameter, value in zip(parameters, best, strict=True):
        parameter.requires_grad_(False).copy_(value)
    with torch.no_grad():
        temperature = best_temperature(logits(tensors, states[held_out]), targets[held_out])
    metrics = {
        "rows": len(train),
        "validation_rows": len(held_out),
        "epochs": epoch,
        "best_epoch": best_epoch,
        "max_epochs": epochs,
        "learning_rate": learning_rate,
    }
    return Fit(tensors, temperature, metrics)


def split_groups(groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which rows are held out, (N,) bool: `fraction` of the groups, at least one of them and never all.

    Raises:
        ValueError: `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise UserValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    names = sorted(set(groups))  # so that the order of the rows does not matter
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    held_out = {names[i] for i in order[:count]}
    return np.asarray([group in held_out for group in groups], dtype=bool)


def class_weights(targets: Tensor) -> Tensor:
    """Inverse shares, so that every class that occurs has the same total weight; (3,)."""
    counts = torch.bincount(targets, minlength=len(DIFFICULTIES)).float()
    return torch.where(counts > 0, len(targets) / ((counts > 0).sum() * counts.clamp(min=1)), torch.zeros(()))


def best_temperature(values: Tensor, targets: Tensor) -> float:
    """The temperature of logits between 0.05 and 20 with the smallest cross-entropy, to 1 %; a grid cannot diverge."""
    grid = torch.logspace(math.log10(0.05), math.log10(20), 603, dtype=torch.float64)
    losses = torch.stack([functional.cross_entropy(values.double() / t, targets) for t in grid])
    return float(grid[int(losses.argmin())])
