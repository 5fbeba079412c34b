"""The probe's network: its initial weights, and its formula. Plain tensors, so that it runs without a module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from entropy_rft.difficulty.strategies import DIFFICULTIES
from entropy_rft.errors import UserValueError

KINDS = ("mlp", "linear")


def initial_weights(kind: str, width: int, hidden_units: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Initial weights as in torch's Linear, drawn from `generator`: ``w1``, ``b1``, and for an mlp ``w2``, ``b2``."""
    sizes = [width, hidden_units, len(DIFFICULTIES)] if kind == "mlp" else [width, len(DIFFICULTIES)]
    tensors = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        bound = 1 / math.sqrt(inputs)
        tensors[f"w{number}"] = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound
        tensors[f"b{number}"] = (torch.rand(outputs, generator=generator) * 2 - 1) * bound
    return tensors


def logits(tensors: Mapping[str, Tensor], states: Tensor) -> Tensor:
    """``W2 ReLU(W1 h + b1) + b2``, or ``W1 h + b1`` where there is no second layer; h is standardised; (N, 3)."""
    output = functional.linear((states - tensors["mean"]) / tensors["std"], tensors["w1"], tensors["b1"])
    return functional.linear(output.relu(), tensors["w2"], tensors["b2"]) if "w2" in tensors else output


def checked_states(hidden: Any) -> Tensor:
    """Hidden states as (N, D) float32 on the CPU.

    Raises:
        ValueError: another shape, or a value is NaN or infinite.
    """
    if isinstance(hidden, Tensor):
        states = hidden.detach().to("cpu", torch.float32)
    else:
        states = torch.from_numpy(np.array(hidden, dtype=np.float32))
    if states.ndim == 1:
        states = states[None]
    if states.ndim != 2 or not states.shape[1]:
        raise UserValueError(f"hidden must have the shape (N, D), got {tuple(states.shape)}")
    bad = ~states.isfinite().all(-1)
    if bool(bad.any()):
        raise UserValueError(
            f"hidden has NaN or infinite values in row {int(bad.nonzero()[0])}: check the model's dtype"
        )
    return states
