"""The page that `probe evaluate` writes: what choosing saves, whether the probe is right, and the U shape."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entropy_rft.atomic import write_text
from entropy_rft.difficulty.compare.plots import (
    POLICIES,
    frontier,
    frontier_keys,
    frontier_svg,
    save_png,
    scatter_svg,
    u_shape,
    u_shape_svg,
)
from entropy_rft.difficulty.compare.policies import ORACLE
from entropy_rft.difficulty.fitting import labels_of
from entropy_rft.difficulty.labels import Thresholds
from entropy_rft.difficulty.strategies import NAMES, Difficulty
from entropy_rft.difficulty.traces import Traces
from entropy_rft.errors import UserValueError
from entropy_rft.reporting import figures
from entropy_rft.reporting.cells import number, percent
from entropy_rft.reporting.markup import Figure, Key, Table, render
from entropy_rft.run_files import EVALUATION, REPORT

POLICY_HEADER = [
    "choice", "accuracy (%)", "95 %", "tokens", "minus Normal: accuracy (points)", "tokens saved (%)", "seconds",
    "easy/normal/hard (%)",
]  # fmt: skip


def policy_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, a line for each way to choose."""
    lines = []
    for name, title in POLICIES.items():
        policy = result["policies"].get(name)
        if policy is None:
            continue
        accuracy, saving = policy["minus_normal"]["accuracy"], policy["minus_normal"]["saving"]
        same = name == "normal"
        lines.append(
            [
                title,
                percent(policy["accuracy"]),
                _range(policy["interval"]),
                number(policy["tokens"], 1),
                "–" if same else f"{100 * accuracy[0]:+.1f} ({_range(accuracy[1:])})",
                "–" if same else f"{percent(saving[0])} ({_range(saving[1:])})",
                number(policy["seconds"], 3),
                "/".join(f"{100 * policy['shares'][kind]:.0f}" for kind in NAMES),
            ]
        )
    return lines


def short_policy_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The same for 80 characters, header first; intervals are below their number."""
    lines = [["choice", "right\n(%)", "minus Normal\n(points)", "tokens", "saved\n(%)", "seconds"]]
    for name, right, _, tokens, accuracy, saved, seconds, _ in policy_lines(result):
        below = [cell.replace(" (", "\n").removesuffix(")").replace(" to ", "…") for cell in (accuracy, saved)]
        lines.append([name, right, below[0], tokens, below[1], seconds])
    return lines


def classifier_lines(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """How good each classifier is, header first."""
    return [["", "accuracy (%)", "macro-F1", "calibration error"]] + [
        [name.replace("_", " "), percent(r["accuracy"]), number(r["macro_f1"]), number(r["calibration_error"])]
        for name, r in reports.items()
    ]


def confusion_lines(report: Mapping[str, Any]) -> list[list[str]]:
    """A classifier's confusion matrix, header first."""
    rows = [[name, *map(str, row)] for name, row in zip(NAMES, report["confusion"], strict=True)]
    return [["label \\ said", *NAMES], *rows]


def check_plots() -> None:
    """Raise a ValueError if the figures cannot be drawn; called before hours of sampling, not after them."""
    if find_spec("matplotlib") is None:
        raise UserValueError('the page needs matplotlib: pip install "entropy_rft[report]"')


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What the table does not show, a line each: the classifiers, the oracle's share, and the time to choose."""
    lines = [
        f"{name.replace('_', ' ')}: accuracy {100 * report['accuracy']:.1f} %, macro-F1 {report['macro_f1']:.3f}"
        for name, report in result.get("classifier", {}).items()
    ]
    probe = result["policies"]["probe"]
    share, routing = probe.get("oracle_share"), result.get("routing_seconds")
    lines += [
        f"{POLICIES[name]} is no less often right than the probe ({percent(fixed['accuracy'])} % and "
        f"{percent(probe['accuracy'])} %) with fewer tokens ({number(fixed['tokens'], 1)} and "
        f"{number(probe['tokens'], 1)}): on these questions that strategy alone is better"
        for name, fixed in result["policies"].items()
        if name in NAMES and fixed["accuracy"] >= probe["accuracy"] and fixed["tokens"] < probe["tokens"]
    ]
    if share is not None:
        lines.append(f"the probe gets {100 * share:.0f} % of what the oracle saves")
    if routing is not None:
        lines.append(f"to choose takes {1000 * routing:.1f} ms a question, its prefill included")
    return lines


