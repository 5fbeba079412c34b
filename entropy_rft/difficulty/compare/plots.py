"""The figures of a comparison of strategies: the frontier, the U, and the traces with their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_rft.atomic import replacing
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.reporting import figures
from entropy_rft.reporting.cells import number, percent
from entropy_rft.reporting.markup import Key

POLICIES = {
    "easy": "fixed Easy",
    "normal": "fixed Normal",
    "hard": "fixed Hard",
    "random": "random",
    "random_same_mix": "random, the probe's mix",
    "prompt_length": "prompt length",
    "probe": "probe",
    "probe_no_fallback": "probe, no fallback",
    "oracle": "oracle",
    "oracle_in_sample": "oracle, in sample",
}
"""Ways to choose a strategy, in the order of tables, with their titles."""
# Colour and marker of each, the same in every figure. Both random rules share a colour, and so do the probe and
# `prompt_length`.
_LOOKS = {
    "easy": (0, "o"), "normal": (1, "o"), "hard": (2, "o"), "random": (4, "o"), "random_same_mix": (4, "D"),
    "prompt_length": (5, "D"), "probe": (5, "o"), "oracle": (3, "o"),
}  # fmt: skip


def shown_policies(result: Mapping[str, Any]) -> list[str]:
    """The policies that a figure shows: not the in-sample oracle, whose numbers are too good."""
    return [name for name in POLICIES if name in result["policies"] and name in _LOOKS]


def frontier(result: Mapping[str, Any]) -> Any:
    """Accuracy (%) with its interval against mean tokens, as a matplotlib figure."""
    drawing, axes = figures.new_figure()
    for name in shown_policies(result):
        colour, marker = _LOOKS[name]
        policy = result["policies"][name]
        low, high = policy["interval"]
        centre = policy["accuracy"]
        axes.errorbar(
            [policy["tokens"]],
            [100 * centre],
            yerr=[[100 * max(0.0, centre - low)], [100 * max(0.0, high - centre)]],
            fmt=marker,
            color=figures.PALETTE[colour],
            label=POLICIES[name],
            capsize=4,
            markersize=8,
        )
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("mean tokens of an answer")
    axes.set_ylabel("accuracy (%)")
    return drawing


def frontier_keys(result: Mapping[str, Any]) -> list[Key]:
    """The legend of `frontier_svg`; a diamond's is dashed."""
    looks = [(name, *_LOOKS[name]) for name in shown_policies(result)]
    return [Key(figures.PALETTE[colour], POLICIES[name], dashed=marker == "D") for name, colour, marker in looks]


def frontier_svg(result: Mapping[str, Any]) -> str:
    """`frontier` for a page."""
    alt = "accuracy against tokens: " + "; ".join(
        f"{POLICIES[n]} {percent(result['policies'][n]['accuracy'])} % at {result['policies'][n]['tokens']:.0f}"
        for n in shown_policies(result)
    )
    return figures.svg_text(frontier(result), "frontier", alt)


def u_shape(levels: Mapping[str, Any], by: str) -> Any:
    """Mean token entropy (left) and accuracy (right, dashed) over the difficulty, as a matplotlib figure.

    Args:
        levels: of `by_level`.
        by: the name of the difficulty.
    """
    groups = levels["groups"]
    drawing, axes = figures.new_figure()
    other = axes.twinx()
    other.grid(False)
    places = range(len(groups))
    axes.plot(
        places, [g["entropy"] for g in groups.values()], "o-", color=figures.PALETTE[0], linewidth=2, label="entropy"
    )
    accuracy = [100 * g["accuracy"] for g in groups.values()]
    other.plot(
        places, accuracy, "s", linestyle=figures.DASHES[1], color=figures.PALETTE[5], linewidth=2, label="accuracy"
    )
    axes.set_xticks(list(places), list(groups))
    axes.set_xlabel(by)
    axes.set_ylabel("entropy (nats per token)")
    other.set_ylabel("accuracy (%)")
    other.set_ylim(-3, 103)
    return drawing


def u_shape_svg(levels: Mapping[str, Any], by: str) -> str:
    """`u_shape` for a page."""
    alt = f"mean token entropy and accuracy by {by}: " + "; ".join(
        f"{name}: {number(g['entropy'])} nats, {percent(g['accuracy'])} %" for name, g in levels["groups"].items()
    )
    return figures.svg_text(u_shape(levels, by), "u-shape", alt)


def scatter_svg(points: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float] | None) -> str:
    """Accuracy (%) against entropy, one point a question in the colour of its label."""
    drawing, axes = figures.new_figure()
    for index, name in enumerate(NAMES):
        own = [point for point in points if point["label"] == name]
        axes.plot(
            [p["entropy"] for p in own], [100 * p["accuracy"] for p in own], "o", color=figures.colour(index),
            alpha=0.5, markersize=4, markeredgewidth=0,
        )  # fmt: skip
    if thresholds:
        line = {"color": figures.INK, "linewidth": 0.8, "linestyle": figures.DASHES[1]}
        axes.axhline(100 * thresholds["accuracy_hard"], **line)
        axes.axhline(100 * thresholds["accuracy_normal"], **line)
        axes.axvline(thresholds["entropy_normal"], **line)
    axes.set_xlabel("mean token entropy (nats)")
    axes.set_ylabel("accuracy (%)")
    return figures.svg_text(drawing, "scatter", f"accuracy against entropy of {len(points)} questions, by label")


def save_png(drawing: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure with a legend, black on white, for a README."""
    import matplotlib

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(figures.STYLE):
        drawing.set_size_inches(6.4, 3.6)
        drawing.legend(loc="outside right upper", frameon=False)
        for axes in drawing.axes:  # on a page the grid has a colour of its own
            for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
                line.set_color("#d5dae0")
        with replacing(target) as temporary:
            drawing.savefig(temporary, format="png", dpi=160, facecolor="white", metadata={"Software": None})
