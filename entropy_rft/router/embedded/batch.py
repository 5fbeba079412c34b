"""Completions that are generated together, one token each per step; any may join or leave between two steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from entropy_rft.models.cache_name import cache_name


@dataclass(slots=True, eq=False)
class Row:
    """One completion.

    Attributes:
        prompt_ids: the prompt's tokens.
        random: its own stream of random numbers, so that the other rows have no effect.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens that holds this probability.
        top_k: and from at most this many tokens; 0 is no limit.
        top_logprobs: alternatives to report for each token; ``None`` reports no log-probabilities.
        token_ids: written so far.
    """

    prompt_ids: list[int]
    random: random.Random
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    top_logprobs: int | None = None
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (nats, of the model's own distribution) of a token and of the likeliest ones."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class DecodingBatch:
    """The rows with their keys and values, padded on the left to one length.

    Args:
        model: a causal language model with full attention in every layer.
        pad_token_id: any token.
    """

    def __init__(self, model: Any, pad_token_id: int = 0) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._pad = pad_token_id
        self._keys_values: list[tuple[Tensor, Tensor]] = []  # of each layer, (rows, heads, T, width)
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # (rows, T)

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> list[TokenLogprobs | None]:
        """Add rows, process their prompts and generate the first token of each.

        Raises:
            FloatingPointError: the model's logits are not finite.
        """
        width = max(len(row.prompt_ids) for row in rows)
        input_ids = torch.tensor([[self._pad] * (width - len(row.prompt_ids)) + row.prompt_ids for row in rows])
        mask = torch.tensor([[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, keys_values = self._forward(input_ids, mask, positions, [])
        written = _write(rows, logits)
        if not self.rows:
            self.rows, self._mask, self._keys_values = list(rows), mask, keys_values
        else:
            total = max(width, self._mask.shape[1])
            self._keys_values = [
                (_stacked(old_keys, new_keys, total), _stacked(old_values, new_values, total))
                for (old_keys, old_values), (new_keys, new_values) in zip(self._keys_values, keys_values, strict=True)
            ]
            self._mask = torch.cat([pad(m, (total - m.shape[1], 0)) for m in (self._mask, mask)])
            self.rows += rows
        return written

    @torch.inference_mode()
    def step(self) -> list[TokenLogprobs | None]:
        """Generate one more token of every row.

        Raises:
            FloatingPointError: the model's logits are not finite.
        """
        input_ids = torch.tensor([[row.token_ids[-1]] for row in self.rows])
        positions = torch.tensor([[len(row.prompt_ids) + len(row.token_ids) - 1] for row in self.rows])
        self._mask = pad(self._mask, (0, 1), value=1)
        logits, self._keys_values = self._forward(input_ids, self._mask, positions, self._keys_values)
        return _write(self.rows, logits)

    def keep(self, rows: Sequence[Row]) -> None:
        """Remove all other rows, and the padding that only they needed."""
        kept = [index for index, row in enumerate(self.rows) if row in rows]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not kept:
            self._keys_values, self._mask = [], torch.zeros(0, 0, dtype=torch.long)
            return
        chosen = torch.tensor(kept)
        mask = self._mask[chosen]
        start = int(mask.argmax(-1).min())
        self._mask = mask[:, start:]
        self._keys_values = [
            (keys[chosen.to(keys.device), :, start:], values[chosen.to(values.device), :, start:])
            for keys, values in self._keys_values
        ]

    def _forward(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits of the last position, (rows, V) float32 on the CPU, and the keys and values."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        device = self.model.get_input_embeddings().weight.device
        output = self.model(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(): cache},
        )
        logits = output.logits[:, -1].float().cpu()
        if not bool(logits.amax(-1).isfinite().all()) or bool(logits.isnan().any()):
            raise FloatingPointError("the model's logits are NaN or infinite: check its weights and dtype")
        return logits, [(layer.keys, layer.values) for layer in output[cache_name()].layers]


def _stacked(old: Tensor, new: Tensor, total: int) -> Tensor:
    return torch.cat([pad(part, (0, 0, total - part.shape[2], 0)) for part in (old, new)])


def _write(rows: Sequence[Row], logits: Tensor) -> list[TokenLogprobs | None]:
    tokens = choose_tokens(logits, rows)
    for row, token in zip(rows, tokens, strict=True):
        row.token_ids.append(token)
    if all(row.top_logprobs is None for row in rows):
        return [None] * len(rows)
    logprobs = logits.log_softmax(-1)
    found: list[TokenLogprobs | None] = []
    for row, token, own in zip(rows, tokens, logprobs, strict=True):
        if row.top_logprobs is None:
            found.append(None)
            continue
        best = own.topk(row.top_logprobs)
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        found.append(TokenLogprobs(token, float(own[token]), top))
    return found


def choose_tokens(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Choose a token for each row by the row's own settings; logits (rows, V)."""
    greedy = logits.argmax(-1).tolist()
    if all(row.temperature == 0 for row in rows):
        return greedy
    # float64: rounding in a float32 sum over 150,000 tokens would shift the tail's probabilities.
    temperatures = torch.tensor([row.temperature or 1.0 for row in rows], dtype=torch.float64)
    probabilities = (logits.double() / temperatures[:, None]).softmax(-1)
    if any(row.top_p < 1 or row.top_k for row in rows):
        ordered, indices = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # of the likelier tokens: the first one always stays
        top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float64)
        vocabulary = logits.shape[-1]
        top_k = torch.tensor([row.top_k or vocabulary for row in rows])
        dropped = (before >= top_p[:, None]) | (torch.arange(vocabulary) >= top_k[:, None])
        probabilities = probabilities.scatter(-1, indices, ordered.masked_fill(dropped, 0))
    cdf = probabilities.cumsum(-1)
    uniforms = torch.tensor([0.0 if row.temperature == 0 else row.random.random() for row in rows], dtype=torch.float64)
    # The first index whose CDF exceeds the target: a token of probability 0 never is.
    picked = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True).clamp_(max=cdf.shape[-1] - 1)
    return [
        own if row.temperature == 0 else token
        for row, own, token in zip(rows, greedy, picked[:, 0].tolist(), strict=True)
    ]
