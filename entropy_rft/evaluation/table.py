"""Evaluations as tables: a line per quantity, a column per evaluation, so that 80 characters or a phone hold a few."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from entropy_rft.evaluation.result import Evaluation, Scores
from entropy_rft.reporting.cells import MISSING, lined_table, number, percent
from entropy_rft.reporting.estimators import paired_difference


def interval(scores: Scores) -> str:
    """The 95 % interval of avg@k in percent, or a dash."""
    if scores.avg_interval is None:
        return MISSING
    low, high = scores.avg_interval
    return f"{percent(low)}–{percent(high)}"


def evaluation_lines(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """The cells of the comparison: each line is a quantity's name and its value in each evaluation.

    Evaluations of the same questions as the first one also get their paired difference to it.
    """
    ks = sorted({k for evaluation in evaluations for k in evaluation.pass_at_k if k > 1})
    lines = [
        ("task", [f"{e.task}/{e.split}" for e in evaluations]),
        ("questions × samples k", [f"{e.questions} × {e.samples}" for e in evaluations]),
        ("avg@k (%)", [percent(e.avg_at_k) for e in evaluations]),
        ("  95 % interval", [interval(e) for e in evaluations]),
        *((f"pass@{k} (%)", [percent(e.pass_at_k.get(k)) for e in evaluations]) for k in ks),
        *_hardest(evaluations),
        ("entropy (nats)", [number(e.entropy) for e in evaluations]),
        ("  thinking", [number(e.entropy_thinking) for e in evaluations]),
        ("  answer", [number(e.entropy_answer) for e in evaluations]),
        ("thinking (tokens)", [number(e.thinking_tokens, 1) for e in evaluations]),
        ("answer (tokens)", [number(e.answer_tokens, 1) for e in evaluations]),
        ("completion (tokens)", [number(e.tokens, 1) for e in evaluations]),
        ("truncated (%)", [percent(e.truncated) for e in evaluations]),
        ("without marker (%)", [percent(e.marker_missing) for e in evaluations]),
    ]
    differences = [_difference(evaluations[0], e) if i else None for i, e in enumerate(evaluations)]
    if any(differences):
        at = 1 + next(i for i, (label, _) in enumerate(lines) if "interval" in label)
        lines[at:at] = [
            ("  minus the first", [MISSING if d is None else f"{100 * d[0]:+.1f}" for d in differences]),
            ("  95 % interval", [MISSING if d is None else f"{percent(d[1])} to {percent(d[2])}" for d in differences]),
        ]
    if len(evaluations) == 1 and (share := evaluations[0].pear_prefers_shorter) is not None:  # before a training
        lines.append(("PEAR (α = 1) prefers the shorter (%)", [percent(share)]))
    if any(e.unscorable for e in evaluations):
        lines.insert(2, ("not scorable", [str(e.unscorable) for e in evaluations]))
    return [[label, *cells] for label, cells in lines]


def _hardest(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """pass@k on the hardest level, at the largest k that all have; nothing where they have not the same level."""
    found = [evaluation.hardest for evaluation in evaluations]
    levels = {None if level is None else level[0] for level in found}
    scores = [level[1] for level in found if level is not None]
    shared = set.intersection(*(set(s.pass_at_k) for s in scores)) if scores else set()
    if len(levels) > 1 or not shared - {1}:
        return []
    (level,), k = levels, max(shared)
    return [(f"pass@{k}, level {level} (%)", [percent(s.pass_at_k[k]) for s in scores])]


def _difference(first: Evaluation, other: Evaluation) -> tuple[float, float, float] | None:
    """The paired difference in avg@k with its interval, where both asked the same questions."""
    same = first.questions_digest and first.questions_digest == other.questions_digest and first.task == other.task
    both = any(
        a is not None and b is not None for a, b in zip(first.question_means, other.question_means, strict=False)
    )
    return paired_difference(first.question_means, other.question_means) if same and both else None


def evaluation_table(rows: Sequence[tuple[str, Evaluation]], note: str | None = None) -> Table:
    """The size of each evaluation, how often the model is right, how long it thinks and how certain it is.

    Args:
        rows: pairs of a name and an evaluation; each becomes a column.
        note: the last line under the table.

    Returns:
        A rich table, to be given to ``rich.print`` or a console.
    """
    header = ["", *(name for name, _ in rows)]
    lines = evaluation_lines([evaluation for _, evaluation in rows])
    title = "Evaluation"
    if len(set(lines[0][1:])) == 1:
        title = f"Evaluation on {lines.pop(0)[1]}"  # a long name in a narrow column has several lines
    caption = "interval: bootstrap over questions; entropies: per token, at temperature 1, in nats"
    return lined_table(title, header, lines, caption if note is None else f"{caption}\n{note}")


def difficulty_table(name: str, evaluation: Evaluation) -> Table:
    """The scores per difficulty of one evaluation, as a rich table."""
    k = evaluation.samples
    header = ["level", "asked", "avg@k (%)", "95 % interval", f"pass@{k} (%)"]
    header += ["thinking (tokens)", "thinking entropy (nats)"]
    lines = [
        [
            level,
            str(scores.questions),
            percent(scores.avg_at_k),
            interval(scores),
            percent(scores.pass_at_k.get(k)),
            number(scores.thinking_tokens, 1),
            number(scores.entropy_thinking),
        ]
        for level, scores in evaluation.by_difficulty.items()
    ]
    return lined_table(f"{name} by difficulty", header, lines, f"{evaluation.samples} samples a question")
