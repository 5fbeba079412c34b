"""The report that compares training runs: one self-contained HTML file."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserValueError
from entropy_rft.evaluation import plots
from entropy_rft.evaluation.result import Evaluation
from entropy_rft.evaluation.run import Run
from entropy_rft.evaluation.summary import SUMMARY_NOTE, summary_lines
from entropy_rft.evaluation.table import evaluation_lines, interval
from entropy_rft.reporting.cells import MISSING, distinct, number, percent
from entropy_rft.reporting.figures import colour
from entropy_rft.reporting.markup import Figure, Key, Table, render
from entropy_rft.run_files import EVALUATION

_Row = tuple[int, str, Evaluation]  # index of the run, label, evaluation


def run_labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names; where two are equal, with their directories."""
    return distinct([(run.name, run.directory) for run in runs])


def evaluation_rows(runs: Sequence[Run]) -> list[_Row]:
    """Every evaluation of every run; if a run has several, each is named by its file."""
    rows = []
    for index, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        for file, evaluation in run.evaluations.items():
            rows.append((index, label if len(run.evaluations) == 1 else f"{label}: {Path(file).stem}", evaluation))
    return rows


def write_report(
    runs: Sequence[Run], path: str | os.PathLike[str], title: str = "Training report", lead: str | None = None
) -> None:
    """Write the comparison of `runs` to `path`: evaluations, curves over training, and how the recipes differ.

    The page needs no network and runs no script. What a run did not record is left out and listed as missing. `lead` is
    a sentence at its beginning.

    Raises:
        ValueError: no run is given.
        ImportError: matplotlib is not installed.
    """
    if not runs:
        raise UserValueError("a report needs at least one run")
    labels = run_labels(runs)
    rows = evaluation_rows(runs)
    curves, absent = _curves(runs, labels)
    page = render(
        "entropy_rft.evaluation",
        "report.html",
        title=title,
        lead=lead,
        summary=Table(["", *labels], summary_lines(runs)),
        summary_note=f"{SUMMARY_NOTE.capitalize()}.",
        findings=_findings(runs, labels),
        notes=[(label, note) for run, label in zip(runs, labels, strict=True) for note in run.notes],
        evaluations=_evaluations(rows),
        evaluation_file=EVALUATION,
        evaluation_figures=_evaluation_figures(rows),
        evaluation_settings=_evaluation_settings(rows),
        by_difficulty=_by_difficulty(rows),
        curves=curves,
        absent=absent,
        several=len(runs) > 1,
        **_recipes(runs, labels),
        **_origins(runs, labels),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)


def _findings(runs: Sequence[Run], labels: Sequence[str]) -> Table | None:
    rows = [
        [label, str(finding.step), finding.name, finding.message]
        for run, label in zip(runs, labels, strict=True)
        for finding in run.findings
    ]
    return Table(["run", "update", "finding", "what to change"], rows, text=True) if rows else None


def _evaluations(rows: Sequence[_Row]) -> Table | None:
    if not rows:
        return None
    return Table(["", *(label for _, label, _ in rows)], evaluation_lines([evaluation for _, _, evaluation in rows]))


def _evaluation_figures(rows: Sequence[_Row]) -> list[Figure]:
    drawings = []
    for task, group in _by_task(rows).items():
        # One point compares nothing; the table has its numbers.
        svg = plots.accuracy_against_thinking_svg(group) if len(group) > 1 else None
        if svg:
            heading = f"{task}: accuracy (avg@k, %) against thinking length (tokens)"
            drawings.append(Figure(heading, svg, _keys(group), "bars: 95 % interval"))
    return drawings


def _evaluation_settings(rows: Sequence[_Row]) -> Table:
    cells = [[label, evaluation.model, _settings(evaluation)] for _, label, evaluation in rows]
    return Table(["run", "model", "settings"], cells, text=True)


