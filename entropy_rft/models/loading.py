"""A model and its tokenizer from a directory or a hub name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.models.sources import model_source
from entropy_rft.models.tokenizers import load_tokenizer
from entropy_rft.threads import watch

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model_and_tokenizer(
    name: str | os.PathLike[str], *, dtype: str = "auto", device: str | None = None
) -> tuple[Any, Any]:
    """Load a causal language model, or the model under a LoRA adapter together with the adapter.

    Args:
        name: a directory, a name on the hub, ``modulo_reasoner`` or ``tiny_reasoner``, which ship with the package, or
            ``smollm2``, once `entropy-rft fetch smollm2` was run. What looks like a path (it starts with ``.``, ``/``
            or ``~``, or has more than one slash) must exist.
        dtype: "auto" is the dtype the weights were saved in.
        device: ``None`` takes the accelerator when there is one.

    Raises:
        ValueError: the directory does not exist or holds no model, `smollm2` was not fetched, or `dtype` is unknown.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise UserValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    text = model_source(os.fspath(name))
    path = Path(text).expanduser()
    if path.is_dir():
        text = str(path)
        adapter = (path / "adapter_config.json").is_file()
        if not adapter and not (path / "config.json").is_file():
            raise UserValueError(
                f"model {text!r} holds neither config.json nor adapter_config.json: give a saved model"
            )
    elif path.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        # Hub names without an owner ("gpt2") are legacy; a single word that is not a directory is usually a typo.
        raise UserValueError(f"model {text!r} is not a directory here, nor a hub name of the form owner/name")
    else:
        adapter = False
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator is not None else "cpu"
    try:
        if adapter:
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(text, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(text, dtype=dtype)
    except (
        OSError,
        ValueError,
        ImportError,
        SafetensorError,
    ) as error:  # transformers raises OSError for "not found", here and on the hub
        raise UserValueError(f"model {text!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    tokenizer = load_tokenizer(text)
    try:
        return watch(model.to(device)), tokenizer
    except (RuntimeError, AssertionError) as error:  # torch raises these for an unknown or missing device
        raise UserValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
