"""A study's results as one table, the verdicts, and figures; from the runs' JSON files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.evaluation.plots import smoothed
from entropy_rft.reporting import figures
from entropy_rft.reporting.cells import MISSING, number
from studies.methods.claims import Claim, judge
from studies.methods.compare import Group, Quantity, three_digits
from studies.methods.figures import panels, save
from studies.methods.plan import Plan, RunSpec, point
from studies.methods.results import Results, RunResult, write_json
from studies.methods.search import Search, all_runs

_LAST = 0.1  # share of the logged steps; a curve's end is their mean


def collect(plan: Plan, results: Results) -> tuple[dict[str, Group], dict[str, dict[float | str, Group]], Search]:
    """What is finished: the methods (and ``start``) and the points of the sweeps of which every seed is."""
    search = Search(plan, results)
    groups = {}
    for name, specs in {"start": plan.starts(), **{n: plan.mains(n, c) for n, c in search.choices.items()}}.items():
        if (own := _all(specs, results)) is not None:
            groups[name] = own
    sweeps: dict[str, dict[float | str, Group]] = {}
    for name, sweep in plan.sweeps.items():
        if (start := search.start_of(sweep)) is not None:
            points = plan.sweep_runs(name, start)
            sweeps[name] = {value: own for value, specs in points.items() if (own := _all(specs, results))}
    return groups, sweeps, search


def _all(specs: Sequence[RunSpec], results: Results) -> Group | None:
    found = [results.get(spec.name, spec.digest) for spec in specs]
    runs = [run for run in found if run is not None]
    return Group(runs) if runs and len(runs) == len(found) else None


def write_report(plan: Plan, results: Results, output: Path) -> list[Claim]:
    """claims.json, claims.md and the figures into `output`; returns the claims."""
    groups, sweeps, search = collect(plan, results)
    claims = judge(plan, groups, sweeps)
    about = machinery(finished_runs(plan, results, search))
    titles = {name: method.title for name, method in plan.methods.items()}
    data = {
        "study": plan.name,
        "model": dict(plan.model),
        "seeds": list(plan.seeds),
        "test": plan.test.to_dict(),
        "searches": search.record,
        "methods": {name: numbers(group) for name, group in groups.items()},
        "sweeps": {
            name: {point(value): numbers(group) for value, group in points.items()} for name, points in sweeps.items()
        },
        "claims": [claim.to_dict() for claim in claims],
        **about,
    }
    write_json(output / "claims.json", without_nan(data))
    text = markdown(plan, groups, sweeps, search, claims)
    write_text(output / "claims.md", f"{text}\n{machinery_line(about)}\n")
    if groups:
        trained = {name: group for name, group in groups.items() if name != "start"}
        if trained:
            curves_figure(trained, titles, output / "curves.png")
        difficulty_figure(groups, {"start": "start", **titles}, output / "difficulty.png")
    if any(sweeps.values()):
        sweeps_figure(sweeps, output / "sweeps.png")
    return claims


def finished_runs(plan: Plan, results: Results, search: Search) -> list[RunResult]:
    """Every finished run of the study: the start, trials, methods and sweeps."""
    found = []
    for spec in all_runs(plan, search):
        with suppress(ValueError):  # the search chose otherwise than was assumed here
            found.append(results.get(spec.name, spec.digest))
    return [run for run in found if run is not None]


def machinery(runs: Sequence[RunResult]) -> dict[str, Any]:
    """What the runs were made on, by and how long; runs of several devices or versions are all named."""
    versions: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.about.get("versions", {}).items():
            versions.setdefault(name, set()).add(str(version))
    return {
        "runs": len(runs),
        "devices": sorted({run.about["device"] for run in runs}),
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "hours_of_runs": round(sum(run.about["seconds"] for run in runs) / 3600, 2),
    }


def machinery_line(about: Mapping[str, Any]) -> str:
    """The same as a sentence."""
    of = "; ".join(f"{name} {' and '.join(found)}" for name, found in about["versions"].items() if name in _NAMED)
    devices = " and ".join(about["devices"]) or MISSING
    return f"{about['runs']} runs, {about['hours_of_runs']:g} hours of one process each on {devices} ({of})."


_NAMED = ("torch", "transformers", "trl")


def numbers(group: Group) -> dict[str, list[float]]:
    """A number a seed of everything the table has."""
    quantities = table_quantities(group)
    return {name: quantity.by_seed() for name, quantity in quantities.items()}


def table_quantities(group: Group) -> dict[str, Quantity]:
    """Column to quantity; fractions, nats and tokens."""
    k = group.samples
    return {
        "avg@k": group.accuracy(),
        "pass@k": group.pass_at(k),
        "pass@k, hardest": group.pass_at(k, group.hardest),
        "entropy": group.entropy(),
        "entropy, thinking": group.ratio("entropy_thinking", "thinking"),
        "entropy, answer": group.ratio("entropy_answer", "answer"),
        "thinking tokens": group.thinking(),
        "truncated": group.ratio("truncated", "completions"),
        "trained on, 1000 tokens": training_tokens(group),
    }


def training_tokens(group: Group) -> Quantity:
    """Sampled for the training, thousands: all methods sample the same number of completions, not of one length."""
    sampled = [
        [RunSpec.from_dict(run.spec).batch * sum(run.curves.get("length", {}).get("values", [])) / 1000]
        for run in group.runs
    ]
    return Quantity(np.asarray(sampled), np.ones((len(sampled), 1)))


_FORMATS = {
    "entropy": (1, 3),
    "entropy, thinking": (1, 3),
    "entropy, answer": (1, 4),
    "thinking tokens": (1, 1),
    "trained on, 1000 tokens": (1, 0),
}


def markdown(
    plan: Plan,
    groups: Mapping[str, Group],
    sweeps: Mapping[str, Mapping[float | str, Group]],
    search: Search,
    claims: Sequence[Claim],
) -> str:
    """Claims, the table of methods, sweeps and searches."""
    seeds = ", ".join(map(str, plan.seeds))
    asked = plan.test
    lines = [
        f"Study `{plan.name}`: {asked.questions} {asked.split} questions × {asked.samples} samples, seeds {seeds}, "
        f"{plan.steps} steps. Brackets: 95 % interval over seeds (Student's t of the paired differences) and questions "
        "(bootstrap); with few seeds it is wide, and a claim is undecided unless all of it lies on one side.",
        *(["", _ONE_SEED] if len(plan.seeds) == 1 else []),
        "",
        "| claim | comparison | found | needed | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in claims:
        lines.append(f"| **{claim.number}. {claim.text}** | | | | **{claim.verdict}** |")
        for check in claim.checks:
            e = check.estimate
            needed = f"{check.relation} {check.threshold:g}"
            value, low, high = map(three_digits, (e.value, e.low, e.high))
            found = f"{value} ({low} to {high}) {check.unit}".strip()
            lines.append(f"| | {check.text} | {found} | {needed} | {check.verdict} |")
        if claim.missing:
            lines.append(f"| | not measured: {', '.join(claim.missing)} | | | |")
    lines += ["", "Mean over seeds (range); fractions in percent, entropies in nats per token.", ""]
    titles = {"start": "start", **{name: method.title for name, method in plan.methods.items()}}
    lines += _table("method", {titles[name]: group for name, group in groups.items()})
    for name, points in sweeps.items():
        sweep = plan.sweeps[name]
        if points:
            lines += ["", f"Sweep of `{sweep.field}` ({titles[sweep.method]}):", ""]
            lines += _table(sweep.field, {point(value): group for value, group in points.items()})
    lines += _matched_lines({titles[name]: group for name, group in groups.items() if name != "start"})
    lines += ["", *_search_lines(plan, search)]
    return "\n".join(lines) + "\n"


def _table(first: str, groups: Mapping[str, Group]) -> list[str]:
    if not groups:
        return [MISSING]
    columns = list(table_quantities(next(iter(groups.values()))))
    lines = [f"| {first} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, group in groups.items():
        cells = []
        for column, quantity in table_quantities(group).items():
            scale, digits = _FORMATS.get(column, (100, 1))
            values = [scale * value for value in quantity.by_seed()]
            mean, low, high = (number(value, digits) for value in (float(np.mean(values)), min(values), max(values)))
            cells.append(MISSING if mean == MISSING else f"{mean} ({low}–{high})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


_ONE_SEED = "**One seed**: the intervals are of questions alone, and the verdicts say nothing about other seeds."
_REACHED = (0.7, 0.75, 0.8, 0.85)
_WINDOW = 6  # generations, of which the mean is taken: one has few questions


def entropy_at(run: RunResult, accuracy: float) -> float | None:
    """Entropy in training (nats per token) when its right answers first reach `accuracy`; None where they do not.

    Both are means of the last `_WINDOW` generations.
    """
    right, entropy = run.curves.get("accuracy"), run.curves.get("entropy")
    if right is None or entropy is None:
        return None
    of_step = dict(zip(entropy["steps"], entropy["values"], strict=True))
    for end in range(_WINDOW, len(right["steps"]) + 1):
        if np.mean(right["values"][end - _WINDOW : end]) >= accuracy:
            return float(np.mean([of_step[step] for step in right["steps"][end - _WINDOW : end]]))
    return None


def _matched_lines(groups: Mapping[str, Group]) -> list[str]:
    """A method that learns more slowly has more entropy for that reason alone: here methods are compared at equal
    accuracy."""
    found = {
        name: [[entropy_at(run, accuracy) for run in group.runs] for accuracy in _REACHED]
        for name, group in groups.items()
    }
    if not any(value is not None for each in found.values() for values in each for value in values):
        return []
    lines = ["", "Entropy in training when the right answers in training first reach (seed by seed):", ""]
    lines += [f"| method | {' | '.join(f'{100 * a:g} %' for a in _REACHED)} |", "| --- |" + " --- |" * len(_REACHED)]
    for name, each in found.items():
        cells = [", ".join("–" if value is None else f"{value:.3f}" for value in values) for values in each]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _search_lines(plan: Plan, search: Search) -> list[str]:
    if not any(record["trials"] for record in search.record.values()):
        return ["Nothing was searched: the plan gives every field."]
    asked = plan.validation
    lines = [
        f"Searches ({asked.questions} {asked.split} questions × {asked.samples} samples, seed {plan.search_seed}, "
        f"{plan.search_steps} steps, the same number of trials for every method; chosen in bold):",
        "",
        "| method | chosen by | trial | avg@k, % | entropy | thinking tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in search.record.items():
        for index, trial in enumerate(record["trials"]):
            what = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial["fields"].items())
            what = what or "nothing varied"
            what = f"**{what}**" if index == record["chosen"] else what
            title = plan.methods[name].title if index == 0 else ""
            aim = _aim(record) if index == 0 else ""
            lines.append(
                f"| {title} | {aim} | {what} | {100 * trial['accuracy']:.1f} | {trial['entropy']:.3f} | "
                f"{trial['thinking']:.1f} |"
            )
    return lines


def _aim(record: Mapping[str, Any]) -> str:
    """The criterion by which a method's trial was chosen, and among which trials."""
    needed, aim = record["accuracy_needed"], record["aim"]
    if aim == "target":
        return "entropy nearest to its entropy_target, of all trials"
    if needed is None:
        return str(aim)
    if any(trial["accuracy"] >= needed for trial in record["trials"]):
        return f"{aim}, of the trials with avg@k ≥ {100 * needed:.1f} %"
    return f"accuracy, since none has avg@k ≥ {100 * needed:.1f} %"


