"""Token statistics of existing completions, in one pass through the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from entropy_rft.entropy import TokenStatistics, fused_token_statistics
from entropy_rft.entropy.statistics import check_temperature
from entropy_rft.errors import UserValueError
from entropy_rft.models.adapters import under_adapter
from entropy_rft.sampling.completion import Completion


def score_completions(
    model: Any, completions: Sequence[Completion], *, temperature: float = 1.0, batch_size: int = 16
) -> list[TokenStatistics]:
    """Log-probability, entropy and discriminant of every completion token under `model`.

    The backbone runs once. Only the hidden states that predict a completion token go through the LM head, and the
    logits of the whole vocabulary are never stored.

    Args:
        model: a causal language model or a PEFT model (LoRA). Evaluation mode is set for the pass and then restored.
        completions: each with its prompt.
        temperature: divides the logits; 1 is the model's own distribution.
        batch_size: completions in one pass.

    Returns:
        For each completion its statistics: float32 CPU tensors of the length of its `token_ids`; nats.

    Raises:
        ValueError: `temperature` or `batch_size` is out of range, or a completion has no prompt tokens, or a token
            that is not in this model's vocabulary.
    """
    check_temperature(temperature)
    if batch_size < 1:
        raise UserValueError(f"batch_size must be at least 1, got {batch_size}")
    for index, completion in enumerate(completions):
        if not completion.prompt_ids:
            raise UserValueError(f"completion {index} has no prompt_ids: nothing predicts its first token")
    model = under_adapter(model)
    vocabulary = vocabulary_size(model)
    for index, completion in enumerate(completions):
        for name, ids in (("prompt_ids", completion.prompt_ids), ("token_ids", completion.token_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                wrong = next(i for i in ids if not 0 <= i < vocabulary)
                raise UserValueError(
                    f"completion {index} has the token {wrong} in its {name}, but this model's vocabulary is 0 to "
                    f"{vocabulary - 1}: score it with the model that wrote it"
                )
    order = sorted(range(len(completions)), key=lambda i: -_length(completions[i]))
    results: dict[int, TokenStatistics] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            head = _head(model)
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                scored = _score_batch(model, head, [completions[i] for i in batch], temperature)
                results.update(zip(batch, scored, strict=True))
    finally:
        model.train(was_training)
    return [results[i] for i in range(len(completions))]


def vocabulary_size(model: Any) -> int:
    """Number of tokens that a model has as input and as output; padding may make it larger than its tokenizer's."""
    return int(min(model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0]))


def _length(completion: Completion) -> int:
    return len(completion.prompt_ids) + len(completion.token_ids)


def _score_batch(
    model: Any, head: dict[str, Any], batch: list[Completion], temperature: float
) -> list[TokenStatistics]:
    device = model.get_input_embeddings().weight.device
    lengths = [len(completion.token_ids) for completion in batch]
    width = max(map(_length, batch))
    input_ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros(len(batch), width, dtype=torch.bool)  # positions whose hidden state predicts a token
    for row, completion in enumerate(batch):
        ids = completion.prompt_ids + completion.token_ids
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        predicts[row, len(completion.prompt_ids) - 1 : len(ids) - 1] = True
    hidden = model.base_model(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False
    ).last_hidden_state
    hidden = hidden[predicts.to(hidden.device)].to(head["weight"].device)  # (tokens of the batch, D), row by row
    token_ids = torch.tensor([token for completion in batch for token in completion.token_ids], dtype=torch.long)
    statistics = fused_token_statistics(hidden, token_ids=token_ids.to(hidden.device), temperature=temperature, **head)
    fields = (statistics.log_prob, statistics.entropy, statistics.expected_discriminant)
    return [TokenStatistics(*parts) for parts in zip(*(field.cpu().split(lengths) for field in fields), strict=True)]


def _head(model: Any) -> dict[str, Any]:
    """The LM head as `fused_token_statistics` takes it."""
    head = _merged(model.get_output_embeddings())
    config = model.config.get_text_config()
    return {
        "weight": head.weight,
        "bias": getattr(head, "bias", None),
        "logit_softcap": getattr(config, "final_logit_softcapping", None),
        "logit_scale": _logit_scale(config),
    }


def _merged(head: Any) -> Any:
    """The head as one matrix and a bias, which is what the kernel takes: an adapter on it is merged into a copy.

    PEFT's own merge is used, because it is right for every kind (DoRA rescales rows, `lora_bias` adds to the bias).
    """
    if not (hasattr(head, "merge") and hasattr(head, "get_base_layer")):
        return head
    if head.merged or head.disable_adapters:
        return head.get_base_layer()
    layer = copy.deepcopy(head)
    base = layer.get_base_layer()
    if getattr(base, "bias", None) is None:  # `lora_bias` merges into a bias only
        base.bias = torch.nn.Parameter(base.weight.new_zeros(base.weight.shape[0]), requires_grad=False)
    layer.merge()
    return base


def _logit_scale(config: Any) -> float:
    """What the model multiplies its logits by; each family names it differently (the list is TRL's)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)
