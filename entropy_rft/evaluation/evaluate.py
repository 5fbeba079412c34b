"""Sample a task's questions, score the completions, and summarise."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from entropy_rft.effort import checked_effort
from entropy_rft.evaluation.result import Evaluation, Scores, level_order
from entropy_rft.reporting.estimators import bootstrap_interval, pass_at_k, question_means
from entropy_rft.rewards.pear import pear_penalty, shorter_preferred
from entropy_rft.sampling import ThinkEndMarker, TransformersSampler, right_and_scored, verdicts
from entropy_rft.sampling.identity import digest
from entropy_rft.sampling.records import CompletionRecord, record_completions
from entropy_rft.tags import THINK_END
from entropy_rft.tasks import level_of, task_rows


class TaskLike(Protocol):
    """What an evaluation needs of a task; `entropy_rft.tasks.Task` has it."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def dataset(self) -> Any: ...

    @property
    def reward_funcs(self) -> Any: ...


def evaluate_model(
    model: Any,
    tokenizer: Any,
    task: TaskLike,
    *,
    samples: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
    batch_size: int = 64,
    seed: int = 0,
    think_end_token: str = THINK_END,
    progress: bool = True,
    model_name: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    effort: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Ask `model` every question of `task` `samples` times.

    A completion is right when the task's first reward is above 0. That reward is called as TRL calls it, once, with
    ``prompts``, ``completions``, ``completion_ids`` and every column of the data set, each repeated per sample.

    Args:
        model: a causal language model, with or without a LoRA adapter.
        tokenizer: its tokenizer.
        task: has `dataset`, `reward_funcs`, `name` and `split`.
        samples: completions per question; the k of avg@k.
        temperature: of sampling; 0 is greedy.
        top_p: of sampling.
        max_tokens: limit on one completion, tokens.
        batch_size: completions generated at once. A quarter of that is scored at once, because scoring holds the
            hidden states of whole sequences.
        seed: of sampling.
        think_end_token: the text that ends the thinking, one token or several; a completion without it is all
            thinking.
        progress: show bars, on a terminal.
        model_name: what the result calls the model; by default its directory or hub name.
        chat_template_kwargs: further arguments of the chat template.
        effort: the last four fields of a strategy, as far as they are set, by their names.

    Raises:
        ValueError: an argument is out of range, or the task has no question, no `prompt` column or no reward.
    """
    started = time.perf_counter()
    rows = task_rows(task)
    marker = ThinkEndMarker(tokenizer, think_end_token)
    asked = checked_effort(**(effort or {}))
    sampler = TransformersSampler(
        model,
        tokenizer,
        batch_size=batch_size,
        chat_template_kwargs=chat_template_kwargs,
        think_end_token=think_end_token,
    )
    completions = sampler.sample(
        [row["prompt"] for row in rows],
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        progress=progress,
        **asked,
    )
    right = verdicts(task.reward_funcs[0], rows, completions, marker)
    flat = [completion for group in completions for completion in group]
    records = record_completions(model, flat, marker, max(1, batch_size // 4), progress)
    groups = [
        (verdict, records[start : start + samples])
        for verdict, start in zip(right, range(0, len(records), samples), strict=True)
    ]

    levels = sorted({level for row in rows if (level := level_of(row)) is not None}, key=level_order)
    by_difficulty = {
        str(level): _scores([g for row, g in zip(rows, groups, strict=True) if level_of(row) == level], samples)
        for level in levels
    }
    return Evaluation(
        **vars(_scores(groups, samples)),
        model=model_name or str(getattr(model, "name_or_path", "")) or type(model).__name__,
        task=task.name,
        split=task.split,
        samples=samples,
        settings={
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "think_end_token": think_end_token,
            **asked,
        },
        questions_digest=digest(rows),
        question_means=[_mean_of(verdict) for verdict in right],
        by_difficulty=by_difficulty,
        seconds=time.perf_counter() - started,
    )


def _scores(groups: Sequence[tuple[Sequence[bool | None], Sequence[CompletionRecord]]], samples: int) -> Scores:
    """Summarise the samples of some questions: their rewards and their records."""
    verdict_groups, record_groups = zip(*groups, strict=True)
    records = [record for group in record_groups for record in group]
    counts = [counted for counted in map(right_and_scored, verdict_groups) if counted[1]]
    correct, drawn = [right for right, _ in counts], [scored for _, scored in counts]
    means = question_means(correct, drawn) if drawn else None
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
    passed = {k: [pass_at_k(n, c, k) for n, c in zip(drawn, correct, strict=True) if n >= k] for k in ks}

    preferred = [share for group in groups for share in _prefers_shorter(*group)]

    def total(name: str) -> float:
        return sum(getattr(record, name) for record in records)

    def per_token(entropy: str, tokens: str) -> float | None:
        return total(entropy) / total(tokens) if total(tokens) else None

    count = len(records)
    return Scores(
        questions=len(groups),
        unscorable=sum(verdict is None for group in verdict_groups for verdict in group),
        avg_at_k=None if means is None else float(means.mean()),
        avg_interval=None if means is None else bootstrap_interval(means),
        pass_at_k={k: sum(values) / len(values) for k, values in passed.items() if values},
        tokens=total("tokens") / count,
        thinking_tokens=total("thinking_tokens") / count,
        answer_tokens=total("answer_tokens") / count,
        truncated=total("truncated") / count,
        marker_missing=1 - total("marker") / count,
        entropy=per_token("entropy", "tokens"),
        entropy_thinking=per_token("entropy_thinking", "thinking_tokens"),
        entropy_answer=per_token("entropy_answer", "answer_tokens"),
        pear_prefers_shorter=sum(preferred) / len(preferred) if preferred else None,
    )


def _prefers_shorter(right: Sequence[bool | None], records: Sequence[CompletionRecord]) -> list[float]:
    """Of one question; nothing where it has no two right answers of different length and penalty."""
    rewards = [1 - pear_penalty(*record.phase_entropies) for record in records]
    return shorter_preferred([0] * len(records), right, rewards, [record.tokens for record in records])


def _mean_of(verdict: Sequence[bool | None]) -> float | None:
    right, scored = right_and_scored(verdict)
    return right / scored if scored else None
