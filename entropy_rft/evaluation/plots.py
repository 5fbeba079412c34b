"""The report's plots, as inline SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entropy_rft.evaluation.result import Evaluation, Scores, level_order
from entropy_rft.evaluation.run import Run
from entropy_rft.reporting.figures import DASHES, INK, colour, new_figure, svg_text


@dataclass(frozen=True)
class Curve:
    """A figure over training steps: one or two metrics (the second is dashed) of every run.

    Attributes:
        title: what the figure shows.
        unit: of the vertical axis.
        metrics: pairs of a metric's name and its name in the legend.
        scale: factor on the values, 100 for a fraction shown in percent.
        zero: draw a line at 0, for a quantity whose sign matters.
    """

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    scale: float = 1.0
    zero: bool = False


CURVES = (
    Curve("Entropy", "nats per token", (("entropy", "all tokens"),)),
    Curve("Entropy by phase", "nats per token", (("entropy/thinking", "thinking"), ("entropy/answer", "answer"))),
    Curve("Reward", "mean over completions", (("reward", "reward"),)),
    Curve("Thinking length", "mean tokens", (("completions/thinking_length", "thinking"),)),
    Curve("Completion length", "mean tokens", (("completions/mean_length", "completion"),)),
    Curve(
        "Dropped by entropy clipping",
        "% of tokens",
        (
            ("entropy_clip/dropped_negative", "advantage below 0"),
            ("entropy_clip/dropped_positive", "advantage above 0"),
        ),
        scale=100.0,
    ),
    Curve(
        "Predicted entropy change",
        "nats, per unit step",
        (("entropy/predicted_change", "predicted"),),
        zero=True,
    ),
    Curve("PEAR penalty", "nats", (("pear/penalty", "penalty"),)),
    Curve("Truncated completions", "% of completions", (("completions/clipped_ratio", "truncated"),), scale=100.0),
    Curve("Gradient norm", "before clipping", (("grad_norm", "gradient norm"),)),
)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a twentieth of the points; at the ends, over the points that exist."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return list((sums[high] - sums[low]) / (high - low))


def thinned(steps: Sequence[int], values: Sequence[float], limit: int = 800) -> tuple[list[int], list[float]]:
    """At most about `limit` points of a long series: the lowest and the highest of each interval, so that spikes stay
    visible."""
    width = -(-2 * len(values) // limit)
    if len(values) <= limit:
        return list(steps), list(values)
    kept = []
    for start in range(0, len(values), width):
        stretch = range(start, min(start + width, len(values)))
        kept += sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)})
    return [steps[i] for i in kept], [values[i] for i in kept]


def curve_svg(runs: Sequence[Run], curve: Curve) -> str | None:
    """Draw one figure; ``None`` when no run logged any of its metrics.

    Raw values are faint, the moving average is on top of them, and evaluations during training are dots.
    """
    figure, axes = new_figure()
    empty = True
    for index, run in enumerate(runs):
        for dash, (metric, _) in zip(DASHES, curve.metrics, strict=False):
            steps, values = run.series(metric)
            values = [curve.scale * value for value in values]
            if values:
                empty = False
                axes.plot(*thinned(steps, values), color=colour(index), alpha=0.28, linewidth=0.9, linestyle=dash)
                marker = "o" if len(values) == 1 else None
                line = thinned(steps, smoothed(values))
                axes.plot(*line, color=colour(index), linewidth=2, linestyle=dash, marker=marker)
            steps, values = run.series(f"eval_{metric}")
            if values:
                empty = False
                scaled = [curve.scale * value for value in values]
                axes.plot(steps, scaled, "o", color=colour(index), markersize=5, markeredgecolor=INK)
    if empty:
        return None
    if curve.zero:
        axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("optimisation step")
    axes.set_ylabel(curve.unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    alt = f"{curve.title} ({curve.unit}) over optimisation steps; runs: {', '.join(run.name for run in runs)}"
    return svg_text(figure, curve.title, alt)


def accuracy_against_thinking_svg(rows: Sequence[tuple[int, str, Evaluation]]) -> str | None:
    """avg@k (%) with its interval against mean thinking tokens; rows are (colour index, label, evaluation)."""
    figure, axes = new_figure()
    shown = [row for row in rows if row[2].avg_at_k is not None]
    for index, _, evaluation in shown:
        assert evaluation.avg_at_k is not None
        low, high = evaluation.avg_interval or (evaluation.avg_at_k, evaluation.avg_at_k)
        errors = [[100 * max(0.0, evaluation.avg_at_k - low)], [100 * max(0.0, high - evaluation.avg_at_k)]]
        axes.errorbar(
            [evaluation.thinking_tokens],
            [100 * evaluation.avg_at_k],
            yerr=errors,
            fmt="o",
            color=colour(index),
            capsize=4,
            markersize=8,
        )
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("mean thinking length (tokens)")
    axes.set_ylabel("avg@k (%)")
    alt = "avg@k against mean thinking length: " + "; ".join(
        f"{label} {100 * (e.avg_at_k or 0):.1f} % at {e.thinking_tokens:.0f} tokens" for _, label, e in shown
    )
    return svg_text(figure, "accuracy", alt) if shown else None


Score = Callable[[Evaluation, Scores], float | None]
"""What to draw of a level of an evaluation: a function of both."""


def difficulty_svg(rows: Sequence[tuple[int, str, Evaluation]], title: str, score: Score, unit: str) -> str | None:
    """One score against the difficulty; rows are (colour index, label, evaluation)."""
    figure, axes = new_figure()
    levels = difficulty_levels([evaluation for _, _, evaluation in rows])
    empty = True
    for index, _, evaluation in rows:
        points = [
            (levels.index(level), value)
            for level, scores in evaluation.by_difficulty.items()
            if (value := score(evaluation, scores)) is not None
        ]
        if points:
            empty = False
            axes.plot(*zip(*points, strict=True), "o-", color=colour(index), linewidth=2, markersize=6)
    if empty:
        return None
    axes.set_xticks(range(len(levels)), levels)
    axes.set_xlabel("difficulty")
    axes.set_ylabel(unit)
    return svg_text(figure, title, f"{title}; runs: {', '.join(label for _, label, _ in rows)}")


def difficulty_levels(evaluations: Sequence[Evaluation]) -> list[str]:
    """Every difficulty that occurs, numbers by size and before words."""
    levels = {level for evaluation in evaluations for level in evaluation.by_difficulty}
    return sorted(levels, key=level_order)
