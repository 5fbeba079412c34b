"""The tokens of an update with the most extreme predicted change, as text with their context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from entropy_rft.entropy.lens import OTHER
from entropy_rft.entropy.phases import PHASES
from entropy_rft.entropy.rules.whole_batch import WholeBatch
from entropy_rft.training.micro_batch import loss_mask

CONTEXT = 20
"""Tokens before and after an extreme one."""
_NAMES = (*PHASES, OTHER)


def extreme_tokens(
    batch: WholeBatch,
    change: Tensor,
    phases: Tensor,
    dropped: Tensor,
    inputs: Sequence[Mapping[str, Any]],
    count: int,
    tokenizer: Any,
    group: dist.ProcessGroup | None,
) -> list[dict[str, Any]]:
    """The `count` tokens of all processes with the most negative and the `count` with the most positive change.

    Args:
        batch: the valid tokens that this process holds, a row of N.
        change: their predicted changes, ``(N,)``.
        phases: their phases, ``(N,)``, as in :func:`~entropy_rft.entropy.lens.lens_batch`.
        dropped: whether the rule drops them, ``(N,)``.
        inputs: the micro-batches that they come from.
        count: at least 1.
        tokenizer: decodes them; special tokens are written out.
        group: the processes that hold the other parts of the batch.

    Returns:
        From the most negative to the most positive one, the same on every process. The text before a token may reach
        into the prompt.
    """
    chosen = batch.most_extreme(-change, change < 0, count) | batch.most_extreme(change, change > 0, count)
    statistics = batch.statistics
    columns = {
        "change": change,
        "advantage": batch.advantages,
        "probability": statistics.log_prob.exp(),
        "entropy": statistics.entropy,
        "discriminant": statistics.discriminant,
        "phase": phases,
        "dropped": dropped,
    }
    numbers = {name: column[chosen].tolist() for name, column in columns.items()}
    places = _places(inputs, chosen)
    own = [
        {
            **dict(zip(numbers, row, strict=True)),
            "phase": _NAMES[row[list(numbers).index("phase")]],
            **_context(inputs[micro], index, position, tokenizer),
        }
        for row, (micro, index, position) in zip(zip(*numbers.values(), strict=True), places, strict=True)
    ]
    return sorted(_gathered(own, group), key=lambda entry: entry["change"])


def _places(inputs: Sequence[Mapping[str, Any]], chosen: Tensor) -> list[tuple[int, int, int]]:
    """Micro-batch, row and position in the completion of the chosen ones of all valid tokens."""
    places, start = [], 0
    for micro, each in enumerate(inputs):
        valid = (loss_mask(each) != 0).nonzero()
        places += [(micro, *place) for place in valid[chosen[start : start + len(valid)]].tolist()]
        start += len(valid)
    return places


def _context(inputs: Mapping[str, Any], row: int, position: int, tokenizer: Any) -> dict[str, str]:
    prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row] != 0].tolist()
    # The tokens that the loss does not count (a tool's output) are part of the text too.
    end = int(inputs["completion_mask"][row].nonzero().max()) + 1
    ids = inputs["completion_ids"][row, :end].tolist()
    before = (prompt + ids[:position])[-CONTEXT:]
    parts = {"before": before, "token": ids[position : position + 1], "after": ids[position + 1 :][:CONTEXT]}
    return {name: str(tokenizer.decode(part, skip_special_tokens=False)) for name, part in parts.items()}


def _gathered(entries: list[dict[str, Any]], group: dist.ProcessGroup | None) -> list[dict[str, Any]]:
    if group is None:
        return entries
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, entries, group=group)
    return [entry for part in parts for entry in part]
