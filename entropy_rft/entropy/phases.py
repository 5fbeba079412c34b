"""Where a completion stops thinking and starts answering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

PHASES = ("thinking", "answer")
"""The phases of a completion; the marker's own tokens, and any others, are "other"."""


def phase_masks(
    completion_ids: Int[Tensor, "batch time"], mask: Shaped[Tensor, "batch time"], think_end_ids: Sequence[int]
) -> tuple[Bool[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """The thinking and the answer phase of each completion (PEAR, arXiv 2510.08026).

    The first occurrence of the marker ``</think>`` whose tokens are all valid ends the thinking. Tokens before it are
    thinking, tokens after it are the answer, and the marker's own tokens belong to neither. Without a marker
    everything is thinking.

    Args:
        completion_ids: ``(B, T)`` token ids.
        mask: ``(B, T)``, nonzero = valid (no padding, no tool output).
        think_end_ids: the marker's token ids, one or several.

    Returns:
        Two bool tensors ``(B, T)``; both are False outside `mask`.

    Raises:
        TypeError: for a single id instead of a sequence.
        ValueError: for an empty marker or shapes that differ.
    """
    if isinstance(think_end_ids, int):
        raise TypeError(f"think_end_ids must be a sequence of token ids, got {think_end_ids!r}")
    marker = [int(token) for token in think_end_ids]
    if not marker:
        raise ValueError("think_end_ids is empty: give the token ids of the marker, such as those of '</think>'")
    if completion_ids.dim() != 2 or completion_ids.shape != mask.shape:
        raise ValueError(
            f"completion_ids and mask must both be (B, T), got {tuple(completion_ids.shape)} and {tuple(mask.shape)}"
        )
    valid = mask != 0
    batch, length = completion_ids.shape
    if length < len(marker):
        return valid, torch.zeros_like(valid)
    starts = torch.ones(batch, length - len(marker) + 1, dtype=torch.bool, device=completion_ids.device)
    for offset, token in enumerate(marker):
        window = slice(offset, offset + starts.shape[1])
        starts &= (completion_ids[:, window] == token) & valid[:, window]
    found = starts.any(1, keepdim=True)
    # argmax of equal values gives the first, so this is the first True.
    first = torch.where(found, starts.int().argmax(1, keepdim=True), length)
    position = torch.arange(length, device=completion_ids.device).unsqueeze(0)
    return valid & (position < first), valid & (position >= first + len(marker))
