"""Answers on the disk, stored and found by their question.

The questions of a comparison can change: a collection is continued, or the probe is trained again on another part. The
answers to a question stay valid. So each store lists the questions that it holds, and only questions that no store
holds are asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_rft.difficulty.store import SETTINGS, ChunkStore, check_same, read_rows, read_settings
from entropy_rft.sampling.identity import digest, question_id

_OF_A_STORE = ("schema", "questions", "chunk_size", "digest", "ids")  # they follow from its questions


@dataclass(frozen=True)
class Gap:
    """A chunk without answers: questions to ask, and where the answers go."""

    part: int
    store: ChunkStore
    chunk: int
    questions: list[dict[str, Any]]


class KeptOutcomes:
    """The answers to some of a task's questions, below one directory.

    Args:
        directory: of the stores ``part-0``, ``part-1``, …; it may hold those of other tasks too.
        settings: of the answers, ``task`` among them; without what depends on the questions.
        questions: rows of the task that are wanted, in order.
        chunk_size: questions in a chunk of a new store.

    Raises:
        ValueError: the directory holds answers that were made with other settings.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        questions: Sequence[Mapping[str, Any]],
        chunk_size: int,
    ) -> None:
        self._directory = directory
        self._settings = dict(settings)
        self._rows = {question_id(row): dict(row) for row in questions}
        self._ids = [question_id(row) for row in questions]
        self._digest = digest(questions)
        self._chunk_size = chunk_size
        for _, found in self._stores():
            others = dict.fromkeys(name for name in found if name not in _OF_A_STORE)  # set there and not here
            check_same(directory, {**others, **settings, "task": found["task"]}, found)

    def rows(self) -> list[dict[str, Any] | None]:
        """The stored answers of each wanted question; ``None`` where there are none."""
        kept = defaultdict(list)
        for part, found in self._stores():
            ids = self._ids_of(found)
            if ids is not None:
                for row in read_rows(self._path(part)):
                    kept[ids[row["index"]]].append(row)
        asked: Counter[str] = Counter()  # a file may hold a question twice
        rows = []
        for name in self._ids:
            own = kept[name]
            rows.append(own[asked[name]] if asked[name] < len(own) else None)
            asked[name] += 1
        return rows

    def gaps(self) -> Iterator[Gap]:
        """What must be asked: first the missing chunks of existing stores, then a new store of all that is still
        missing."""
        for part, found in list(self._stores()):
            ids = self._ids_of(found)
            if ids is not None and set(ids) <= self._rows.keys():
                yield from self._missing(part, ChunkStore.reopen(self._path(part)), ids)
        missing = self._lacking()
        if not missing:
            return
        part = next(number for number in range(10**6) if not (self._path(number) / SETTINGS).is_file())
        own = {"digest": digest([self._rows[name] for name in missing]), "ids": missing}
        store = ChunkStore(self._path(part), {**self._settings, **own}, len(missing), self._chunk_size)
        yield from self._missing(part, store, missing)

    def _missing(self, part: int, store: ChunkStore, ids: Sequence[str]) -> Iterator[Gap]:
        lacking = set(self._lacking())
        for chunk in store.missing():
            own = [ids[index] for index in store.span(chunk)]
            if lacking.intersection(own):  # else another store has the answers
                yield Gap(part, store, chunk, [self._rows[name] for name in own])

    def _lacking(self) -> list[str]:
        return [name for name, row in zip(self._ids, self.rows(), strict=True) if row is None]

    def _stores(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and settings of each store, those of other tasks too."""
        for path in sorted(self._directory.glob(f"part-*/{SETTINGS}")):
            yield int(path.parent.name.removeprefix("part-")), read_settings(path.parent)

    def _ids_of(self, found: Mapping[str, Any]) -> list[str] | None:
        """The questions of a store; ``None`` where they are unknown, or are another task's.

        Stores of earlier versions have a digest of their questions alone, which shows whether they are the wanted ones.
        """
        if found["task"] != self._settings["task"]:
            return None
        if "ids" in found:
            return list(found["ids"])
        return self._ids if found["digest"] == self._digest else None

    def _path(self, part: int) -> Path:
        return self._directory / f"part-{part}"
