"""Reading traces, and writing their data set card."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.difficulty.states import same_model
from entropy_rft.difficulty.store import read_rows_and_vectors, read_settings
from entropy_rft.difficulty.wording import wordless_id
from entropy_rft.errors import UserValueError

CARD = "README.md"
# Traces that differ in one of these do not belong to one probe.
_SHARED = ("fingerprint", "layer", "width", "think_end_token")


@dataclass(frozen=True)
class Traces:
    """A model's results on some questions.

    Attributes:
        settings: of each directory.
        rows: one dict a question, as `collect_traces` wrote them, without the hidden state and with `question`, the id
            of the question whatever its wording.
        hidden: hidden states, (N, D) float32.
        unscorable: questions left out because none of their answers could be scored.
        uncollected: questions that are not collected yet.
        sizes: how many of the questions are of each directory, in order; all of them are of the first by default.
        repeated: rows left out because their question had come before in the same directory.
    """

    settings: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    hidden: np.ndarray
    unscorable: int = 0
    uncollected: int = 0
    sizes: tuple[int, ...] = ()
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def complete(self) -> bool:
        return self.uncollected == 0

    @property
    def model(self) -> str:
        return str(self.settings[0]["model"])

    @property
    def fingerprint(self) -> str:
        return str(self.settings[0]["fingerprint"])

    @property
    def layer(self) -> int:
        return int(self.settings[0]["layer"])

    @property
    def think_end_token(self) -> str:
        """The text that ends the thinking of the answers."""
        return str(self.settings[0]["think_end_token"])

    @property
    def ids(self) -> list[str]:
        """The id of each question with its wording; answers are stored under this id."""
        return [row["id"] for row in self.rows]

    @property
    def questions(self) -> list[str]:
        """The id of each question without its wording; a probe that was fitted to it recognises it in any wording."""
        return [row.get("question", row["id"]) for row in self.rows]

    def among(self, known: Collection[str]) -> np.ndarray:
        """Which questions are in `known`, (N,) bool, by either id: older probes store the id with the wording."""
        return np.asarray([not {*names}.isdisjoint(known) for names in zip(self.ids, self.questions, strict=True)])

    def notes(self) -> list[str]:
        """What is missing from these traces, a line each."""
        lines = []
        if self.uncollected:
            lines.append(f"note: {self.uncollected} questions are not collected yet; only the collected ones are used")
        if self.unscorable:
            lines.append(f"note: {self.unscorable} questions without an answer that could be scored are left out")
        if self.repeated:
            lines.append(f"note: {self.repeated} questions that come twice in their data are used once")
        return lines

    def column(self, name: str) -> np.ndarray:
        """A number of each question, (N,) float64."""
        return np.asarray([row[name] for row in self.rows], dtype=np.float64)

    def take(self, chosen: np.ndarray) -> Traces:
        """The questions where `chosen`, (N,) bool, is true."""
        chosen = np.asarray(chosen, dtype=bool)
        if chosen.all():
            return self
        rows = [row for row, keep in zip(self.rows, chosen, strict=True) if keep]
        sizes = tuple(int(chosen[span].sum()) for span in self._spans())
        return Traces(self.settings, rows, self.hidden[chosen], self.unscorable, self.uncollected, sizes, self.repeated)

    def by_directory(self) -> list[Traces]:
        """The questions of each directory; the hidden states are views of these."""
        return [
            Traces([settings], self.rows[span], self.hidden[span])
            for settings, span in zip(self.settings, self._spans(), strict=True)
        ]

    def _spans(self) -> list[slice]:
        sizes = self.sizes or (len(self.rows), *[0] * (len(self.settings) - 1))
        return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def load_traces(*directories: str | os.PathLike[str]) -> Traces:
    """Read one or more directories that `probe collect` wrote, finished or not.

    Raises:
        ValueError: a directory holds no traces, is empty or corrupted, or two are the same, hold the same question, or
            were made with different models, layers or markers; one line.
    """
    if not directories:
        raise UserValueError("give at least one directory of traces")
    settings: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    hidden: list[np.ndarray] = []
    collected = repeated = 0
    places: dict[str, str] = {}  # of each question
    for directory in directories:
        path = Path(directory).expanduser()
        found = read_settings(path)
        missing = [name for name in ("model", *_SHARED, "task", "digest") if name not in found]
        if missing:
            raise UserValueError(f"{os.fspath(directory)!r} holds no traces: its settings have no {', '.join(missing)}")
        for name in _SHARED:
            if settings and settings[0][name] != found[name]:
                raise UserValueError(
                    f"{os.fspath(directory)!r} was collected with {name} {found[name]!r}, "
                    f"{os.fspath(directories[0])!r} with {settings[0][name]!r}"
                )
        settings.append(found)
        own, states = read_rows_and_vectors(path, "hidden_state")
        options = found["task"].get("options") or {}
        for row in own:
            row["question"] = wordless_id(row, options)
            if row["id"] in places:
                # A question that is counted twice makes every interval too narrow.
                raise UserValueError(
                    f"question {row['id']} is in {places[row['id']]!r} and in {os.fspath(directory)!r}: give each "
                    "directory and each question once"
                )
        places |= dict.fromkeys((row["id"] for row in own), os.fspath(directory))
        # Within a directory a question comes twice if its data has it twice; the first one is used.
        first = {row["id"]: place for place, row in reversed(list(enumerate(own)))}
        used = [
            first[row["id"]] == place and row["accuracy"] is not None and row["entropy"] is not None
            for place, row in enumerate(own)
        ]
        rows += [row for row, kept in zip(own, used, strict=True) if kept]
        hidden.append(states if all(used) else states[used])
        collected += len(own)
        repeated += len(own) - len(first)
    if not collected:
        raise UserValueError(f"{os.fspath(directories[0])!r} holds no traces yet")
    if not rows:
        raise UserValueError(f"no answer in {os.fspath(directories[0])!r} could be scored by the task's reward")
    uncollected = sum(found["questions"] for found in settings) - collected
    there = [states for states in hidden if len(states)]
    return Traces(
        settings,
        rows,
        there[0] if len(there) == 1 else np.concatenate(there),
        collected - repeated - len(rows),
        uncollected,
        tuple(map(len, hidden)),
        repeated,
    )


def check_model(traces: Traces, name: str) -> None:
    """Raise a ValueError unless the traces are of the model called `name`."""
    if not same_model(traces.model, name):
        raise UserValueError(f"the traces are of the model {traces.model!r}, not of {name!r}")


def write_card(directory: Path, settings: Mapping[str, Any], done: int) -> None:
    """The data set card; `datasets.load_dataset(directory)` uses it to find the files."""
    task = settings["task"]
    text = f"""---