def _by_task(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Scores on different tasks do not belong in one figure."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(f"{row[2].task}/{row[2].split}", []).append(row)
    return groups


def _keys(rows: Sequence[_Row]) -> list[Key]:
    return [Key(colour(index), label) for index, label, _ in rows]


def _settings(evaluation: Evaluation) -> str:
    settings = [f"{name} {value}" for name, value in evaluation.settings.items()]
    return ", ".join([*settings, f"{evaluation.unscorable} unscorable", f"{evaluation.seconds:.0f} s"])


# A title, the score of a level of an evaluation, and its unit.
_BY_DIFFICULTY: tuple[tuple[str, plots.Score, str], ...] = (
    ("accuracy by difficulty (avg@k, %)", lambda _, s: _hundredfold(s.avg_at_k), "avg@k (%)"),
    ("pass@k by difficulty (%)", lambda e, s: _hundredfold(s.pass_at_k.get(e.samples)), "pass@k (%)"),
    ("thinking entropy by difficulty (nats per token)", lambda _, s: s.entropy_thinking, "nats per token"),
    ("thinking length by difficulty (tokens)", lambda _, s: s.thinking_tokens, "tokens"),
)


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _by_difficulty(rows: Sequence[_Row]) -> list[tuple[str, list[Figure], Table]]:
    """Of each task that has levels: its name, its figures and its table."""
    parts = []
    for task, group in _by_task([row for row in rows if row[2].by_difficulty]).items():
        drawings = []
        for title, score, unit in _BY_DIFFICULTY:
            heading = f"{task}: {title}"
            svg = plots.difficulty_svg(group, heading, score, unit)
            if svg:
                drawings.append(Figure(heading, svg, _keys(group)))
        parts.append((task, drawings, _difficulty_table(group)))
    return parts


def _difficulty_table(rows: Sequence[_Row]) -> Table:
    header = ["difficulty", "run", "questions", "avg@k (%)", "95 % interval", "pass@k (%)", "thinking (tokens)"]
    header += ["entropy, thinking (nats)", "entropy, answer (nats)"]
    cells = [
        [
            level,
            label,
            str(scores.questions),
            percent(scores.avg_at_k),
            interval(scores),
            percent(scores.pass_at_k.get(evaluation.samples)),
            number(scores.thinking_tokens, 1),
            number(scores.entropy_thinking),
            number(scores.entropy_answer),
        ]
        for level in plots.difficulty_levels([evaluation for _, _, evaluation in rows])
        for _, label, evaluation in rows
        if (scores := evaluation.by_difficulty.get(level)) is not None
    ]
    return Table(header, cells)


def _curves(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The figures over training, and what no run recorded."""
    drawings, absent = [], []
    for curve in plots.CURVES:
        svg = plots.curve_svg(runs, curve)
        if svg is None:
            absent.append(curve.title.lower())
            continue
        # Only runs that are in the figure belong in its legend.
        logged = [
            any(run.series(name)[0] or run.series(f"eval_{name}")[0] for name, _ in curve.metrics) for run in runs
        ]
        keys = [Key(colour(i), label) for i, label in enumerate(labels) if logged[i]]
        if len(curve.metrics) > 1:
            keys += [Key(None, name, dashed=i > 0) for i, (_, name) in enumerate(curve.metrics)]
        drawings.append(Figure(f"{curve.title} ({curve.unit})", svg, keys))
    return drawings, absent


def _recipes(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Table]:
    fields = sorted({name for run in runs for name in run.recipe})
    differing = [name for name in fields if len({_value(run, name) for run in runs}) > 1]
    rows = [[name, *(_value(run, name) for run in runs)] for name in differing]
    shared = [[name, _value(runs[0], name)] for name in fields if name not in differing]
    return {
        "differing": Table(["field", *labels], rows, text=True),
        "shared": Table(["field", "value"], shared, text=True),
    }


def _value(run: Run, name: str) -> str:
    if name not in run.recipe:
        return MISSING
    value = run.recipe[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _origins(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Table]:
    rows = [
        [
            label,
            run.created or MISSING,
            MISSING if run.seed is None else str(run.seed),
            run.device or MISSING,
            shlex.join(run.command) or MISSING,
        ]
        for run, label in zip(runs, labels, strict=True)
    ]
    packages = sorted({package for run in runs for package in run.versions})
    versions = [[package, *(run.versions.get(package, MISSING) for run in runs)] for package in packages]
    return {
        "origins": Table(["run", "started", "seed", "device", "command"], rows, text=True),
        "versions": Table(["package", *labels], versions, text=True),
    }
