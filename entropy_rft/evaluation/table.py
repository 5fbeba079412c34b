"""Evaluations as terminal tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from entropy_rft.evaluation.result import Evaluation, Scores

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with a fixed number of digits, or a dash for ``None`` and NaN."""
    return MISSING if value is None or value != value else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage, or a dash."""
    return MISSING if value is None or value != value else f"{100 * value:.1f} %"


def interval(scores: Scores) -> str:
    """``avg@k [low, high]`` in percent."""
    if scores.avg_at_k is None or scores.avg_interval is None:
        return number(scores.avg_at_k)
    low, high = (100 * bound for bound in scores.avg_interval)
    return f"{100 * scores.avg_at_k:.1f} [{low:.1f}, {high:.1f}]"


def best_pass(scores: Scores) -> str:
    """pass@k of the largest k, in percent."""
    if not scores.pass_at_k:
        return MISSING
    k = max(scores.pass_at_k)
    return f"{100 * scores.pass_at_k[k]:.1f} (k={k})"


def evaluation_table(rows: Sequence[tuple[str, Evaluation]]) -> Table:
    """One line per evaluation: what it rests on, how often it is right, how long it thinks and how sure it is.

    Args:
        rows: pairs of a name and an evaluation.

    Returns:
        A rich table, to be given to ``rich.print`` or a console.
    """
    table = Table(
        title="Evaluations",
        caption="avg@k and pass@k in %; [95 % interval: bootstrap over questions]; entropies in nats per token",
    )
    table.add_column("name", overflow="fold")
    table.add_column("task", overflow="fold")
    table.add_column("questions × samples", justify="right")
    _add_score_columns(table)
    for name, evaluation in rows:
        basis = f"{evaluation.questions} × {evaluation.samples}"
        task = f"{evaluation.task}/{evaluation.split}"
        table.add_row(escape(name), escape(task), basis, *_score_cells(evaluation))
    return table


def difficulty_table(name: str, evaluation: Evaluation) -> Table:
    """The scores per difficulty of one evaluation, as a rich table."""
    table = Table(title=f"{escape(name)} by difficulty ({evaluation.samples} samples a question)")
    table.add_column("difficulty")
    table.add_column("questions", justify="right")
    _add_score_columns(table)
    for level, scores in evaluation.by_difficulty.items():
        table.add_row(escape(level), str(scores.questions), *_score_cells(scores))
    return table


def _add_score_columns(table: Table) -> None:
    for title in ("avg@k", "pass@k", "tokens", "thinking", "truncated", "no marker", "H thinking", "H answer"):
        table.add_column(title, justify="right")


def _score_cells(scores: Scores) -> list[str]:
    return [
        interval(scores),
        best_pass(scores),
        number(scores.tokens, 1),
        number(scores.thinking_tokens, 1),
        percent(scores.truncated),
        percent(scores.marker_missing),
        number(scores.entropy_thinking),
        number(scores.entropy_answer),
    ]
