"""Figures of the studies, as PNG files for a README."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropy_rft.atomic import replacing
from entropy_rft.errors import UserValueError
from entropy_rft.reporting import figures


def panels(count: int, *, columns: int | None = None) -> tuple[Any, list[Any]]:
    """A figure of `count` panels side by side, in the report's style, and its axes.

    Raises:
        ValueError: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserValueError('the figures need matplotlib: pip install "entropy_rft[report]"') from error
    columns = columns or count
    rows = -(-count // columns)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes


def logarithmic(axes: Any, which: str) -> None:
    """Make an axis ("x" or "y") logarithmic, with plain labels: the report's style writes no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: str | os.PathLike[str], legend_from: Sequence[Any] = (), columns: int = 4) -> None:
    """Write it black on white, with one legend below for the labelled lines of `legend_from`."""
    import matplotlib

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(figures.STYLE):
        labelled: dict[str, Any] = {}
        for axes in legend_from:
            handles, labels = axes.get_legend_handles_labels()
            labelled |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in labelled}
        if labelled:
            figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, frameon=False)
        for axes in figure.axes:  # on a page the grid has a colour of its own
            for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
                line.set_color("#d5dae0")
        with replacing(target) as temporary:
            figure.savefig(temporary, format="png", dpi=140, facecolor="white", metadata={"Software": None})
