"""Models of other sizes, made from scratch by the maker of the tiny reasoner: its tokenizer, texts and training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from entropy_rft.errors import UserValueError
from entropy_rft.models.sources import model_source
from entropy_rft.suggestions import did_you_mean
from studies.assets import make
from studies.methods.plan import Plan


@dataclass(frozen=True)
class Size:
    """Of a Qwen3 and of its training; the defaults are the tiny reasoner's.

    Attributes:
        drill_steps, steps, batch_size, learning_rate, seed: of :class:`studies.assets.make.ModelSettings`.
    """

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    drill_steps: int = 300
    steps: int = 560
    batch_size: int = 48
    learning_rate: float = 0.02
    seed: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Size:
        """From a plan.

        Raises:
            ValueError: for an unknown key.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UserValueError(f"model.make: unknown key {name!r}{did_you_mean(name, known)}")
        return cls(**options)


def build_model(size: Size, tokenizer: Any) -> Any:
    """A randomly initialised Qwen3 of that size."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.head_dim,
        max_position_embeddings=make.MAX_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(size.seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **ids)
    return model


def make_model(output: Path, options: Mapping[str, Any], device: str | None = None) -> int:
    """Make the model in `output`, on the GPU if there is one; returns the number of its parameters."""
    size = Size.of(options)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = make.make_tokenizer(size.seed)
    model = build_model(size, tokenizer).to(device)

    def to_device(module: Any, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}

    hook = model.register_forward_pre_hook(to_device, with_kwargs=True)  # the batches are made on the CPU
    recipe = make.ModelSettings(
        seed=size.seed,
        drill_steps=size.drill_steps,
        steps=size.steps,
        batch_size=size.batch_size,
        learning_rate=size.learning_rate,
    )
    make.train(model, tokenizer, recipe)
    hook.remove()
    output.mkdir(parents=True, exist_ok=True)
    model.cpu().save_pretrained(output)
    tokenizer.save_pretrained(output)
    return sum(parameter.numel() for parameter in model.parameters())


def identified(plan: Plan) -> Plan:
    """The plan with its model's weights named by their digest, so that results of other weights are not mistaken for
    its results.

    A model that the plan says how to make is named by that.

    Raises:
        ValueError: the plan names no model, or one that cannot be made.
    """
    if "make" in plan.model:
        Size.of(plan.model["make"])
        return plan
    if "name" not in plan.model:
        raise UserValueError(f"study {plan.name!r}: model must have name or make, got {dict(plan.model)}")
    files = sorted(Path(model_source(plan.model["name"])).expanduser().glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    return replace(plan, model={**plan.model, "weights": digest}) if files else plan
