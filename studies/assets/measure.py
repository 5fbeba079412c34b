"""What the tiny reasoner can do: accuracy, length and entropy on held-out questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from entropy_rft.entropy import phase_masks
from entropy_rft.sampling import Completion, TransformersSampler, score_completions
from entropy_rft.tasks import DIRECT, STEP_BY_STEP, STOP_EARLY, load_task

MAX_TOKENS = 256
_INSTRUCTIONS = {"none": None, "step_by_step": STEP_BY_STEP, "stop_early": STOP_EARLY, "direct": DIRECT}


def measure(
    model: Any, tokenizer: Any, *, questions: int = 600, samples: int = 8, temperature: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Sample on the test split of `arithmetic`.

    Without an instruction `samples` completions a question give accuracy and pass@`samples`; each instruction gets one
    completion a question.

    Returns:
        For each instruction ("none" first) a dictionary: `accuracy` (0 to 1), `accuracy_by_terms`, `tokens` and
        `tokens_by_terms` (means), `truncated` (fraction), `entropy_thinking` and `entropy_answer` (nats, means over the
        tokens of the phase), and for "none" also `pass@k` and `pass@k_by_terms`.
    """
    return {
        name: _measure(model, tokenizer, instruction, questions, samples if name == "none" else 1, temperature, seed)
        for name, instruction in _INSTRUCTIONS.items()
    }


def _measure(
    model: Any, tokenizer: Any, instruction: str | None, questions: int, samples: int, temperature: float, seed: int
) -> dict[str, Any]:
    task = load_task("arithmetic", split="test", limit=questions, seed=seed, instruction=instruction)
    sampler = TransformersSampler(model, tokenizer, batch_size=384)
    groups = sampler.sample(
        task.dataset["prompt"][:], samples=samples, temperature=temperature, max_tokens=MAX_TOKENS, seed=seed
    )
    levels, solutions = task.dataset["difficulty"][:], task.dataset["solution"][:]
    right = [[_correct(c.text, gold) for c in group] for group, gold in zip(groups, solutions, strict=True)]
    completions = [completion for group in groups for completion in group]
    result: dict[str, Any] = {
        "temperature": temperature,
        "questions": questions,
        "samples": samples,
        "max_tokens": MAX_TOKENS,
        "accuracy": round(fmean(fmean(row) for row in right), 4),
        "accuracy_by_terms": _by_level(levels, [fmean(row) for row in right]),
    }
    if samples > 1:
        result[f"pass@{samples}"] = round(fmean(any(row) for row in right), 4)
        result[f"pass@{samples}_by_terms"] = _by_level(levels, [any(row) for row in right])
    lengths = [fmean(len(completion.token_ids) for completion in group) for group in groups]
    result |= {
        "tokens": round(fmean(lengths), 2),
        "tokens_by_terms": _by_level(levels, lengths),
        "longest": max(len(completion.token_ids) for completion in completions),
        "truncated": round(fmean(completion.truncated for completion in completions), 4),
    }
    return result | _entropies(model, tokenizer, completions[::samples])


def _correct(text: str, gold: str) -> bool:
    """The model's answers are integers in a box, so a comparison of strings is exact and quick."""
    return text.rpartition("</think>")[2].strip() == f"The answer is \\boxed{{{gold}}}."


def _by_level(levels: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    grouped = defaultdict(list)
    for level, value in zip(levels, values, strict=True):
        grouped[level].append(value)
    return {str(level): round(fmean(grouped[level]), 4) for level in sorted(grouped)}


def _entropies(model: Any, tokenizer: Any, completions: list[Completion]) -> dict[str, float]:
    marker = tokenizer.convert_tokens_to_ids(["</think>"])
    phases: tuple[list[float], list[float]] = ([], [])
    for completion, statistics in zip(completions, score_completions(model, completions, batch_size=64), strict=True):
        ids = torch.tensor([completion.token_ids])
        for values, mask in zip(phases, phase_masks(ids, torch.ones_like(ids), marker), strict=True):
            values.extend(statistics.entropy[mask[0]].tolist())
    return {
        name: round(fmean(values), 4) if values else 0.0
        for name, values in zip(("entropy_thinking", "entropy_answer"), phases, strict=True)
    }
