"""The name of the key-value cache among a model's arguments and outputs: newer transformers warn about the old one."""

from __future__ import annotations

import functools
from dataclasses import fields


@functools.cache
def cache_name() -> str:
    """``"cache"``, or ``"past_key_values"`` before transformers renamed it."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    old = "past_key_values"
    return old if old in {field.name for field in fields(CausalLMOutputWithPast)} else "cache"
