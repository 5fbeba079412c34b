"""avg@k and pass@k from repeated samples of a question, and how certain the average is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entropy_rft.errors import UserValueError


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of `k` samples of a question is right.

    ``1 - C(n-c, k) / C(n, k)`` (arXiv 2107.03374), as a product, so that no binomial overflows.

    Args:
        n: samples drawn of the question.
        c: how many of them are right.
        k: at most n.

    Raises:
        ValueError: unless ``0 <= c <= n`` and ``1 <= k <= n``.
    """
    if not 0 <= c <= n:
        raise UserValueError(f"c must lie between 0 and n = {n}, got {c}")
    if not 1 <= k <= n:
        raise UserValueError(f"k must lie between 1 and n = {n}, got {k}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def avg_at_k(correct: Sequence[int], drawn: Sequence[int]) -> float:
    """Mean over questions of the fraction of right samples; each question weighs the same.

    Args:
        correct: right samples of each question.
        drawn: samples of each question, all above 0.

    Raises:
        ValueError: no question, lengths that differ, or counts out of range.
    """
    return float(np.mean(question_means(correct, drawn)))


def question_means(correct: Sequence[int], drawn: Sequence[int]) -> np.ndarray:
    """The fraction of right samples of each question, (questions,); raises as :func:`avg_at_k`."""
    if len(correct) != len(drawn) or not len(drawn):
        raise UserValueError(
            f"correct and drawn must name the same questions, got {len(correct)} and {len(drawn)} of them"
        )
    for c, n in zip(correct, drawn, strict=True):
        if not 0 <= c <= n or n < 1:
            raise UserValueError(f"a question has {c} right samples of {n}")
    return np.asarray(correct, dtype=np.float64) / np.asarray(drawn, dtype=np.float64)


def bootstrap_interval(
    means: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over questions.

    Whole questions are drawn with replacement, since the samples of one question are similar: counting them as
    independent would make the interval far too narrow. It answers "how would another draw of questions score?".

    When everything is right or everything is wrong, resampling sees no spread at all; then the open end is the exact
    bound ``1 - tail^(1/questions)`` away: if a question scores above 0 with probability p, then n questions are all
    wrong with probability ``(1-p)^n``, and the true mean is at most p. Questions that share any other mean, a single
    one for instance, give a point, which says nothing about the uncertainty.

    Args:
        means: one mean per question, (questions,), each between 0 and 1.
        confidence: between 0 and 1.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        (low, high).

    Raises:
        ValueError: no question, or an argument out of range.
    """
    values = np.asarray(means, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise UserValueError(f"means must be one number per question, got the shape {values.shape}")
    if not (values.min() >= 0 and values.max() <= 1):
        raise UserValueError(f"means must lie between 0 and 1, got {values.min()} to {values.max()}")
    _check(confidence, resamples)
    tail = (1 - confidence) / 2
    reach = 1 - tail ** (1 / len(values))
    if values.max() == 0:
        return 0.0, reach
    if values.min() == 1:
        return 1 - reach, 1.0
    return _percentiles(values, tail, resamples, seed)


def paired_difference(
    first: Sequence[float | None],
    second: Sequence[float | None],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How much better `second` did than `first` on the same questions, with a bootstrap interval over questions.

    Hard questions are hard for both, so the difference is far more precise than either average: overlapping intervals
    of two averages do not mean that they are equal.

    Args:
        first: one mean per question, ``None`` where nothing could be scored; those questions are left out.
        second: the same for the other model, question by question.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: lengths that differ, no question in common, or an argument out of range.
    """
    if len(first) != len(second):
        raise UserValueError(f"the two models answered {len(first)} and {len(second)} questions, not the same ones")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        raise UserValueError("no question was scored for both models")
    _check(confidence, resamples)
    values = np.asarray([b - a for a, b in pairs], dtype=np.float64)
    return float(values.mean()), *_percentiles(values, (1 - confidence) / 2, resamples, seed)


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise UserValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < 1:
        raise UserValueError(f"resamples must be at least 1, got {resamples}")


def _percentiles(values: np.ndarray, tail: float, resamples: int, seed: int) -> tuple[float, float]:
    """The `tail` and ``1 - tail`` quantiles of the mean of resampled `values`, (questions,)."""
    generator = np.random.default_rng(seed)
    rows = max(1, min(resamples, 4_000_000 // len(values)))  # 32 MB of indices at a time
    averages = [
        values[generator.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(averages), [tail, 1 - tail])
    return float(low), float(high)
