"""A run in a few numbers: how far it trained and what changed from its start to its end."""

from __future__ import annotations

from collections.abc import Sequence

from entropy_rft.evaluation.run import Run
from entropy_rft.reporting.cells import MISSING, number

_METRICS = (
    ("reward", "reward", 3),
    ("entropy", "entropy (nats)", 3),
    ("completions/thinking_length", "thinking (tokens)", 1),
    ("completions/mean_length", "completion (tokens)", 1),
)
SUMMARY_NOTE = "arrows: means over the first and over the last tenth of the logged steps"


def summary_lines(runs: Sequence[Run]) -> list[list[str]]:
    """Each line is a quantity's name and its value in each run."""
    return [
        ["steps", *(str(run.metrics[-1]["step"]) if run.metrics else "0" for run in runs)],
        ["time", *map(_duration, runs)],
        ["seed", *(MISSING if run.seed is None else str(run.seed) for run in runs)],
        *([title, *(_movement(run.series(metric)[1], digits) for run in runs)] for metric, title, digits in _METRICS),
    ]


def _movement(values: Sequence[float], digits: int) -> str:
    if not values:
        return MISSING
    tenth = max(1, len(values) // 10)
    return f"{number(_mean(values[:tenth]), digits)}→{number(_mean(values[-tenth:]), digits)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _duration(run: Run) -> str:
    _, times = run.series("time")
    if not times:
        return MISSING
    minutes, seconds = divmod(round(max(times)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
