"""The model under a LoRA adapter."""

from __future__ import annotations

from typing import Any


def under_adapter(model: Any) -> Any:
    """The causal language model inside a PEFT model, in which a LoRA adapter acts; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
