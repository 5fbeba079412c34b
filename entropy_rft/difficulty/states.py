"""The hidden state of a question, and which model it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def question_states(model: Any, prompt_ids: Sequence[Sequence[int]], layer: int = -1) -> Tensor:
    """The hidden state of each prompt's last token, where the answer begins.

    One plain forward a prompt: batches round differently, and next to sampling the answers this costs nothing.

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
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
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
                    raise ValueError("a prompt has no tokens, hence no last one")
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
    """The layer's number from 0 (embedding) to the number of layers; raises ValueError when there is none such."""
    count = int(model.config.get_text_config().num_hidden_layers)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -count - 1 <= layer <= count:
        raise ValueError(f"layer must lie between {-count - 1} and {count} for this model, got {layer!r}")
    return layer if layer >= 0 else layer + count + 1


def fingerprint(model: Any) -> str:
    """16 hex digits of a model's weights: shapes, and the first values of each, as float32.

    A model that was moved has the same one; one that was trained further, quantised or loaded in a smaller dtype than
    it was saved in has another.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().reshape(-1)[:64].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def same_model(first: str, second: str) -> bool:
    """Whether two names mean the same model: equal, or the same directory."""
    from entropy_rft.assets import model_source

    return first == second or _place(model_source(first)) == _place(model_source(second))


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
