"""Rows of long work on the disk, chunk by chunk, so that a killed process can resume.

A chunk is a parquet file that is written under a temporary name, flushed and renamed: it is complete or does not exist.
Which questions a chunk holds depends on its number alone. So any number of processes may share the work, and another
number of processes may resume it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import replacing, write_text
from entropy_rft.errors import UserValueError, users
from entropy_rft.files import json_text

SETTINGS, DATA = "settings.json", "data"
SCHEMA = 1
LATER = ("served_model",)
"""Settings that stores of earlier versions lack."""


class ChunkStore:
    """A directory of chunks with the settings that they were made with.

    Args:
        directory: is made when it does not exist.
        settings: plain JSON values; everything that changes the rows, and nothing else.
        total: questions in all.
        chunk_size: questions in a chunk.

    Raises:
        ValueError: the directory holds the work of other settings (the first that differs is named) or other files.
    """

    def __init__(
        self, directory: str | os.PathLike[str], settings: Mapping[str, Any], total: int, chunk_size: int
    ) -> None:
        if chunk_size < 1:
            raise UserValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.directory = Path(directory).expanduser()
        self.total = total
        self.chunk_size = chunk_size
        self.settings = {"schema": SCHEMA, **settings, "questions": total, "chunk_size": chunk_size}
        with users(OSError):
            self._open()

    @classmethod
    def reopen(cls, directory: str | os.PathLike[str]) -> ChunkStore:
        """The existing store in `directory`, with the settings that it was started with.

        Raises:
            ValueError: there is none, or its settings cannot be read.
        """
        settings = read_settings(Path(directory).expanduser())
        own = {name: value for name, value in settings.items() if name not in ("schema", "questions", "chunk_size")}
        return cls(directory, own, settings["questions"], settings["chunk_size"])

    @property
    def chunks(self) -> int:
        return -(-self.total // self.chunk_size)

    def span(self, chunk: int) -> range:
        """The questions of a chunk."""
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.total))

    def has(self, chunk: int) -> bool:
        return self._path(chunk).is_file()

    def done(self) -> int:
        """Questions that are on the disk."""
        return sum(len(self.span(chunk)) for chunk in range(self.chunks) if self.has(chunk))

    def missing(self, shard: int = 0, num_shards: int = 1) -> Iterator[int]:
        """The chunks of this process that are not on the disk yet; checked one by one, as other processes may write
        them.

        Raises:
            ValueError: `shard` or `num_shards` is out of range.
        """
        check_shard(shard, num_shards)
        return (chunk for chunk in range(shard, self.chunks, num_shards) if not self.has(chunk))

    def write(self, chunk: int, rows: Sequence[Mapping[str, Any]], schema: Any) -> None:
        """Write a chunk and flush it to the disk.

        Args:
            chunk: its number.
            rows: one a question, in order.
            schema: pyarrow's, of the rows.
        """
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        with replacing(self._path(chunk), sync=True) as temporary, temporary.open("wb") as stream:
            pq.write_table(table, stream)

    def _path(self, chunk: int) -> Path:
        return self.directory / DATA / f"chunk-{chunk:06d}.parquet"

    def _open(self) -> None:
        (self.directory / DATA).mkdir(parents=True, exist_ok=True)
        path = self.directory / SETTINGS
        if not path.is_file():
            if any((self.directory / DATA).glob("*.parquet")):
                raise UserValueError(f"{str(self.directory)!r} holds data without {SETTINGS}: give another directory")
            # Another process may do the same: the settings of the first are kept, and are compared below.
            write_text(path, json_text(self.settings, indent=2) + "\n", sync=True, keep=True)
        found = read_settings(self.directory)
        check_same(self.directory, {**dict.fromkeys(found), **self.settings}, found)


def begun_with(directory: str | os.PathLike[str]) -> str | None:
    """The fingerprint that the work in `directory` was started with; ``None`` where there is none yet."""
    path = Path(directory).expanduser()
    found = read_settings(path).get("fingerprint") if (path / SETTINGS).is_file() else None
    return None if found is None else str(found)


def check_same(directory: Path, settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first of `settings` that differs in `found`, those of the work in `directory`.

    A setting that earlier versions did not write (`LATER`) counts as equal where it is missing.
    """
    for name, value in json.loads(json_text(settings)).items():
        if found.get(name) != value and (name in found or name not in LATER):
            raise UserValueError(
                f"{str(directory)!r} was started with {name} = {found.get(name)!r}, not {value!r}: "
                "continue with the same settings, or give another directory"
            )


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of a chunk's samples, so that it does not depend on which process draws them."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/chunk {chunk}".encode(), digest_size=4).digest(), "big") >> 1