def _range(bounds: Sequence[float]) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def save_evaluation(result: Mapping[str, Any], traces: Traces, directory: str | os.PathLike[str]) -> None:
    """Write `evaluation.json`, `report.html`, `frontier.png` and `u-shape.png` into `directory`.

    Args:
        result: of `evaluate_probe`.
        traces: of the questions, for the scatter.
        directory: is made when it does not exist.

    Raises:
        ImportError: matplotlib is not installed; the JSON is already written then.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / EVALUATION, json.dumps(result, indent=2, allow_nan=False) + "\n")
    thresholds = result.get("thresholds")
    classes = labels_of(traces, Thresholds(**thresholds)) if thresholds else [Difficulty.NORMAL.index] * len(traces)
    points = [
        {"accuracy": row["accuracy"], "entropy": row["entropy"], "label": NAMES[index]}
        for row, index in zip(traces.rows, classes, strict=True)
    ]
    write_page(result, points, target / REPORT)
    save_png(frontier(result), target / "frontier.png")
    save_png(u_shape(result["levels"], _by(result)), target / "u-shape.png")


def write_page(result: Mapping[str, Any], points: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write the page; one file, no network, no script.

    Args:
        result: of `evaluate_probe`.
        points: one dict a question with `accuracy`, `entropy` and `label`, for the scatter.
        path: of the page.

    Raises:
        ImportError: matplotlib is not installed.
    """
    by = _by(result)
    classifier = classifier_lines(result["classifier"]) if result.get("classifier") else None
    confusion = confusion_lines(result["classifier"]["probe"]) if classifier else None
    text = render(
        "entropy_rft.difficulty.compare",
        "comparison.html",
        title="Strategies by difficulty",
        result=result,
        policies=Table(POLICY_HEADER, policy_lines(result)),
        oracle=ORACLE,
        oracle_share=result["policies"]["probe"].get("oracle_share"),
        routing_seconds=result.get("routing_seconds"),
        drawings=_figures(result, points, by),
        classifiers=classifier and Table(classifier[0], classifier[1:]),
        confusion=confusion and Table(confusion[0], confusion[1:]),
        levels=_levels(result, by),
        settings=Table(["setting", "value"], [[name, str(value)] for name, value in _settings(result)], text=True),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)


def _figures(result: Mapping[str, Any], points: Sequence[Mapping[str, Any]], by: str) -> list[Figure]:
    note = "bars: 95 % interval; diamonds are dashed in the legend"
    u_keys = [Key(figures.PALETTE[0], "entropy"), Key(figures.PALETTE[5], "accuracy", dashed=True)]
    return [
        Figure("Accuracy against tokens", frontier_svg(result), frontier_keys(result), note),
        Figure(f"Entropy and accuracy by {by}", u_shape_svg(result["levels"], by), u_keys),
        Figure(
            "The traces and their labels",
            scatter_svg(points, result.get("thresholds")),
            [Key(figures.colour(i), name) for i, name in enumerate(NAMES)],
            "one point a question; lines: the thresholds",
        ),
    ]


def _by(result: Mapping[str, Any]) -> str:
    return "difficulty level" if result["levels"]["by"] == "level" else "accuracy of the question"


def _settings(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*result["settings"].items(), ("thresholds", result.get("thresholds"))]


def _levels(result: Mapping[str, Any], by: str) -> Table:
    rows = [
        [name, str(g["questions"]), percent(g["accuracy"]), number(g["entropy"]), number(g["entropy_thinking"]),
         number(g["tokens"], 1)]
        for name, g in result["levels"]["groups"].items()
    ]  # fmt: skip
    header = [by, "questions", "accuracy (%)", "entropy (nats)", "entropy, thinking (nats)", "tokens"]
    return Table(header, rows)
