"""Plots as inline SVG that takes its colours from the page: palette, style and the text of a drawing."""

from __future__ import annotations

import io
import re
from typing import Any

# Okabe and Ito's colours, less black and yellow, which vanish on one of the two backgrounds.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES: tuple[Any, ...] = ("-", (0, (3, 1.5)))  # first and second metric of a figure

# Drawn in these and then replaced, so that the text and the grid follow the page's light or dark scheme.
INK, _GRID = "#010203", "#010204"
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run called "$x" is a name, not a formula
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def colour(index: int) -> str:
    """The colour of the run at this index; it repeats after the palette's end."""
    return PALETTE[index % len(PALETTE)]


def new_figure() -> tuple[Any, Any]:
    """A matplotlib figure in the style of the pages, and its axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a report needs matplotlib: pip install "entropy_rft[report]"') from error
    with matplotlib.rc_context(STYLE):
        # Small, so that the text stays readable when a phone shows the figure at its own width.
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        return figure, figure.add_subplot()


def svg_text(figure: Any, salt: str, alt: str) -> str:
    """The drawing as SVG text; `salt` makes its ids its own, `alt` says what it shows."""
    import html

    import matplotlib

    # The salt makes the ids inside the drawing the same from one report to the next, and unlike those of other figures.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    # A tenth of a point is finer than a screen shows, and makes the page a third as large.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d\.\d)\d+", r"\1", path[0]), svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
