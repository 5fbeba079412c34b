"""The progress bar of long passes over completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(label: str, total: int, wanted: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on stderr while the block runs, and clear it however the block ends.

    Args:
        label: what is being done.
        total: steps of the whole, completions for instance.
        wanted: False shows nothing; neither does a stderr that is not a terminal.

    Yields:
        ``advance(steps, note)``: count `steps` more as done and show `note` behind the bar.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    )
    with bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda steps, note: bar.update(task, advance=steps, note=note)
