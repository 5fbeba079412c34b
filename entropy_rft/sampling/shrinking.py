"""Generation in which the completions that have ended leave the batch, so that the longest one runs alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from entropy_rft.models.cache_name import cache_name

SLICE_TOKENS = 16  # between two checks for ended rows: a check costs about as much as one token


@contextmanager
def shrinking_generation(model: Any) -> Iterator[None]:
    """Inside the block, the model's `generate` is :func:`generate_shrinking`."""
    model = _uncompiled(model)
    model.generate = partial(generate_shrinking, model)  # an attribute of the instance overrides the class's method
    try:
        yield
    finally:
        del model.generate


def generate_shrinking(
    model: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    generation_config: Any,
    on_shrink: Callable[[Tensor], None] | None = None,
    **further: Any,
) -> Tensor:
    """`model.generate`, called for a few tokens at a time; between two calls the ended rows are removed.

    A row's tokens are those of one long call, up to the rounding of batched matrix products. A sampling that draws from
    the global random state gets other numbers, because it draws for fewer rows.

    Args:
        model: a transformers model, or a PEFT model whose `generate` passes its arguments on.
        input_ids: ``(B, P)``, padded on the left.
        attention_mask: ``(B, P)``.
        generation_config: has `max_new_tokens`, `pad_token_id` and `eos_token_id`; nothing in it may count tokens from
            the end of the prompt (`min_new_tokens`) or name a cache of its own.
        on_shrink: called with the rows that stay, ``(b,)`` indices into those of the last call.
        further: arguments of `generate`.

    Returns:
        ``(B, P + T)`` with T at most `max_new_tokens`: prompts and completions, padded on the right.
    """
    model = _uncompiled(model)
    generate = type(model).generate  # the instance's `generate` may be this function (see above)
    limit, eos = generation_config.max_new_tokens, generation_config.eos_token_id
    ends = torch.tensor([] if eos is None else [eos] if isinstance(eos, int) else eos, device=input_ids.device)
    pad = 0 if generation_config.pad_token_id is None else generation_config.pad_token_id
    completions = input_ids.new_full((input_ids.shape[0], limit), pad)
    rows = torch.arange(input_ids.shape[0], device=input_ids.device)
    prompts, cache, written = input_ids, None, 0
    while written < limit:
        config = copy.copy(generation_config)
        config.max_new_tokens = min(SLICE_TOKENS, limit - written)
        config.return_dict_in_generate = True
        result = generate(
            model,
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=config,
            **({} if cache is None else {cache_name(): cache}),
            **further,
        )
        new = result.sequences[:, input_ids.shape[1] :]
        completions[rows, written : written + new.shape[1]] = new
        written += new.shape[1]
        staying = (~torch.isin(new, ends).any(1)).nonzero()[:, 0]
        if len(staying) == 0:
            break
        input_ids, cache = result.sequences, getattr(result, cache_name(), None)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(new.shape)], dim=1)
        if len(staying) < len(rows):
            input_ids, attention_mask, rows = input_ids[staying], attention_mask[staying], rows[staying]
            if cache is not None:  # a model without a cache processes all tokens again
                # Not `batch_select_indices`: layers of linear attention have only this, which every kind of layer has.
                cache.reorder_cache(staying)
            if on_shrink is not None:
                on_shrink(staying)
    return torch.cat([prompts, completions[:, :written]], dim=1)


def _uncompiled(model: Any) -> Any:
    """The module inside one of `torch.compile`, whose class has no `generate`."""
    return getattr(model, "_orig_mod", model)
