"""The progress of long passes: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 8.0
"""Seconds between two lines where stderr is not a terminal."""

_last_line = time.monotonic()  # shared by all bars, so that many short bars do not write a line each


def duration(seconds: float) -> str:
    """Seconds as text, such as ``45 s``, ``4 min 10 s``, ``25 min`` or ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


@contextmanager
def progress_bar(label: str, total: int, wanted: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of the block on stderr while it runs.

    On a terminal that is a bar, which is cleared when the block ends, also after an error. Elsewhere, for instance in a
    log file, it is a line every few seconds. A separate thread writes it, so that lines appear during a long step too.

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
