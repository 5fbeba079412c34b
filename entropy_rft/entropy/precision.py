"""The precision of sums over many tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> torch.dtype:
    """float64 where the device of `values` has it, which MPS has not: sums over a batch need more than 24 bits."""
    return torch.float32 if values.device.type == "mps" else torch.float64
