"""Plots as inline SVG that takes its colours from the page: palette, style and the text of a drawing."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

# Okabe and Ito's colours without black and yellow, which are invisible on one of the two backgrounds.
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
    """The drawing as SVG text; `salt` makes its ids unique, `alt` describes what it shows."""
    import matplotlib

    # The salt makes the ids inside the drawing the same in every report, and different from those of other figures.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = ElementTree.fromstring(buffer.getvalue())
    for metadata in svg.findall(f"{{{_SVG}}}metadata"):
        svg.remove(metadata)
    del svg.attrib["width"], svg.attrib["height"]  # the page sets them
    svg.attrib |= {"role": "img", "aria-label": alt}
    for element in svg.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                value = element.attrib[name]
                element.attrib[name] = value.replace(INK, "currentColor").replace(_GRID, "var(--grid)")
        if "d" in element.attrib:
            element.attrib["d"] = _shortened(element.attrib["d"])
    return ElementTree.tostring(svg, encoding="unicode")


def _shortened(path: str) -> str:
    """Path data to a tenth of a point: finer than a screen shows, and it makes the page a third as large."""
    return " ".join(word if word.isalpha() else f"{float(word):.1f}" for word in path.split())
