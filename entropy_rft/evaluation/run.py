"""A training run on the disk."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from entropy_rft.errors import UserValueError
from entropy_rft.evaluation.result import Evaluation
from entropy_rft.files import read_yaml
from entropy_rft.run_files import FINDINGS, METRICS, RECIPE, RUN, evaluation_files

_NEEDED = (RUN, RECIPE, METRICS)


@dataclass(frozen=True)
class Finding:
    """A finding of the doctor during training: its name, after which update, and the sentence."""

    name: str
    step: int
    message: str

    def __str__(self) -> str:
        return f"{self.name}, update {self.step}: {self.message}"


@dataclass
class Run:
    """One run directory.

    Attributes:
        directory: where it was read from.
        name: what the run is called; by default its directory's name.
        created: ISO 8601 time of its start, or "".
        seed: of training, or ``None``.
        command: the command line that started it.
        versions: package name to version.
        device: what it ran on, or "".
        recipe: the resolved recipe, field to value.
        metrics: one dict per logged step, ascending by "step"; training and `eval_` metrics of a step are in one dict.
        findings: what the doctor found, oldest first.
        evaluations: file name to evaluation: `evaluation.json` first, then every `evaluation-*.json`.
        notes: problems in the files, one sentence each.
    """

    directory: Path
    name: str
    created: str = ""
    seed: int | None = None
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> Evaluation | None:
        """The run's own evaluation, if it has one."""
        return next(iter(self.evaluations.values()), None)

    def series(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was logged and is finite."""
        points = [
            (row["step"], float(row[metric]))
            for row in self.metrics
            if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])
        ]
        return [step for step, _ in points], [value for _, value in points]


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run directory: `run.json`, `recipe.yaml`, `metrics.jsonl` and, if there are any, findings and evaluations.

    A run that was killed and resumed may have logged a step twice: the later line is used, and what the killed part had
    logged after it is dropped. Lines of `metrics.jsonl` that are not metrics, such as a half-written last one, are
    skipped with a note, and so is an evaluation that cannot be read.

    Raises:
        ValueError: there is no such directory, files are missing, or `run.json` or `recipe.yaml` is malformed; the
            message names them.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserValueError(f"run {os.fspath(directory)!r} is not a directory")
    missing = [name for name in _NEEDED if not (path / name).is_file()]
    if missing:
        raise UserValueError(f"{os.fspath(directory)!r} is not a run directory: it has no {', '.join(missing)}")
    described = _mapping(path / RUN, json.loads)
    run = Run(
        directory=path,
        name=str(described.get("name") or path.resolve().name),
        created=str(described.get("created") or ""),
        seed=described.get("seed"),
        command=[str(word) for word in described.get("command") or []],
        versions={str(name): str(version) for name, version in (described.get("versions") or {}).items()},
        device=str(described.get("device") or ""),
        recipe=_mapping(path / RECIPE, read_yaml),
    )
    run.metrics = _read_metrics(path / METRICS, run.notes)
    run.findings = _read_findings(path / FINDINGS, run.notes)
    for file in evaluation_files(path):
        try:
            run.evaluations[file.name] = Evaluation.load(file)
        except ValueError as error:
            run.notes.append(f"{file.name} is left out: {error}")
    return run


def _read_findings(path: Path, notes: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            found.append(Finding(str(entry["finding"]), int(entry["step"]), str(entry["message"])))
        except (ValueError, TypeError, KeyError):
            notes.append(f"{path.name}: a line is not a finding (half written?) and is skipped")
    return found


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if data is None:  # an empty YAML file
        return {}
    if not isinstance(data, dict):
        raise UserValueError(f"{path} must hold a mapping, not a {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def _read_metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    unreadable: list[int] = []
    not_finite: dict[str, int] = {}
    last = -1
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            unreadable.append(number)
            continue
        if step < last:  # resumed from a checkpoint: the steps from here on belong to the part that was killed
            rows = {kept: row for kept, row in rows.items() if kept < step}
        last = step
        rows.setdefault(step, {}).update(entry)
        rows[step]["step"] = step
    texts = {key for row in rows.values() for key, value in row.items() if isinstance(value, str)}
    for row in rows.values():
        for key, value in row.items():
            # Written as null; as NaN or Infinity by versions before.
            if (value is None and key not in texts) or (isinstance(value, float) and not math.isfinite(value)):
                not_finite[key] = not_finite.get(key, 0) + 1
    if unreadable:
        where = ", ".join(map(str, unreadable[:5])) + (" and others" if len(unreadable) > 5 else "")
        notes.append(f"{METRICS}: line {where} is not a metrics entry (half written?) and is skipped")
    notes.extend(f"{METRICS}: {key} is not finite at {count} steps" for key, count in sorted(not_finite.items()))
    return [rows[step] for step in sorted(rows)]
