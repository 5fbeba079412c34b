"""How often the doctor is right: its findings on stored runs, by the rule that `docs/doctor.md` states beforehand."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

from entropy_rft.entropy.rules import RULES
from entropy_rft.training.advice import Facts
from entropy_rft.training.findings import FINDINGS, Finding, Levels, Watch
from studies.methods.plan import START
from studies.methods.results import RunResult
from studies.methods.worker import CURVES

CANDIDATES: Mapping[str, Sequence[float]] = {
    "entropy_collapse": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "entropy_runaway": (1.1, 1.2, 1.3, 1.5, 2.0, 3.0),
    "rule_idle": (10, 20, 30, 40),
    "rule_at_bound": (10, 20, 30, 40),
    "thinking_collapse": (0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
    "thinking_explosion": (1.2, 1.3, 1.5, 2.0, 3.0),
}
"""Each finding's levels, from the most to the least sensitive."""

HEALTHY, BETWEEN = "healthy", "between"
COLLAPSES = ("entropy collapse", "entropy runaway", "stalled")
ANY = "any of them"
FIXING, REPORTED = "fixing", "reported"
APART = ("tiny-slow", "frontier")
"""Studies whose runs take no part in the choice, each a part of its own."""

FALSE_ALARMS = 0.05  # of the healthy runs, at most

_FELL, _NO_GAIN, _GAIN = 0.10, 0.05, 0.10  # of avg@k, or of the accuracy in training
_LOW, _HIGH = 0.5, 1.2  # times the entropy of the start
_STRETCH, _SHORT = 20, 10  # updates


@dataclass(frozen=True)
class Judged:
    """A stored run, and what it counts as.

    Attributes:
        name: of the run.
        part: fixing, reported, or the study's name, one of `APART`.
        verdict: healthy, between, or one of `COLLAPSES`.
        fell_back: whether it is a collapse since the accuracy fell back.
        gain: of avg@k over the start's.
        entropy: of the final evaluation, times the start's.
        collapse: the update of the collapse; None where there is none.
        updates: that the run took.
    """

    name: str
    part: str
    verdict: str
    fell_back: bool
    gain: float
    entropy: float
    collapse: int | None
    updates: int


def part_of(result: RunResult) -> str:
    """Even seeds, and even trials of a search, fix the levels; the others are reported."""
    name = str(result.spec["name"])
    trial = re.fullmatch(r"trial-.*-(\d+)-seed\d+", name)
    number = int(trial[1]) if trial else int(result.spec["seed"])
    return REPORTED if number % 2 else FIXING


def judge(result: RunResult, start: Sequence[RunResult], part: str) -> Judged:
    """What the run counts as."""
    gain = accuracy(result) - fmean(map(accuracy, start))
    ratio = entropy(result) / fmean(map(entropy, start))
    fell = _fell_back(per_update(result, "accuracy"))
    kind = COLLAPSES[0] if ratio < _LOW else COLLAPSES[1] if ratio >= _HIGH else COLLAPSES[2]
    verdict = kind if fell or gain < _NO_GAIN else HEALTHY if gain >= _GAIN else BETWEEN
    updates = int(result.spec["steps"])
    collapse = _collapse(per_update(result, "entropy"), verdict) if verdict in COLLAPSES else None
    return Judged(result.spec["name"], part, verdict, fell, gain, ratio, collapse, updates)


def accuracy(result: RunResult) -> float:
    """avg@k of the final evaluation."""
    return float(result.column("correct").sum() / result.column("scored").sum())


def entropy(result: RunResult) -> float:
    """Of the final evaluation, nats per token."""
    return float(result.column("entropy").sum() / result.column("tokens").sum())


def per_update(result: RunResult, curve: str) -> list[float]:
    """A curve with a value for each update up to its last; one that was not logged counts with the next that was."""
    values: list[float] = []
    points = result.curves[curve]
    for step, value in zip(points["steps"], points["values"], strict=True):
        values += [value] * (int(step) - len(values))
    return values


