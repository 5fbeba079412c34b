"""What a finished run leaves for the analysis: one small JSON file. Only this file shows that it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserValueError

SCHEMA = 1


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        spec: the run, as :meth:`~studies.methods.plan.RunSpec.to_dict` gives it.
        digest: of the spec.
        curves: metric to ``{"steps": [...], "values": [...]}``, as it was logged.
        questions: column to one value a question, in the order they were asked: ``difficulty``, and sums over the
            question's samples of ``correct``, ``scored`` (samples that could be scored), ``tokens``, ``thinking``,
            ``answer``, ``truncated``, ``marker_missing`` (completions) and ``entropy``, ``entropy_thinking``,
            ``entropy_answer`` (nats).
        samples: of each question.
        questions_digest: identifies the questions.
        about: seconds, device, versions, machine.
        also: temperature (as text) to columns like `questions`, of the measurement's further temperatures; without
            entropies.
    """

    spec: dict[str, Any]
    digest: str
    curves: dict[str, dict[str, list[float]]]
    questions: dict[str, list[Any]]
    samples: int
    questions_digest: str
    about: dict[str, Any]
    also: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def column(self, name: str, temperature: float | None = None) -> np.ndarray:
        """(questions,) float64; of the measurement's own temperature, or of one of its further ones."""
        questions = self.questions if temperature is None else self.also[f"{temperature:g}"]
        if name == "scored" and name not in questions:  # older files lack it: all were scored
            return np.full(len(questions["correct"]), float(self.samples))
        return np.asarray(questions[name], dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write JSON, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"schema": SCHEMA, **vars(self)}, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a run's result; the message names it.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("schema", None) != SCHEMA:
                raise UserValueError(f"not a run of schema {SCHEMA}")
            return cls(**data)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserValueError(f"{path}: {error}: delete it, and the run is made again") from error


class Results:
    """The results of a study, in one directory.

    Args:
        directory: ``runs/`` in it holds one file a run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._read: dict[str, RunResult] = {}
        self._rates: dict[str, float] = {}

    def path(self, name: str) -> Path:
        """Of the run called `name`."""
        return self.directory / "runs" / f"{name}.json"

    def get(self, name: str, digest: str) -> RunResult | None:
        """The run, if it is finished; also under another name, as the point of a sweep that a search then chose.

        Raises:
            ValueError: a run of that name was made with other settings; the message names one.
        """
        path = self.path(name)
        if name not in self._read:
            if not path.is_file():
                return self._of_digest(digest)
            self._read[name] = RunResult.load(path)
        found = self._read[name]
        if found.digest != digest:
            raise UserValueError(
                f"{path} was made with other settings than the plan's: delete it to make the run again, or give "
                "another --output"
            )
        return found

    def _of_digest(self, digest: str) -> RunResult | None:
        for path in (self.directory / "runs").glob("*.json"):
            if path.stem not in self._read:
                self._read[path.stem] = RunResult.load(path)
        return next((run for run in self._read.values() if run.digest == digest), None)

    def seconds_per_completion(self) -> float | None:
        """Median over the finished runs; None before the first."""
        for path in (self.directory / "runs").glob("*.json"):
            if path.name not in self._rates:
                about = RunResult.load(path).about
                self._rates[path.name] = about["seconds"] / max(1, about["completions"])
        return float(np.median(list(self._rates.values()))) if self._rates else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """For people and programs; replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
