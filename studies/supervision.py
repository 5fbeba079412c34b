"""Supervised training of the embedded models: batches of traces, and the loop over them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from entropy_rft.sampling.progress import progress_bar

Batch = tuple[Tensor, Tensor, Tensor]
"""input_ids, attention_mask and labels, each (B, T); a label of -100 is not learned."""

Conversation = tuple[list[dict[str, str]], str]
"""The messages of a prompt, and the completion."""

_POOL = 16  # batches drawn at once and sorted by length, so that little of a batch is padding


@dataclass(frozen=True)
class SupervisionSettings:
    """How a model is trained: first on drills, which teach single steps, then on whole traces.

    One step is one batch of `batch_size` fresh texts. `learning_rate` is Muon's, for the weight matrices; the
    embeddings and the norms have AdamW at `learning_rate_rest`.
    """

    seed: int = 0
    drill_steps: int = 300
    steps: int = 560
    batch_size: int = 48
    learning_rate: float = 0.02
    learning_rate_rest: float = 3e-3
    warmup_steps: int = 30


def batches(stream: Iterator[Conversation], tokenizer: Any, batch_size: int, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of an endless stream of traces; only completions have labels. `rng` orders the batches."""
    while True:
        pairs = [next(stream) for _ in range(_POOL * batch_size)]
        prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p, _ in pairs]
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer([a + tokenizer.eos_token for _, a in pairs], add_special_tokens=False)["input_ids"]
        rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        pool = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        rng.shuffle(pool)
        for batch in pool:
            yield collate(batch, tokenizer.pad_token_id)


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """(prompt, completion) token ids as a batch, padded on the right; labels are -100 off the completion."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        input_ids[row, :length] = torch.tensor(prompt + answer)
        mask[row, :length] = 1
        labels[row, len(prompt) : length] = torch.tensor(answer)
    return input_ids, mask, labels


def supervise(model: Any, drills: Iterable[Batch], traces: Iterable[Batch], settings: SupervisionSettings) -> float:
    """Supervise `model` in place, on drills and then on traces; returns the mean loss of the last 50 steps.

    The loss is in nats per token.
    """
    total = settings.drill_steps + settings.steps
    optimizers = _optimizers(model, settings)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, settings.warmup_steps))
        for optimizer in optimizers
    ]
    lessons = chain(islice(drills, settings.drill_steps), islice(traces, settings.steps))
    losses: list[float] = []
    model.train()
    with progress_bar("training", total) as advance:
        for input_ids, mask, labels in lessons:
            loss = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(loss.item())
            advance(1, f"loss {losses[-1]:.3f}")
    model.eval()
    return fmean(losses[-50:])


def _optimizers(model: Any, settings: SupervisionSettings) -> list[torch.optim.Optimizer]:
    """Muon needs a fifth of AdamW's steps to learn sums; it is for the hidden layers' matrices only."""
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
    rest = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.learning_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=settings.learning_rate_rest, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate(step: int, total: int, warmup: int) -> float:
    """The learning rate's factor: a warm-up, a plateau of 40 % of the run, then a straight line down to almost 0."""
    return min(1.0, (step + 1) / warmup, max(0.02, (total - step) / (0.6 * total)))