# --- figures ------------------------------------------------------------------------------------------------------

_CURVES = (
    ("entropy", "entropy (nats per token)"),
    ("accuracy", "right answers in training (fraction)"),
    ("reward", "reward (PEAR's own where it is used)"),
    ("thinking", "thinking (tokens)"),
)


def curves_figure(groups: Mapping[str, Group], titles: Mapping[str, str], path: Path) -> None:
    """Mean and range over seeds, over the steps."""
    figure, axes = panels(len(_CURVES), columns=2)
    for place, (curve, unit) in zip(axes, _CURVES, strict=True):
        for index, (name, group) in enumerate(groups.items()):
            series = [run.curves[curve] for run in group.runs if curve in run.curves]
            if len(series) < len(group.runs):
                continue
            steps = series[0]["steps"]
            values = np.stack([smoothed(each["values"]) for each in series])
            look = _look(index)
            place.plot(steps, values.mean(0), label=titles[name], linewidth=1.8, **look)
            place.fill_between(steps, values.min(0), values.max(0), color=look["color"], alpha=0.15, linewidth=0)
        place.set_xlabel("optimisation step")
        place.set_ylabel(unit)
    save(figure, path, axes)


def difficulty_figure(groups: Mapping[str, Group], titles: Mapping[str, str], path: Path) -> None:
    """avg@k, pass@k and thinking length by difficulty; mean and range over seeds."""
    figure, axes = panels(3)
    for index, (name, group) in enumerate(groups.items()):
        levels = sorted(set(group.difficulty.tolist()))
        quantities = (
            [group.accuracy(level) for level in levels],
            [group.pass_at(group.samples, level) for level in levels],
            [group.thinking(level) for level in levels],
        )
        look = {"color": "#808080", "linestyle": "-"} if name == "start" else _look(index - ("start" in groups))
        for place, own, scale in zip(axes, quantities, (100, 100, 1), strict=True):
            values = scale * np.asarray([quantity.by_seed() for quantity in own])
            spread = [values.mean(1) - values.min(1), values.max(1) - values.mean(1)]
            shift = 0.06 * (index - len(groups) / 2)  # so that the bars are side by side
            place.errorbar(
                np.arange(len(levels)) + shift, values.mean(1), yerr=spread, fmt="o", label=titles[name], capsize=2,
                markersize=3, linewidth=1.2, **look,
            )  # fmt: skip
    k = next(iter(groups.values())).samples
    for place, unit in zip(axes, (f"avg@{k} (%)", f"pass@{k} (%)", "thinking (tokens)"), strict=True):
        place.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        place.set_xlabel("difficulty")
        place.set_ylabel(unit)
    save(figure, path, axes, columns=5)


