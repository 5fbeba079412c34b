"""The hidden state of a question, and which model it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_rft.errors import UserValueError
from entropy_rft.models.adapters import under_adapter

_BLOCK = 2**18  # values of a weight that are summed at once, to fit a CPU's cache; fingerprints depend on it


def question_states(model: Any, prompt_ids: Sequence[Sequence[int]], layer: int = -1) -> Tensor:
    """The hidden state of each prompt's last token, where the answer begins.

    One forward pass for each prompt, without batches: batches round differently, and compared with sampling the answers
    this costs little.

    Args:
        model: a causal language model or a PEFT model (LoRA).
        prompt_ids: tokens of each prompt, chat template and generation prompt included.
        layer: as in transformers' `hidden_states`: 0 is the embedding, -1 the last, after the final norm.

    Returns:
        (prompts, D) float32 on the CPU.

    Raises:
        ValueError: the model has no such layer, or a prompt has no tokens.
        FloatingPointError: a state is NaN or infinite.
    """
    model = under_adapter(model)
    index = check_layer(model, layer)
    last = index == model.config.get_text_config().num_hidden_layers
    device = model.get_input_embeddings().weight.device
    was_training = model.training
    model.eval()
    states = []
    try:
        with torch.no_grad():
            for ids in prompt_ids:
                if not ids:
                    raise UserValueError("a prompt has no tokens, so it has no last token")
                inputs = torch.tensor([list(ids)], device=device)
                output = model.base_model(input_ids=inputs, use_cache=False, output_hidden_states=not last)
                hidden = output.last_hidden_state if last else output.hidden_states[index]
                states.append(hidden[0, -1].float().cpu())
    finally:
        model.train(was_training)
    stacked = torch.stack(states) if states else torch.empty(0, model.config.get_text_config().hidden_size)
    if not bool(stacked.isfinite().all()):
        raise FloatingPointError("the model's hidden states are NaN or infinite: check its weights and dtype")
    return stacked


def check_layer(model: Any, layer: int) -> int:
    """The layer's number from 0 (embedding) to the number of layers; raises ValueError when the model has no such
    layer."""
    count = int(model.config.get_text_config().num_hidden_layers)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -count - 1 <= layer <= count:
        raise UserValueError(f"layer must lie between {-count - 1} and {count} for this model, got {layer!r}")
    return layer if layer >= 0 else layer + count + 1


def fingerprint(model: Any, like: str | None = None) -> str:
    """32 hex digits of all of a model's weights: names, shapes and, as float32, every value.

    A model that was moved keeps its fingerprint. A model that was trained further, quantised, or loaded in a smaller
    dtype than it was saved in has another one.

    Args:
        model: a causal language model or a PEFT model (LoRA), whose adapter is included.
        like: a fingerprint that the result is to be compared with. If it is of an earlier version (16 digits, of the
            first 64 values of each parameter), this model's fingerprint of that version is returned.
    """
    model = under_adapter(model)
    if is_old(like):
        return _first_values(model)
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, Tensor) and id(tensor) not in seen:  # tied weights count once
            seen.add(id(tensor))
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(_sums(tensor.detach()).numpy().tobytes())
    return digest.hexdigest()[:32]


def is_old(recorded: str | None) -> bool:
    """Whether a fingerprint is of an earlier version, so that only a model can be compared with it."""
    return recorded is not None and len(recorded) == 16


def _sums(values: Tensor) -> Tensor:
    """One int64 for each `_BLOCK` values, which any change of a single value changes, on the CPU.

    Each is a sum of the values' bits times odd numbers, modulo 2^64. If a single value differs, the sum differs. If
    several values differ, the sums are equal by chance once in 2^64. The sums are computed on the weights' device, and
    only they are copied to the CPU.
    """
    flat = values.reshape(-1)
    factors = _factors().to(flat.device)
    sums = []
    for start in range(0, flat.numel(), _BLOCK):
        block = flat[start : start + _BLOCK]
        own = factors[: len(block)]
        rounded = block.float()
        total = (rounded.view(torch.int32).long() * own).sum()
        if block.dtype == torch.float64:  # the rest below float32; 0 for a float32 model that was loaded as float64
            total += ((block - rounded.double()).view(torch.int64) * own).sum()
        sums.append(total)
    return torch.stack(sums).cpu() if sums else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=1)
def _factors() -> Tensor:
    """Odd int64 numbers, (_BLOCK,), always the same: NumPy guarantees that for a bit generator."""
    return torch.from_numpy(np.random.PCG64(0).random_raw(_BLOCK).astype(np.uint64).view(np.int64) | 1)


def _first_values(model: Any) -> str:
    """The fingerprint of earlier versions."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().reshape(-1)[:64].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def same_model(first: str, second: str) -> bool:
    """Whether two names mean the same model: equal, or the same directory."""
    from entropy_rft.models.sources import model_place

    return first == second or _place(model_place(first)) == _place(model_place(second))


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
