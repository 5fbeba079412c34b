"""Rows from a JSON Lines file or the Hugging Face hub, each with the place it came from, for error messages."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from entropy_rft.errors import UserValueError
from entropy_rft.tasks.answers import normalise_answer, number_text

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One record: `where` is "data.jsonl, line 3" or "openai/gsm8k, train row 3"."""

    where: str
    fields: dict[str, Any]

    def error(self, problem: str) -> ValueError:
        """The error to raise about this row."""
        return UserValueError(f"{self.where}: {problem}")

    def value(self, field: str, kinds: tuple[type, ...], expected: str) -> Any:
        """The field's value; raises ValueError when it is missing or not one of `kinds`."""
        if field not in self.fields:
            found = ", ".join(map(repr, self.fields)) or "no fields"
            raise self.error(f"field {field!r} is missing; the row has {found}")
        value = self.fields[field]
        # A bool is an int in Python, but true is not an answer.
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.error(f"field {field!r} must be {expected}, not {shown(value)}")
        return value

    def text(self, field: str) -> str:
        """The field's text; raises ValueError when it is missing, empty or not text."""
        value: str = self.value(field, (str,), "text")
        return self.checked(field, value)

    def answer(self, field: str) -> str:
        """The normalised gold answer in the field, text or a number; raises ValueError as `text` does."""
        value = self.value(field, (str, int, float), "text or a number")
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self.error(f"field {field!r} is too large a number: write it as text")
            value = number_text(value)
        return normalise_answer(self.checked(field, str(value)))

    def checked(self, field: str, value: str) -> str:
        """`value` itself; raises ValueError when it is blank or cannot be written as UTF-8."""
        if not value.strip():
            raise self.error(f"field {field!r} is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"field {field!r} holds half of a surrogate pair, which is not text") from None
        return value


def read_rows(path: str | PathLike[str] | None, hub: str, config: str | None, split: str) -> list[Row]:
    """The rows of the local file when there is a path, else of the hub data set."""
    return read_jsonl(path) if path is not None else read_hub(hub, config, split)


def read_jsonl(path: str | PathLike[str]) -> list[Row]:
    """All rows of a JSON Lines file: UTF-8 with or without a byte order mark; blank lines only at its end.

    Raises:
        ValueError: no such file, a line that is not a JSON object, or no rows at all.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserValueError(f"cannot read {str(file)!r}: {reason}") from None
    if lines == [b""]:
        raise UserValueError(f"{file} holds no rows")
    places = [f"{file}, line {number}" for number in range(1, len(lines) + 1)]
    return [Row(place, _parse(place, line)) for place, line in zip(places, lines, strict=True)]


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """All rows of a data set on the Hugging Face hub, or of the local cache of it.

    Raises:
        ValueError: it cannot be loaded; one line for any cause.
    """
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # each layer under it (HTTP, cache, builder) has its own exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserValueError(
            f"cannot load split {split!r} of {name!r} from the hub: {reason}. Without a network give path, a local "
            "JSON Lines file"
        ) from error
    return [Row(f"{name}, {split} row {index}", dict(fields)) for index, fields in enumerate(dataset)]


def sample(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` random items, in their original order."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[index] for index in chosen]


def _parse(where: str, line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise UserValueError(f"{where}: blank line between rows")
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UserValueError(f"{where}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise UserValueError(f"{where}: invalid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UserValueError(f"{where}: invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserValueError(f"{where}: a row must be a JSON object, not {shown(value)}")
    return value


def _refuse(constant: str) -> None:
    raise UserValueError(f"{constant} is not a JSON number")


def shown(value: object) -> str:
    """A value as an error message shows it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
