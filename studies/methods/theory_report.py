"""The theory's result as a figure and as markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.reporting import figures
from entropy_rft.reporting.cells import number
from studies.methods.figures import logarithmic, panels, save

_SWEEPS = {"logits": "one token's logits", "sgd": "parameters, SGD", "adam": "parameters, Adam"}


def sweeps(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name to sweep: of the logits, and of the parameters with each optimizer."""
    return {"logits": result["logits"], **result["parameters"]}


def write_figure(result: Mapping[str, Any], path: Path) -> None:
    """Slope and error against the step, and what the per-token formula says of whole batches."""
    figure, (slopes, errors, batches) = panels(3)
    for index, (name, sweep) in enumerate(sweeps(result).items()):
        rows = sweep["batches"]
        largest = rows[0][0]["rate"]
        for i, batch in enumerate(rows):
            rates = [row["rate"] / largest for row in batch]
            look: dict[str, Any] = {"color": figures.colour(index), "markersize": 4, "linewidth": 1.5}
            label = _SWEEPS[name] if i == 0 else None
            slopes.plot(rates, [row["slope"] for row in batch], "o-", label=label, **look)
            errors.plot(rates, [row["rms_error"] for row in batch], "o-", **look)
            if i == 0:
                guide = batch[-1]["rms_error"] * (np.asarray(rates) / rates[-1]) ** 2
                errors.plot(rates, guide, color=figures.INK, linewidth=0.8, linestyle=figures.DASHES[1])
    for axes in (slopes, errors):
        logarithmic(axes, "x")
        axes.set_xlabel("step, as a fraction of the largest")
    slopes.axhline(1, color=figures.INK, linewidth=0.8)
    slopes.set_ylabel("measured / predicted (slope)")
    logarithmic(errors, "y")
    errors.set_ylabel("rms error, nats (dashed: quadratic)")
    for index, shared in enumerate(result["shared"].values(), start=1):
        # Each in units of its own spread: the formula has no scale under Adam.
        predicted, measured = ([row[kind] for row in shared["batches"]] for kind in ("predicted", "measured"))
        batches.plot(_standard(predicted), _standard(measured), "o", color=figures.colour(index), markersize=5)
    batches.axhline(0, color=figures.INK, linewidth=0.6)
    batches.axvline(0, color=figures.INK, linewidth=0.6)
    batches.set_xlabel("the paper's formula, mean of a batch")
    batches.set_ylabel("measured (both / their rms)")
    save(figure, path, [slopes])


def _standard(values: list[float]) -> list[float]:
    scale = float(np.sqrt(np.mean(np.square(values)))) or 1.0
    return [value / scale for value in values]


def markdown(result: Mapping[str, Any]) -> str:
    """Tables of the three statements and of the split, with what they mean."""
    lines = [
        f"{len(result['tokens'])} batches of {result['settings']['questions']} questions × "
        f"{result['settings']['samples']} completions ({sum(result['tokens'])} tokens), float64.",
        "",
        "| what moves | step | slope | correlation over tokens | rms error, nats per token | its power of the step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, sweep in sweeps(result).items():
        for i, row in enumerate(sweep["batches"][0]):
            order = f"{number(sweep['rms_order'], 3)}" if i == 0 else ""
            lines.append(
                f"| {_SWEEPS[name] if i == 0 else ''} | {row['rate']:g} | {row['slope']:.4f} | "
                f"{row['correlation']:.4f} | {row['rms_error']:.2e} | {order} |"
            )
    lines += [
        "",
        "The paper's formula, token by token, against the real change under a step of the shared parameters:",
        "",
        "| optimizer | step | correlation over tokens (mean) | over batch means: correlation | same sign | batches |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, shared in result["shared"].items():
        over = shared["over_batches"]
        lines.append(
            f"| {name.upper() if name == 'sgd' else 'Adam'} | {shared['batches'][0]['rate']:g} | "
            f"{number(shared['mean_token_correlation'], 3)} | {number(over['correlation'], 3)} | "
            f"{100 * shared['same_sign']:.0f} % | {over['batches']} |"
        )
    lines += ["", *_split_lines(result["parameters"]["sgd"]["batches"][0][-1])]
    return "\n".join(lines) + "\n"


def _split_lines(row: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Split of the change of the smallest SGD step ({row['rate']:g}), 1e-6 nats per token, predicted / measured:",
        "",
    ]
    signs, phases = list(row["split"]["measured"]), list(row["split"]["measured"]["positive"])
    lines += [f"| advantage | {' | '.join(phases)} | sum |", "| --- |" + " --- |" * (len(phases) + 1)]

    def cell(values: Mapping[str, float]) -> str:
        return f"{1e6 * values['predicted']:.3f} / {1e6 * values['measured']:.3f}"

    for sign in signs:
        cells = [{kind: row["split"][kind][sign][phase] for kind in row["split"]} for phase in phases]
        total = {kind: sum(each[kind] for each in cells) for kind in row["split"]}
        lines.append(f"| {sign} | {' | '.join(map(cell, [*cells, total]))} |")
    whole = [
        {kind: sum(row["split"][kind][sign][phase] for sign in signs) for kind in row["split"]} for phase in phases
    ]
    lines.append(f"| all | {' | '.join(map(cell, whole))} | {cell(row)} |")
    return lines
