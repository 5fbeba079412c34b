"""Numbers as cells of a table, and tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with a fixed number of digits, or a dash for ``None`` and NaN."""
    return MISSING if value is None or value != value else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A fraction in percent, without the sign, or a dash."""
    return number(None if value is None else 100 * value, 1)


def distinct(named: Sequence[tuple[str, Path]]) -> list[str]:
    """The names of runs; where two are equal, with their directories."""
    counts = Counter(name for name, _ in named)
    return [name if counts[name] == 1 else f"{name} ({directory})" for name, directory in named]


def lined_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> Table:
    """A rich table of plain texts: nothing in them is read as markup."""
    table = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        first = index == 0  # the name of the line is never wrapped; a long run name is
        table.add_column(escape(name), justify="left" if first else "right", no_wrap=first, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    return table
