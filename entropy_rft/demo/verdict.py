"""One sentence under the demo's table: what to look at, computed from the table's own numbers."""

from __future__ import annotations

from collections.abc import Sequence

from entropy_rft.evaluation import Evaluation
from entropy_rft.reporting.estimators import paired_difference


def verdict(rows: Sequence[tuple[str, Evaluation]]) -> str | None:
    """What the methods did better and worse than the first one, and where a difference is within the noise.

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
        return f"What to look at: {text}. Nothing here is better than {baseline}: with these settings, use {baseline}."
    return f"What to look at: {text}."


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
    hardest = (own.hardest, grpo.hardest)
    if hardest[0] is not None and hardest[1] is not None:
        k = max(set(hardest[0][1].pass_at_k) & set(hardest[1][1].pass_at_k))
        points = 100 * (hardest[0][1].pass_at_k[k] - hardest[1][1].pass_at_k[k])
        better |= points > 0
        parts.append(f"pass@{k} at level {hardest[0][0]} {points:+.1f} points")
    if own.questions_digest == grpo.questions_digest and any(mean is not None for mean in own.question_means):
        value, low, high = (100 * x for x in paired_difference(grpo.question_means, own.question_means))
        better |= low > 0
        within = " (within the noise)" if low <= 0 <= high else ""
        parts.append(f"avg@{own.samples} {value:+.1f} points{within}")
    return f"{title} has " + ", ".join(parts), better


_SHORTER = 0.05  # fewer thinking tokens, as a fraction
