"""Accuracy against entropy: does the target hold, and what does a rule get right at the entropy that it keeps?

The criteria are in docs/frontier.md. Methods are compared at equal entropy: for each point of the target rule the other
method's accuracy is read off the line through its own points, run by run of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.reporting import figures
from studies.methods.compare import Estimate, Group, Quantity, difference, estimate, in_points, proportion, signed
from studies.methods.figures import logarithmic, panels, save
from studies.methods.plan import Plan, point
from studies.methods.report import collect, finished_runs, machinery, machinery_line, without_nan
from studies.methods.results import Results, RunResult, write_json

SETTLED = 50  # updates, after which the deviation from the target counts
HELD = 0.10  # mean deviation from the target, of it, that counts as held
_NOISE_WINDOW = 11  # updates: the entropy's own noise is the deviation from the mean of so many

TARGET = "target"
START = "start"


@dataclass(frozen=True)
class Point:
    """One setting of one method: its runs, one a seed.

    `group` is measured at temperature 1, `cool` at the measurement's further one.
    """

    method: str
    setting: str
    group: Group
    cool: Group


@dataclass(frozen=True)
class Held:
    """How a run of the target rule kept its target; relative to the target, of the updates after `SETTLED`.

    Attributes:
        target: nats.
        deviation: mean absolute deviation of the batches' entropies.
        bias: mean deviation.
        noise: mean absolute deviation of a batch from the mean of its neighbours, what no controller can remove.
        at_bound: share of the updates at which the bound of the rule was reached.
    """

    target: float
    deviation: float
    bias: float
    noise: float
    at_bound: float


def held(run: RunResult) -> Held:
    """Of a run of the target rule."""
    entropy = np.asarray(run.curves["entropy"]["values"][SETTLED:])
    target = run.curves["target"]["values"][-1]
    window = np.ones(_NOISE_WINDOW) / _NOISE_WINDOW
    around = np.convolve(entropy, window, mode="valid")
    inner = entropy[_NOISE_WINDOW // 2 : len(entropy) - _NOISE_WINDOW // 2]
    bound = run.curves.get("at_bound", {}).get("values", [])[SETTLED:]
    return Held(
        target=target,
        deviation=float(np.abs(entropy - target).mean() / target),
        bias=float((entropy - target).mean() / target),
        # A batch is part of its own mean, which makes the distance smaller by this factor.
        noise=float(np.abs(inner - around).mean() / target / np.sqrt(1 - 1 / _NOISE_WINDOW)),
        at_bound=float(np.mean(bound)) if bound else 0.0,
    )


def points(plan: Plan, groups: Mapping[str, Group], sweeps: Mapping[str, Mapping[float | str, Group]]) -> list[Point]:
    """All settings of which every seed is finished; the groups are those of `collect`."""
    found: dict[int, Point] = {}

    def add(method: str, setting: str, group: Group) -> None:
        if plan.sweep_seeds is not None:  # only seeds that all settings have can be compared
            kept = [run for run in group.runs if run.spec["seed"] in plan.sweep_seeds]
            if not kept:
                return
            group = Group(kept)
        found.setdefault(id(group.runs[0]), _point(plan, method, setting, group))

    for name, sweep in plan.sweeps.items():
        for value, group in sweeps.get(name, {}).items():
            add(sweep.method, f"{sweep.field} {point(value)}", group)
    for name, group in groups.items():
        add(name, _setting(plan, name, group), group)
    return list(found.values())


def main_points(plan: Plan, groups: Mapping[str, Group]) -> list[Point]:
    """Each method with what its search chose, over all of its seeds, and the start."""
    return [_point(plan, name, _setting(plan, name, group), group) for name, group in groups.items()]


def _point(plan: Plan, method: str, setting: str, group: Group) -> Point:
    return Point(method, setting, group, Group(group.runs, temperature=plan.test.also_at[0]))


def _setting(plan: Plan, method: str, group: Group) -> str:
    """Of a method's main runs, where no sweep names it: what the searches chose for it."""
    if method == START:
        return ""
    if method == plan.baseline:
        return f"steps {plan.steps}"
    own = plan.methods[method]
    base = plan.methods[own.builds_on].trials if own.builds_on is not None else ()
    searched = dict.fromkeys(name for trial in (*base, *own.trials) for name in trial)
    fields = group.runs[0].spec["fields"]
    return ", ".join(f"{name} {point(fields[name])}" for name in searched if name in fields)