def check_shard(shard: int, num_shards: int) -> None:
    """Raise a ValueError unless ``0 <= shard < num_shards``."""
    if num_shards < 1:
        raise UserValueError(f"num_shards must be at least 1, got {num_shards}")
    if not 0 <= shard < num_shards:
        raise UserValueError(f"shard must lie between 0 and {num_shards - 1} for {num_shards} shards, got {shard}")


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings of a store.

    Raises:
        ValueError: there are none, or they cannot be read.
    """
    path = directory / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserValueError(
            f"{str(directory)!r} has no {SETTINGS}: give a directory that `probe collect` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise UserValueError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or settings.get("schema") != SCHEMA:
        raise UserValueError(f"{str(path)!r} is not of schema {SCHEMA}")
    return settings


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """All rows on the disk, by the column `index`; a half-written chunk is ignored.

    Raises:
        ValueError: a chunk is corrupted, or a question occurs twice.
    """
    return [row for _, row in _read(directory, None)[0]]


def read_rows_and_vectors(directory: Path, column: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The same with one column of vectors as a separate array: as Python numbers it would take 13 times the memory.

    Args:
        directory: of a store.
        column: its name; a list of float32 in each row, all of one length.

    Returns:
        The rows without that column, and (rows, D) float32 in the same order.

    Raises:
        ValueError: as `read_rows`, or the column is missing or holds something else.
    """
    found, vectors = _read(directory, column)
    places = [place for place, _ in found]
    # Processes that share the work may write chunks in any order, but a chunk's number determines its questions.
    ordered = vectors if places == list(range(len(places))) else vectors[places]
    return [row for _, row in found], ordered


def _read(directory: Path, column: str | None) -> tuple[list[tuple[int, dict[str, Any]]], np.ndarray]:
    """Rows by their index, each with its place in the array of the column's vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[int, tuple[int, dict[str, Any]]] = {}
    vectors = np.empty((0, 0), np.float32)
    paths, place = sorted((directory / DATA).glob("chunk-*.parquet")), 0
    total = 0
    for path in paths:
        with _readable(path):
            total += pq.read_metadata(path).num_rows
    for path in paths:
        with _readable(path):
            table = pq.read_table(path)
            if column is not None:
                own = _vectors(table, column)
                if not vectors.size:  # for all chunks, so that nothing is stored twice
                    vectors = np.empty((total, own.shape[1]), np.float32)
                if own.shape[1] != vectors.shape[1]:
                    raise pa.ArrowInvalid(f"{column} has {own.shape[1]} numbers, not {vectors.shape[1]}")
                vectors[place : place + len(own)] = own
                table = table.drop_columns([column])
            read = table.to_pylist()
        for row in read:
            if row["index"] in rows:
                raise UserValueError(f"{str(path)!r} repeats question {row['index']}")
            rows[row["index"]] = place, row
            place += 1
    return [rows[index] for index in sorted(rows)], vectors


def _vectors(table: Any, column: str) -> np.ndarray:
    """(rows, D), without a copy where Arrow stores them contiguously."""
    import pyarrow as pa

    if column not in table.column_names:
        raise pa.ArrowInvalid(f"there is no column {column}")
    values = table.column(column).combine_chunks()
    if not pa.types.is_fixed_size_list(values.type) or values.null_count or values.values.null_count:
        raise pa.ArrowInvalid(f"{column} does not hold the same number of values in each row")
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(values), values.type.list_size)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """One line that names the file and what to do about it, where it cannot be read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserValueError(
            f"{str(path)!r} is corrupted ({' '.join(str(error).split())[:120]}): delete it and collect again"
        ) from error
