"""What the lens recorded of a run: the lines of ``lens.jsonl``, and their sums over updates."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.run_files import LENS, LENS_TOKENS, RUN

PARTITIONS = ("advantage_phase", "probability", "discriminant")
"""The three ways in which a line divides the tokens of an update; each contains every token once."""


@dataclass(frozen=True)
class Bucket:
    """Sums over the tokens of a bucket; changes are predicted, in nats for a unit logit step, without the rule.

    Attributes:
        tokens: how many.
        loss, gain: of the negative changes and of the positive ones.
        dropped: tokens that the rule dropped.
        dropped_loss, dropped_gain: their part of `loss` and of `gain`.
        measured: of the measured changes, nats; None where the update was not audited.
    """

    tokens: float = 0.0
    loss: float = 0.0
    gain: float = 0.0
    dropped: float = 0.0
    dropped_loss: float = 0.0
    dropped_gain: float = 0.0
    measured: float | None = None

    @property
    def predicted(self) -> float:
        """The predicted change with the rule, nats for a unit logit step."""
        return self.loss + self.gain - self.dropped_loss - self.dropped_gain

    @staticmethod
    def sum(buckets: Sequence[Bucket]) -> Bucket:
        """The sums over several buckets; `measured` is None unless all were audited."""
        totals: dict[str, Any] = {}
        for each in fields(Bucket):
            values = [getattr(bucket, each.name) for bucket in buckets]
            totals[each.name] = None if None in values else math.fsum(values)
        return Bucket(**totals)


@dataclass(frozen=True)
class Record:
    """One recorded update.

    Attributes:
        step: the update, counted from 1.
        partitions: buckets by partition and name.
        edges: the nine inner edges of the deciles of S*, nats.
        update: which one of its generation, from 1, where a generation serves several.
    """

    step: int
    partitions: Mapping[str, Mapping[str, Bucket]]
    edges: Sequence[float]
    update: float | None = None

    @property
    def total(self) -> Bucket:
        """The sums over all tokens."""
        return Bucket.sum(list(self.partitions[PARTITIONS[0]].values()))

    @property
    def audited(self) -> bool:
        """Whether the change of this update was measured."""
        return self.total.measured is not None


@dataclass
class Lens:
    """What was recorded of one run.

    Attributes:
        directory: where it was read from.
        name: what the run is called.
        records: one for each recorded update, ascending by step.
        tokens: entries of ``lens_tokens.jsonl``, each with its `step`.
        notes: problems in the files, one sentence each.
    """

    directory: Path
    name: str
    records: list[Record]
    tokens: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def audited(self) -> list[Record]:
        """The records of updates whose change was measured."""
        return [record for record in self.records if record.audited]

    def extremes(self, count: int) -> list[dict[str, Any]]:
        """The `count` stored tokens with the most negative change, then the `count` with the most positive one."""
        ordered = sorted(self.tokens, key=lambda entry: entry["change"])
        falls = [entry for entry in ordered if entry["change"] < 0][:count]
        rises = [entry for entry in ordered if entry["change"] > 0][::-1][:count]
        return falls + rises


def totals(records: Sequence[Record]) -> dict[str, dict[str, Bucket]]:
    """The sums over several updates, by partition and bucket."""
    return {
        partition: {name: Bucket.sum([record.partitions[partition][name] for record in records]) for name in names}
        for partition, names in (records[0].partitions.items() if records else ())
    }


def load_lens(directory: str | os.PathLike[str], from_step: int = 1, to_step: int | None = None) -> Lens:
    """Read what the lens recorded in a run directory, of the updates `from_step` to `to_step`.

    Lines that cannot be read, such as a half-written last one, are skipped with a note.

    Raises:
        ValueError: there is no such directory, or the run has no records of these updates.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UserValueError(f"run {os.fspath(directory)!r} is not a directory")
    if not (path / LENS).is_file():
        raise UserValueError(
            f"{os.fspath(directory)!r} has no {LENS}: train with entropy_lens_steps: 10 in the recipe to record every "
            "tenth update, or attach EntropyLens to a trl.GRPOTrainer"
        )
    lens = Lens(path, _name(path), [])

    def wanted(step: int) -> bool:
        return from_step <= step and (to_step is None or step <= to_step)

    records: dict[int, Record] = {}
    for entry in _entries(path / LENS, lens.notes):
        try:
            record = _record(entry)
        except (KeyError, TypeError, ValueError):
            lens.notes.append(f"{LENS}: a line is not a record of the lens and is skipped")
            continue
        if wanted(record.step):
            records[record.step] = record
    lens.records = [records[step] for step in sorted(records)]
    if not lens.records:
        end = "the end" if to_step is None else f"update {to_step}"
        raise UserValueError(f"{os.fspath(path / LENS)!r} has no record from update {from_step} to {end}")
    places = {record.update for record in lens.records if record.update is not None}
    if len(lens.records) > 1 and len(places) == 1 and (place := places.pop()) != 1:
        lens.notes.append(
            f"each recorded update is number {place:g} of its generation: record every update (entropy_lens_steps: 1), "
            "or a number that num_iterations does not divide, to see the others"
        )
    for entry in _entries(path / LENS_TOKENS, lens.notes):
        if isinstance(entry.get("tokens"), list) and wanted(int(entry["step"])):
            lens.tokens += [{"step": int(entry["step"]), **token} for token in entry["tokens"] if _is_token(token)]
    return lens


def _name(path: Path) -> str:
    try:
        described = json.loads((path / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run of TRL's own trainer has none
        described = {}
    name = described.get("name") if isinstance(described, dict) else None
    return str(name or path.resolve().name)


def _entries(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            int(entry["step"])
        except (ValueError, TypeError, KeyError):
            notes.append(f"{path.name}: a line cannot be read (half written?) and is skipped")
            continue
        yield entry


def _record(entry: Mapping[str, Any]) -> Record:
    names = entry["columns"]
    partitions = {
        partition: {
            str(bucket): Bucket(**{name: _number(value) for name, value in zip(names, row, strict=True)})
            for bucket, row in entry[partition].items()
        }
        for partition in PARTITIONS
    }
    update = entry.get("update")
    edges = [_number(edge) for edge in entry["edges"]]
    return Record(int(entry["step"]), partitions, edges, None if update is None else _number(update))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # NaN is written as null


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("change"), int | float)