def _fell_back(values: Sequence[float]) -> bool:
    last = fmean(values[-_STRETCH:])
    ends = range(_STRETCH, len(values) - _STRETCH + 1)
    return any(fmean(values[end - _STRETCH : end]) - last >= _FELL for end in ends)


def _collapse(values: Sequence[float], kind: str) -> int:
    first = fmean(values[:_SHORT])
    for end in range(_SHORT, len(values) + 1):
        ratio = fmean(values[end - _SHORT : end]) / first
        if (kind == COLLAPSES[0] and ratio < _LOW) or (kind == COLLAPSES[1] and ratio >= _HIGH):
            return end
    return len(values)


def findings_in(result: RunResult, levels: Levels) -> list[Finding]:
    """What the doctor would have reported during the training."""
    names = {curve: metric for metric, curve in CURVES.items()}
    logs: dict[int, dict[str, float]] = {}
    for curve, points in result.curves.items():
        for step, value in zip(points["steps"], points["values"], strict=True):
            logs.setdefault(int(step), {})[names[curve]] = value
    watch = Watch(levels, Facts(_arguments(result.spec["fields"])))
    return [finding for step in sorted(logs) for finding in watch.add(step, logs[step])]


def _arguments(given: Mapping[str, Any]) -> Any:
    chosen = RULES.get(given.get("entropy_clip", "none"))
    prefix = "entropy_clip_"
    options = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    known = {} if chosen is None else {each.name for each in fields(chosen)}  # type: ignore[arg-type]
    rule = None if chosen is None else chosen(**{name: options[name] for name in options if name in known})
    return SimpleNamespace(**given, build_entropy_clip=lambda: rule)


def only(chosen: Mapping[str, float]) -> Levels:
    """Levels with these findings, and no others."""
    given = {name: int(level) if name.startswith("rule_") else level for name, level in chosen.items()}
    values: dict[str, Any] = {**dict.fromkeys(FINDINGS), **given}
    return Levels(**values)


def alarms(results: Mapping[str, RunResult], levels: Levels) -> dict[str, int]:
    """Run to the update of its first finding, for the runs that have one."""
    found = {name: findings_in(result, levels) for name, result in results.items()}
    return {name: findings[0].step for name, findings in found.items() if findings}


def choose(name: str, results: Mapping[str, RunResult], judged: Mapping[str, Judged]) -> dict[str, Any]:
    """The most sensitive candidate with few enough false alarms among the runs that fix it, and what each one does."""
    fixing = {run: results[run] for run, verdict in judged.items() if verdict.part == FIXING}
    rows = [_counted(alarms(fixing, only({name: level})), judged, FIXING, level) for level in CANDIDATES[name]]
    good = [row for row in rows if row["healthy_alarms"] <= FALSE_ALARMS * row["healthy"]]
    return {"chosen": (good or rows[-1:])[0]["level"], "candidates": rows}


def _counted(found: Mapping[str, int], judged: Mapping[str, Judged], part: str, level: float | None) -> dict[str, Any]:
    runs = [run for run in judged.values() if run.part == part]
    collapsed = [run for run in runs if run.verdict in COLLAPSES]
    healthy = [run for run in runs if run.verdict == HEALTHY]
    hit = [run for run in collapsed if run.name in found]
    return {
        "level": level,
        "collapsed": len(collapsed),
        "collapsed_alarms": len(hit),
        "by_kind": {
            kind: [sum(run.verdict == kind for run in hit), sum(run.verdict == kind for run in collapsed)]
            for kind in COLLAPSES
        },
        "healthy": len(healthy),
        "healthy_alarms": sum(run.name in found for run in healthy),
        "between": sum(run.verdict == BETWEEN for run in runs),
        "between_alarms": sum(run.verdict == BETWEEN and run.name in found for run in runs),
        "lead": sorted((run.collapse or 0) - found[run.name] for run in hit),
        "updates_left": sorted(run.updates - found[run.name] for run in hit),
    }