MEASURES: Mapping[str, Callable[[Point], Quantity]] = {
    "avg@k": lambda p: p.group.accuracy(),
    "avg@k at 0.6": lambda p: p.cool.accuracy(),
    "pass@k, hardest": lambda p: p.group.pass_at(p.group.samples, p.group.hardest),
    "pass@k at 0.6, hardest": lambda p: p.cool.pass_at(p.cool.samples, p.cool.hardest),
}


def at_equal_entropy(own: Point, others: Sequence[Point], measure: Callable[[Point], Quantity]) -> Estimate | None:
    """`own` minus the line through `others`, at the entropy of `own`, seed by seed; None where they do not reach it on
    both sides in each seed.

    Between two points the line is straight in the logarithm of the entropy.
    """
    if len(others) < 2:
        return None
    entropies, places = (
        np.asarray(own.group.entropy().by_seed()),
        np.asarray([p.group.entropy().by_seed() for p in others]),
    )
    if not np.all((places.min(0) <= entropies) & (entropies <= places.max(0))):
        return None
    quantities = [measure(own), own.group.entropy()]
    for p in others:
        quantities += [measure(p), p.group.entropy()]

    def combine(value: np.ndarray, entropy: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        return value - _read_off(np.log(entropy), np.log(np.stack(rest[1::2])), np.stack(rest[::2]))

    return estimate(quantities, combine)


def _read_off(at: np.ndarray, places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Heights at `at`, of the straight lines from place to place, (points, ...); beyond the last place its height."""
    order = np.argsort(places, axis=0)
    places, heights = np.take_along_axis(places, order, 0), np.take_along_axis(heights, order, 0)
    read = heights[0].copy()
    for (left, right), rise in zip(pairwise(places), np.diff(heights, axis=0), strict=True):
        width = right - left
        share = np.divide(at - left, width, out=(at >= right).astype(float), where=width > 0)
        read += np.clip(share, 0.0, 1.0) * rise
    return read


def compare(plan: Plan, found: Sequence[Point]) -> list[dict[str, Any]]:
    """Every point of the target rule against every method that is to keep entropy, and against the baseline, at
    equal entropy; in points of percent."""
    rows = []
    for own in (p for p in found if p.method == TARGET):
        for method in plan.methods:
            others = [p for p in found if p.method == method or (method == plan.baseline and p.method == START)]
            if method == TARGET or plan.methods[method].aim in ("length", "control") or not others:
                continue
            for name, measure in MEASURES.items():
                found_here = at_equal_entropy(own, others, measure)
                numbers = None if found_here is None else asdict(in_points(found_here))
                rows.append({"target": own.setting, "rival": method, "measure": name, "difference": numbers})
    return rows


def against_baseline(plan: Plan, found: Sequence[Point]) -> list[dict[str, Any]]:
    """Every other setting against the whole run of the baseline: the ratios of the entropies and of the thinking's
    lengths, and what it costs in points of percent."""
    baseline = (p for p in found if p.method == plan.baseline)
    whole = next((p for p in baseline if p.group.runs[0].spec["steps"] == plan.steps), None)
    if whole is None:
        return []
    rows = []
    for own in (p for p in found if p.method not in (plan.baseline, START)):
        costs = {
            name: asdict(in_points(difference(measure(whole), measure(own)))) for name, measure in MEASURES.items()
        }
        ratios = {
            "entropy": proportion(whole.group.entropy(), own.group.entropy()),
            "thinking": proportion(whole.group.thinking(), own.group.thinking()),
        }
        found_here = {name: asdict(ratio) for name, ratio in ratios.items()} | costs
        rows.append({"method": own.method, "setting": own.setting, **found_here})
    return rows


def write_frontier(plan: Plan, results: Results, output: Path) -> str:
    """frontier.json, frontier.md and frontier.png into `output`; returns the text of the tables.

    Where the settings have fewer seeds than the methods, the methods over all seeds have tables of their own and
    methods.png.
    """
    groups, sweeps, search = collect(plan, results)
    found = points(plan, groups, sweeps)
    titles = {START: "start", **{name: method.title for name, method in plan.methods.items()}}
    about = machinery(finished_runs(plan, results, search))
    keeping = {p.setting: [asdict(held(run)) for run in p.group.runs] for p in found if p.method == TARGET}
    rows, costs = compare(plan, found), against_baseline(plan, found)
    data = {
        "study": plan.name, "seeds": list(plan.seeds), "test": plan.test.to_dict(), "searches": search.record,
        "points": _numbers(found), "held": keeping, "at_equal_entropy": rows, "against_baseline": costs, **about,
    }  # fmt: skip
    tables = [
        _points_table(found, titles, plan.sweep_seeds or plan.seeds),
        _held_table(keeping),
        _rows_table(rows, titles),
        _costs_table(plan, costs, titles),
    ]
    if found:
        figure(found, titles, output / "frontier.png")
    if plan.sweep_seeds is not None and list(plan.sweep_seeds) != list(plan.seeds) and groups:
        mains = main_points(plan, groups)
        own_costs = against_baseline(plan, mains)
        data |= {"methods": _numbers(mains), "methods_against_baseline": own_costs}
        tables += [_points_table(mains, titles, plan.seeds), _costs_table(plan, own_costs, titles)]
        figure(mains, titles, output / "methods.png")
    write_json(output / "frontier.json", without_nan(data))
    text = "\n\n".join("\n".join(table) for table in tables)
    write_text(output / "frontier.md", f"{text}\n\n{machinery_line(about)}\n")
    return text


def _numbers(found: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "method": p.method, "setting": p.setting, "entropy": p.group.entropy().by_seed(),
            "thinking": p.group.thinking().by_seed(),
            **{name: measure(p).by_seed() for name, measure in MEASURES.items()},
        }
        for p in found
    ]  # fmt: skip


def _points_table(found: Sequence[Point], titles: Mapping[str, str], seeds: Sequence[int]) -> list[str]:
    lines = [
        f"Seeds {', '.join(map(str, seeds))}: mean (range). Entropy in nats per token at temperature 1, accuracies in "
        "percent.",
        "",
        f"| method | setting | entropy | {' | '.join(MEASURES)} | thinking tokens |",
        "| --- | --- | --- |" + " --- |" * (len(MEASURES) + 1),
    ]
    for p in sorted(found, key=lambda p: (list(titles).index(p.method), -p.group.entropy().value)):
        cells = [_spread(p.group.entropy(), 1, 3)]
        cells += [_spread(measure(p), 100, 1) for measure in MEASURES.values()]
        cells.append(_spread(p.group.thinking(), 1, 0))
        lines.append(f"| {titles[p.method]} | {p.setting} | {' | '.join(cells)} |")
    return lines


def _spread(quantity: Quantity, scale: float, digits: int) -> str:
    values = [scale * value for value in quantity.by_seed()]
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _held_table(keeping: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    lines = [
        f"The batches' entropy after update {SETTLED}, relative to the target (%; a number a seed). Held: a mean "
        f"deviation of at most {100 * HELD:g} %.",
        "",
        "| target | deviation | bias | noise of a batch | updates at the bound | held |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for setting, seeds in keeping.items():
        cells = [
            ", ".join(f"{100 * seed[name]:.1f}" for seed in seeds)
            for name in ("deviation", "bias", "noise", "at_bound")
        ]
        yes = np.mean([seed["deviation"] for seed in seeds]) <= HELD
        lines.append(f"| {setting} | {' | '.join(cells)} | {'yes' if yes else '**no**'} |")
    return lines


def _rows_table(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    lines = [
        "The target rule minus the rival at the same entropy, points (95 % interval). “–”: in one seed or more the "
        "rival's points do not reach this entropy.",
        "",
        f"| target | rival | {' | '.join(MEASURES)} |",
        "| --- | --- |" + " --- |" * len(MEASURES),
    ]
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        d = row["difference"]
        cells.setdefault((row["target"], titles[row["rival"]]), []).append("–" if d is None else signed(Estimate(**d)))
    return lines + [f"| {target} | {rival} | {' | '.join(own)} |" for (target, rival), own in cells.items()]


def _costs_table(plan: Plan, costs: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    baseline = titles[plan.baseline]
    lines = [
        f"Minus {baseline} after {plan.steps} updates, points (95 % interval); entropy and thinking as ratios.",
        "",
        f"| method | setting | entropy / {baseline} | thinking tokens / {baseline} | {' | '.join(MEASURES)} |",
        "| --- | --- | --- | --- |" + " --- |" * len(MEASURES),
    ]
    for row in costs:
        cells = [f"{e['value']:.2f} ({e['low']:.2f} to {e['high']:.2f})" for e in (row["entropy"], row["thinking"])]
        cells += [signed(Estimate(**row[name])) for name in MEASURES]
        lines.append(f"| {titles[row['method']]} | {row['setting']} | {' | '.join(cells)} |")
    return lines


_ENTROPY, _THINKING = "entropy (nats per token)", "thinking (tokens)"
_PANELS = (
    (_ENTROPY, "avg@k", "avg@k, temperature 1 (%)"),
    (_ENTROPY, "avg@k at 0.6", "avg@k, temperature 0.6 (%)"),
    (_ENTROPY, "pass@k, hardest", "pass@k, hardest level, temperature 1 (%)"),
    (_THINKING, "avg@k", "avg@k, temperature 1 (%)"),
)


def figure(found: Sequence[Point], titles: Mapping[str, str], path: Path) -> None:
    """Accuracy against entropy and against the thinking's length, a line a method.

    Bars are 95 % intervals over seeds and questions. The axes show all means. A longer bar is cut off, such as that of
    a setting of which one run in three ran away.
    """
    drawing, axes = panels(len(_PANELS), columns=2)
    for place, (against, name, unit) in zip(axes, _PANELS, strict=True):
        means = []
        for method in titles:
            own = sorted((p for p in found if p.method == method), key=lambda p: p.group.entropy().value)
            if not own:
                continue
            x = [estimate([_x(p, against)], np.asarray, positive=True) for p in own]
            y = [in_points(estimate([MEASURES[name](p)], np.asarray)) for p in own]
            means += [(a.value, b.value) for a, b in zip(x, y, strict=True)]
            place.errorbar(
                [e.value for e in x], [e.value for e in y], xerr=_bars(x), yerr=_bars(y),
                **_style(method, titles, against), label=titles[method], linewidth=1.3, elinewidth=0.6,
            )  # fmt: skip
        if against == _ENTROPY:
            logarithmic(place, "x")
        _show_all(place, np.asarray(means))
        place.set_xlabel(against)
        place.set_ylabel(unit)
    save(drawing, path, axes)


def _bars(found: Sequence[Estimate]) -> np.ndarray:
    """(2, points): below and above the value; without a bar where the interval is not known."""
    return np.nan_to_num([[e.value - e.low for e in found], [e.high - e.value for e in found]])


def _show_all(place: Any, means: np.ndarray) -> None:
    """Limits around the means, (points, 2)."""
    x, y = means.T
    if place.get_xscale() == "log":
        place.set_xlim(x.min() / 1.4, x.max() * 1.4)
    else:
        place.set_xlim(x.min() - 5, x.max() + 5)
    place.set_ylim(max(y.min() - 8, -2), min(y.max() + 8, 102))


def _style(method: str, titles: Mapping[str, str], against: str) -> dict[str, Any]:
    if method == START:
        return {"fmt": "*", "color": "black", "markersize": 9}
    again, index = divmod([name for name in titles if name != START].index(method), len(figures.PALETTE))
    return {
        "fmt": "os"[again % 2], "color": figures.colour(index), "markersize": 4,
        # The settings of a method are ordered by their entropy, not by the thinking's length.
        "linestyle": figures.DASHES[again % 2] if against == _ENTROPY else "none",
    }  # fmt: skip


def _x(p: Point, against: str) -> Quantity:
    return p.group.entropy() if against == _ENTROPY else p.group.thinking()
