"""One sentence under the demo's table: what to look at, computed from the table's own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from entropy_rft.evaluation import Evaluation
from entropy_rft.evaluation.result import Scores
from entropy_rft.reporting.estimators import paired_difference


def verdict(rows: Sequence[tuple[str, Evaluation]]) -> str | None:
    """What the methods did better and worse than the first one, and where a difference is within the noise.

    The noise is that of the questions. That another training seed differs too cannot be seen in one run of each method,
    so the sentence says it.

    Args:
        rows: the trained methods, the baseline first.

    Returns:
        The sentence; ``None`` while there is nothing to compare.
    """
    if len(rows) < 2:
        return None
    baseline, grpo = rows[0]
    found = [_compared(title, evaluation, baseline, grpo) for title, evaluation in rows[1:]]
    text = "; ".join(part for part, _ in found)
    if not any(better for _, better in found):
        text += f". Nothing here is clearly better than {baseline}: with these settings, use {baseline}"
    return f"What to look at: {text}. Each is one run: another seed may differ by several points."


def _compared(title: str, own: Evaluation, baseline: str, grpo: Evaluation) -> tuple[str, bool]:
    """A clause about one method, and whether it is above the baseline in anything."""
    parts: list[str] = []
    better = False  # more entropy alone is no gain
    if own.entropy is not None and grpo.entropy:
        parts.append(f"{own.entropy / grpo.entropy:.1f} times {baseline}'s entropy")
    if own.thinking_tokens and grpo.thinking_tokens:
        change = own.thinking_tokens / grpo.thinking_tokens - 1
        better |= change <= -_SHORTER
        parts.append(f"{100 * abs(change):.0f} % {'fewer' if change < 0 else 'more'} thinking tokens")
    if own.hardest is not None and grpo.hardest is not None:
        (level, ours), (_, theirs) = own.hardest, grpo.hardest
        k = max(set(ours.pass_at_k) & set(theirs.pass_at_k), default=None)
        if k is not None:
            points = 100 * (ours.pass_at_k[k] - theirs.pass_at_k[k])
            reach = 100 * _SIGMAS * math.hypot(_error(ours, k), _error(theirs, k))
            better |= points > reach
            parts.append(f"pass@{k} at level {level} {points:+.1f} points{_within(abs(points) <= reach)}")
    if own.questions_digest == grpo.questions_digest and any(mean is not None for mean in own.question_means):
        value, low, high = (100 * x for x in paired_difference(grpo.question_means, own.question_means))
        better |= low > 0
        parts.append(f"avg@{own.samples} {value:+.1f} points{_within(low <= 0 <= high)}")
    return f"{title} has " + ", ".join(parts), better


def _within(noise: bool) -> str:
    return " (within the noise)" if noise else ""


def _error(scores: Scores, k: int) -> float:
    """The standard error of pass@k over questions, as if each were solved or not: the most that it can be."""
    share = scores.pass_at_k[k]
    return math.sqrt(share * (1 - share) / max(1, scores.questions))


_SIGMAS = 1.96  # both sides of a 95 % interval
_SHORTER = 0.05  # fewer thinking tokens, as a fraction