def measure(study: Path) -> dict[str, Any]:
    """Choose the levels on one part of a study's runs, and count what they find in both.

    Args:
        study: directory of the runs.
    """
    results, judged = _read(study, None)
    chosen = {name: choose(name, results, judged) for name in CANDIDATES}
    return {
        "runs": [asdict(judged[name]) for name in sorted(judged)],
        "chosen": chosen,
        "table": _table(results, judged, (FIXING, REPORTED), chosen),
        "not_measured": [name for name in FINDINGS if name not in CANDIDATES],
    }


def add_apart(measured: dict[str, Any], directory: Path, part: str, names: Collection[str] | None = None) -> None:
    """Put into `measured` what its levels find in the runs of another study, in the place of what is there.

    Args:
        measured: of :func:`measure`.
        directory: of the other study's runs.
        part: its name, one of `APART`.
        names: of the runs that count; all by default.
    """
    results, judged = _read(directory, part)
    judged = {name: judged[name] for name in sorted(judged) if names is None or name in names}
    kept = [run for run in measured["runs"] if run["part"] != part]
    measured["runs"] = kept + [asdict(run) for run in judged.values()]
    ours = {name: results[name] for name in judged}
    for name, row in _table(ours, judged, (part,), measured["chosen"]).items():
        measured["table"][name] |= row


def _table(
    results: Mapping[str, RunResult],
    judged: Mapping[str, Judged],
    parts: Sequence[str],
    chosen: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    levels = {name: found["chosen"] for name, found in chosen.items()}
    first: dict[str, dict[str, int]] = {name: {} for name in (*levels, ANY)}  # finding to run to update
    for run, result in results.items():
        for finding in findings_in(result, only(levels)):
            for name in (finding.name, ANY):
                first[name].setdefault(run, finding.step)
    return {
        name: {part: _counted(found, judged, part, levels.get(name)) for part in parts} for name, found in first.items()
    }


def _read(directory: Path, part: str | None) -> tuple[dict[str, RunResult], dict[str, Judged]]:
    every = [RunResult.load(path) for path in sorted(directory.glob("*.json"))]
    start = [result for result in every if result.spec["kind"] == START]
    trained = {f"{directory.parent.name}/{r.spec['name']}": r for r in every if r.spec["kind"] != START}
    judged = {}
    for name, result in trained.items():
        found = judge(result, start, part or part_of(result))
        judged[name] = Judged(**{**asdict(found), "name": name})
    return trained, judged


def markdown(measured: Mapping[str, Any]) -> str:
    """The tables of `docs/doctor.md`."""
    verdicts = (HEALTHY, BETWEEN, *COLLAPSES)
    lines = _header("runs", "", *verdicts)
    for part in _PARTS:
        runs = [run for run in measured["runs"] if run["part"] == part]
        counts = [len(runs), *(sum(run["verdict"] == verdict for run in runs) for verdict in verdicts)]
        lines.append(f"| {_PARTS[part]} | {' | '.join(map(str, counts))} |")
    columns = ("finding", "level", *COLLAPSES, "healthy: false alarms", "lead, updates", "updates left")
    for part in (REPORTED, FIXING, *APART):
        lines += ["", f"{_PARTS[part]}:", "", *_header(*columns)]
        for name, parts in measured["table"].items():
            row = parts[part]
            cells = [f"`{name}`" if name in CANDIDATES else name, "" if row["level"] is None else f"{row['level']:g}"]
            cells += ["{} of {}".format(*row["by_kind"][kind]) for kind in COLLAPSES]
            cells += [
                f"{row['healthy_alarms']} of {row['healthy']}",
                _middle(row["lead"]),
                _middle(row["updates_left"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_PARTS = {
    FIXING: "Runs that fix the levels",
    REPORTED: "Runs that are reported",
    **{study: f"Runs of `{study}`" for study in APART},
}


def _header(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", "| --- " * len(cells) + "|"]


def _middle(values: Sequence[int]) -> str:
    return f"{median(values):g} ({values[0]} to {values[-1]})" if values else "–"
