"""The progress of long passes: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 8.0
"""Between two lines where stderr is no terminal."""

_last_line = time.monotonic()  # of all bars: one that is short leaves the next line to the bar after it


def duration(seconds: float) -> str:
    """Such as ``45 s``, ``4 min 10 s``, ``25 min`` or ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


@contextmanager
def progress_bar(label: str, total: int, wanted: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show on stderr how far the block is while it runs.

    On a terminal that is a bar, which is cleared however the block ends. Anywhere else, in a log file for instance, it
    is a line every few seconds, written by a thread of its own, so that a long step is no silence.

    Args:
        label: what is being done.
        total: steps of the whole, completions for instance.
        wanted: False shows nothing.

    Yields:
        ``advance(steps, note)``: count `steps` more as done and show `note` behind them.
    """
    console = Console(stderr=True)
    if not wanted:
        yield lambda steps, note: None
        return
    if not console.is_terminal:
        with _lines(label, total, console) as advance:
            yield advance
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda steps, note: bar.update(task, advance=steps, note=note)


@contextmanager
def _lines(label: str, total: int, console: Console) -> Iterator[Callable[[int, str], None]]:
    done, latest = 0, ""
    started, ended = time.monotonic(), threading.Event()

    def advance(steps: int, note: str) -> None:
        nonlocal done, latest
        done, latest = done + steps, note

    def write() -> None:
        global _last_line
        while not ended.wait(max(0.0, _last_line + LINE_SECONDS - time.monotonic())):
            _last_line = time.monotonic()
            about = f"{label}: {done} of {total} after {duration(_last_line - started)}"
            console.print(f"{about}, {latest}" if latest else about, highlight=False, markup=False, soft_wrap=True)

    writer = threading.Thread(target=write, name="progress", daemon=True)
    writer.start()
    try:
        yield advance
    finally:
        ended.set()
        writer.join()
