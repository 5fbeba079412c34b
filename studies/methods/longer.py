"""A control: does a method learn more slowly than the baseline, or does what it keeps cost right answers for ever?

It is run for longer, and compared with the baseline of the study that it is the control of. docs/frontier.md has the
rule, which was written before the first run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserValueError
from studies.methods.compare import Estimate, Group, Quantity, difference, estimate, in_points, signed
from studies.methods.plan import Plan
from studies.methods.report import collect
from studies.methods.results import Results

MARGIN = -1.0  # points of avg@k: "not less accurate" allows this much, as in the claims
STILL = 1.0  # points in `WINDOW` updates: right answers that surely rise by no more have stopped rising
WINDOW = 50  # updates, of which the right answers in training are compared with those of as many before
SLOWER, COSTS, UNDECIDED = "it learns more slowly", "what it keeps costs right answers", "undecided"


def rise(group: Group) -> Estimate:
    """Right answers in training, the last `WINDOW` updates minus those before, points; interval over seeds."""
    changes = []
    for run in group.runs:
        right = 100 * np.asarray(run.curves["accuracy"]["values"])
        changes.append(right[-WINDOW:].mean() - right[-2 * WINDOW : -WINDOW].mean())
    by_seed = np.asarray(changes)[:, None]
    found = estimate([Quantity(by_seed, np.ones_like(by_seed))], np.asarray)
    return found if len(changes) > 1 else Estimate(found.value, np.nan, np.nan)  # one seed says nothing about others


def verdict(change: Estimate, risen: Estimate) -> str:
    """By the longer run's avg@k at temperature 1 minus the baseline's, and by its `rise`; both in points.

    One seed, which has no interval of its rise, decides nothing. That a rise is not shown does not show that there is
    none: its whole interval must be below `STILL`.
    """
    if np.isnan(risen.high):
        return UNDECIDED
    if change.low >= MARGIN:
        return SLOWER
    return COSTS if change.high < MARGIN and risen.high <= STILL else UNDECIDED


def write_longer(plan: Plan, results: Results, first: Plan, first_results: Results, output: Path) -> str:
    """longer.md into `output`, as far as the runs are finished; returns its text.

    Args:
        plan, results: of the longer runs.
        first, first_results: of the study that they are a control of.

    Raises:
        ValueError: the two studies measure different questions.
    """
    longer, _, _ = collect(plan, results)
    earlier, sweeps, _ = collect(first.only(list(plan.methods), list(plan.seeds)), first_results)
    lines = []
    for name, method in plan.methods.items():
        if name == plan.baseline or not {name, plan.baseline} <= longer.keys() or plan.baseline not in earlier:
            continue
        before = _same_fields(longer[name], [*earlier.values(), *(g for own in sweeps.values() for g in own.values())])
        others = {
            f"{plan.methods[plan.baseline].title}, {first.steps} updates": earlier[plan.baseline],
            f"{plan.methods[plan.baseline].title}, {plan.steps} updates": longer[plan.baseline],
            **({} if before is None else {f"{method.title}, {first.steps} updates": before}),
        }
        lines += _lines(f"{method.title}, {plan.steps} updates", longer[name], others, plan.test.also_at)
    text = "\n".join(lines) + "\n" if lines else "not measured yet\n"
    write_text(output / "longer.md", text)
    return text


def _same_fields(group: Group, among: Sequence[Group]) -> Group | None:
    """The runs of the first study that differ from `group` by their number of updates alone."""
    fields = group.runs[0].spec["fields"]
    return next((own for own in among if own.runs[0].spec["fields"] == fields), None)


def _lines(title: str, own: Group, others: Mapping[str, Group], also_at: Sequence[float]) -> list[str]:
    baseline = next(iter(others.values()))
    if own.questions_digest != baseline.questions_digest:
        raise UserValueError("the longer runs were measured on other questions: only the same can be compared")
    change, risen = in_points(difference(baseline.accuracy(), own.accuracy())), rise(own)
    lines = [
        f"{title}: **{verdict(change, risen)}**. Right answers in training, the last {WINDOW} updates minus the "
        f"{WINDOW} before: {signed(risen)} points.",
        "",
        f"| minus | avg@{own.samples}, points | {' | '.join(f'at {at:g}' for at in also_at)} | entropy, nats |",
        "| --- | --- | --- |" + " --- |" * len(also_at),
    ]
    for name, other in others.items():
        cells = [signed(in_points(difference(other.accuracy(), own.accuracy())))]
        cells += [
            signed(in_points(difference(Group(other.runs, at).accuracy(), Group(own.runs, at).accuracy())))
            for at in also_at
        ]
        cells.append(f"{own.entropy().value:.3f} against {other.entropy().value:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