configs:
- config_name: default
  data_files:
  - split: "{_legal_split(task.get("split"))}"
    path: data/*.parquet
---

# Traces of `{settings["model"]}` on {task.get("name")}

How often the model was right on each question and how certain it was, for a difficulty probe (DiffAdapt, arXiv
2510.19669).
{done} of {settings["questions"]} questions, {settings["samples"]} answers each.

| setting | |
| --- | --- |
{"".join(f"| {name} | `{' '.join(str(value).split())}` |{chr(10)}" for name, value in settings.items())}
| column | |
| --- | --- |
| `prompt`, `solution`, `level` | the question, its gold answer, and its difficulty level where the task gives one |
| `accuracy` | fraction of right answers |
| `entropy`, `entropy_thinking`, `entropy_answer` | mean over answers of their mean token entropy; nats, temperature 1 |
| `tokens`, `prompt_tokens` | mean length of an answer; length of the prompt |
| `correct`, `answer_tokens`, `truncated`, `entropy*_each` | the same of each answer |
| `hidden_state` | float32, of the prompt's last token at the layer |
"""
    write_text(directory / CARD, text)


def _legal_split(split: Any) -> str:
    """A name that `datasets` takes for a split: "train[:8]" and "my split" are not."""
    return re.sub(r"\W+", "_", str(split or "")).strip("_") or "train"


def levels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The difficulty levels that occur, numbers by size and before words."""
    found = {row["level"] for row in rows if row["level"] is not None}

    def order(level: str) -> tuple[bool, float, str]:
        try:
            return False, float(level), ""
        except ValueError:
            return True, 0.0, level

    return sorted(found, key=order)
