"""The page of ``entropy-rft inspect``: what the lens recorded of one run or several, as figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.evaluation.lens import PARTITIONS, Bucket, Lens, totals
from entropy_rft.evaluation.lens_table import (
    AUDITED_NOTE,
    NOTE,
    TITLES,
    header,
    lens_lines,
    shown,
    title,
    token_numbers,
)
from entropy_rft.reporting.figures import INK, colour, new_figure, svg_text
from entropy_rft.reporting.markup import Figure, Key, Table, render

_UNIT = "10⁻³ nats per token"
_TICK_CHARACTERS = 50  # that fit beside each other under a figure


def lens_page(lenses: Sequence[Lens], labels: Sequence[str], tokens: int) -> str:
    """The page as HTML; it needs no network and runs no script.

    Args:
        lenses: at least one.
        labels: their names.
        tokens: how many of the most negative and of the most positive stored tokens of each run to show.

    Raises:
        ValueError: no run is given.
        ImportError: matplotlib is not installed.
    """
    if not lenses:
        raise UserValueError("a page needs at least one run")
    keys = [Key(colour(index), label) for index, label in enumerate(labels)]
    figures = [_bars(lenses, partition, keys) for partition in PARTITIONS]
    figures.append(_curves(lenses, keys))
    if any(lens.audited for lens in lenses):
        figures.append(_measured(lenses, keys))
    return render(
        "entropy_rft.evaluation",
        "lens.html",
        title="Which tokens the entropy change came from",
        drawings=figures,
        note=f"{NOTE}.",
        audited_note=f"{AUDITED_NOTE}." if any(lens.audited for lens in lenses) else "",
        runs=[
            (title(lens, label), Table(header(lens), lens_lines(lens)), _tokens(lens, tokens), lens.notes)
            for lens, label in zip(lenses, labels, strict=True)
        ],
    )


def _tokens(lens: Lens, count: int) -> list[dict[str, Any]]:
    return [
        {
            "numbers": token_numbers(token),
            "dropped": bool(token.get("dropped")),
            **{part: shown(token.get(part)) for part in ("before", "token", "after")},
        }
        for token in lens.extremes(count)
    ]


def _bars(lenses: Sequence[Lens], partition: str, keys: Sequence[Key]) -> Figure:
    """For each bucket and run a bar down (loss) and one up (gain), with the rule's part faint."""
    figure, axes = new_figure()
    sums = [totals(lens.records)[partition] for lens in lenses]
    # Some buckets are empty in every run, such as the marker's own tokens with an advantage of zero.
    names = [name for name in sums[0] if any(each[name].tokens for each in sums)]
    width = 0.8 / len(lenses)
    for index, (lens, buckets) in enumerate(zip(lenses, sums, strict=True)):
        scale = 1000 / max(Bucket.sum([record.total for record in lens.records]).tokens, 1)
        places = [position - 0.4 + width * (index + 0.5) for position in range(len(names))]
        for whole, dropped in (("loss", "dropped_loss"), ("gain", "dropped_gain")):
            all_of_it = [scale * getattr(buckets[name], whole) for name in names]
            kept = [
                value - scale * getattr(buckets[name], dropped) for value, name in zip(all_of_it, names, strict=True)
            ]
            axes.bar(places, all_of_it, width, color=colour(index), alpha=0.35)
            axes.bar(places, kept, width, color=colour(index))
    axes.axhline(0, color=INK, linewidth=0.8)
    ticks = [name.replace("/", "\n").replace(" to ", "–") for name in names]
    axes.set_xticks(range(len(names)), ticks, fontsize=8)
    longest = max((len(line) for tick in ticks for line in tick.split("\n")), default=0)
    if len(ticks) * longest > _TICK_CHARACTERS:
        axes.tick_params(axis="x", labelrotation=60)
    axes.set_ylabel(_UNIT)
    heading = f"Predicted change by {TITLES[partition]}"
    alt = f"{heading} ({_UNIT}); runs: {', '.join(key.label for key in keys)}"
    return Figure(
        heading,
        svg_text(figure, partition, alt),
        keys,
        "down: loss, up: gain, for a unit logit step; faint: what the rule dropped",
    )


def _curves(lenses: Sequence[Lens], keys: Sequence[Key]) -> Figure:
    figure, axes = new_figure()
    for index, lens in enumerate(lenses):
        steps = [record.step for record in lens.records]
        sums = [record.total for record in lens.records]
        for values, style in (([s.loss + s.gain for s in sums], "--"), ([s.predicted for s in sums], "-")):
            points = [1000 * value / max(s.tokens, 1) for value, s in zip(values, sums, strict=True)]
            marker = "o" if len(points) == 1 else None
            axes.plot(steps, points, style, color=colour(index), linewidth=1.5, marker=marker)
    heading = "Predicted change over the run"
    legend = [*keys, Key(None, "with the rule"), Key(None, "without the rule", dashed=True)]
    return _finished(figure, axes, heading, _UNIT, legend, keys)


def _measured(lenses: Sequence[Lens], keys: Sequence[Key]) -> Figure:
    figure, axes = new_figure()
    for index, lens in enumerate(lenses):
        sums = [(record.step, record.total) for record in lens.audited]
        points = [1000 * (total.measured or 0.0) / max(total.tokens, 1) for _, total in sums]
        axes.plot([step for step, _ in sums], points, "o-", color=colour(index), linewidth=1.5, markersize=4)
    heading = "Measured change over the run"
    return _finished(figure, axes, heading, _UNIT, keys, keys)


def _finished(figure: Any, axes: Any, heading: str, unit: str, legend: Sequence[Key], runs: Sequence[Key]) -> Figure:
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("optimisation step")
    axes.set_ylabel(unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    alt = f"{heading} ({unit}); runs: {', '.join(key.label for key in runs)}"
    return Figure(heading, svg_text(figure, heading, alt), legend)