def sweeps_figure(sweeps: Mapping[str, Mapping[float | str, Group]], path: Path) -> None:
    """Entropy, thinking length and avg@k against each swept value; mean and range over seeds."""
    shown = {name: points for name, points in sweeps.items() if points}
    figure, axes = panels(3 * len(shown), columns=3)
    for row, (name, points) in enumerate(shown.items()):
        for column, (unit, scale) in enumerate((("entropy (nats)", 1), ("thinking (tokens)", 1), ("avg@k (%)", 100))):
            place = axes[3 * row + column]
            quantity = [(g.entropy(), g.thinking(), g.accuracy())[column].by_seed() for g in points.values()]
            values = scale * np.asarray(quantity)
            spread = [values.mean(1) - values.min(1), values.max(1) - values.mean(1)]
            places = np.arange(len(points))
            place.errorbar(places, values.mean(1), yerr=spread, fmt="o-", color=figures.colour(row), capsize=3)
            place.set_xticks(places, [point(value) for value in points])
            place.set_xlabel({"mu": "μ", "alpha": "α"}.get(name, name))
            place.set_ylabel(unit)
    save(figure, path)


def _look(index: int) -> dict[str, Any]:
    return {"color": figures.colour(index), "linestyle": figures.DASHES[index // len(figures.PALETTE) % 2]}


def end_of(run: RunResult, curve: str) -> float | None:
    """Mean of the last tenth of a training curve; None where it was not logged."""
    values = run.curves.get(curve, {}).get("values", [])
    return float(np.mean(values[-max(1, int(len(values) * _LAST)) :])) if values else None


def without_nan(data: Any) -> Any:
    """Plain JSON values; what is not finite becomes None."""
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    if isinstance(data, float) and not np.isfinite(data):
        return None
    return data.item() if isinstance(data, np.generic) else data
