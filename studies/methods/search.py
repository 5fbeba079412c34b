"""How hyperparameters are chosen: by the same rule and the same number of trials for every method, on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.methods.compare import Group
from studies.methods.plan import Plan, RunSpec, Sweep, finished
from studies.methods.results import Results, RunResult


def scores(result: RunResult) -> dict[str, float]:
    """What trials are compared by: avg@k (a fraction), entropy (nats per token), thinking (tokens per completion).

    Where the run has an `entropy_target` also the distance from it (nats).
    """
    completions = result.samples * len(result.questions["correct"])
    found = {
        "accuracy": Group([result]).accuracy().value,
        "entropy": float(result.column("entropy").sum() / result.column("tokens").sum()),
        "thinking": float(result.column("thinking").sum() / completions),
    }
    target = result.spec["fields"].get("entropy_target")
    return found if target is None else {**found, "distance": abs(found["entropy"] - target)}


def choose(trials: Sequence[Mapping[str, float]], aim: str, needed: float | None) -> int:
    """The index of the best trial.

    Args:
        trials: of :func:`scores`.
        aim: ``accuracy``: the most accurate. ``entropy``: the highest entropy, and ``length``: the shortest thinking,
            of the trials whose accuracy is at least `needed`; without one, the most accurate. ``target``: the one
            that ends nearest to its `entropy_target`, of all.
        needed: the baseline's best accuracy less the margin; None for the baseline's own search.
    """
    if aim == "target":
        return min(range(len(trials)), key=lambda i: trials[i]["distance"])
    allowed = [i for i, trial in enumerate(trials) if needed is None or trial["accuracy"] >= needed]
    if aim == "accuracy" or not allowed:
        return max(range(len(trials)), key=lambda i: trials[i]["accuracy"])
    if aim == "entropy":
        return max(allowed, key=lambda i: trials[i]["entropy"])
    return min(allowed, key=lambda i: trials[i]["thinking"])


class Search:
    """The searches of a study, as far as their trials are finished.

    Attributes:
        choices: method to the fields that were chosen for it (the shared ones among them), where its search is
            finished.
        record: method to its trials, their scores and the choice, for the results.
    """

    def __init__(self, plan: Plan, results: Results) -> None:
        self.plan = plan
        self.choices: dict[str, dict[str, Any]] = {}
        self._given: dict[str, Mapping[str, Any]] = {}
        self.record: dict[str, dict[str, Any]] = {}
        self.due: list[RunSpec] = []
        shared: Mapping[str, Any] = {}
        needed: float | None = None
        for name in plan.methods:
            base = plan.methods[name].builds_on
            if base is not None and base not in self.choices:
                continue  # what it starts from is not chosen yet
            given = self.choices[base] if base is not None else shared  # a choice holds what is shared
            self._given[name] = given
            trials = plan.trials(name, given)
            found = finished(trials, results)
            self.due += [spec for spec in trials if results.get(spec.name, spec.digest) is None]
            if found is None:
                if name == plan.baseline:
                    return  # everything else starts from its choice
                continue
            measured = [scores(result) for result in found]
            best = choose(measured, plan.methods[name].aim, needed) if trials else None
            own = dict(plan.methods[name].trials[best]) if best is not None else {}
            if name == plan.baseline and best is not None:
                shared, needed = own, measured[best]["accuracy"] - plan.accuracy_margin
            self.choices[name] = {**given, **own}
            self.record[name] = {
                "aim": plan.methods[name].aim,
                "accuracy_needed": needed if name != plan.baseline else None,
                "trials": [
                    {"fields": dict(fields), **each}
                    for fields, each in zip(plan.methods[name].trials, measured, strict=True)
                ],
                "chosen": best,
            }

    def start_of(self, sweep: Sweep) -> Mapping[str, Any] | None:
        """The fields that others' choices and its method's give a sweep; ``None`` while they are not known.

        A sweep of the one field that the method's trials vary does not wait for its search.
        """
        if sweep.method in self.choices:
            return self.choices[sweep.method]
        varied = {name for trial in self.plan.methods[sweep.method].trials for name in trial}
        return self._given.get(sweep.method) if varied <= {sweep.field} else None


def runs_due(plan: Plan, results: Results) -> tuple[list[RunSpec], Search]:
    """The runs that can be started now and are not finished, the most wanted first, and the searches."""
    search = Search(plan, results)
    wanted = [*search.due, *plan.starts()]
    # Seed by seed, so that an interrupted study has something to compare.
    mains = [plan.mains(name, choice) for name, choice in search.choices.items()]
    wanted += [spec for same_seed in zip(*mains, strict=True) for spec in same_seed]
    for name, sweep in plan.sweeps.items():
        start = search.start_of(sweep)
        if start is not None:
            points = plan.sweep_runs(name, start).values()
            wanted += [spec for same_seed in zip(*points, strict=True) for spec in same_seed]
    due = {spec.name: spec for spec in wanted if results.get(spec.name, spec.digest) is None}
    return list(due.values()), search


def all_runs(plan: Plan, search: Search) -> list[RunSpec]:
    """Every run of the study; while a search is not finished, its first trial is used instead of its choice.

    Use it to count the runs and to estimate the time, not to execute them.
    """
    shared = dict(plan.methods[plan.baseline].trials[0]) if plan.methods[plan.baseline].trials else {}
    shared = search.choices.get(plan.baseline, shared)
    found = plan.starts()
    guesses: dict[str, Mapping[str, Any]] = {}
    for name, method in plan.methods.items():
        given = {} if name == plan.baseline else {**shared, **guesses.get(method.builds_on or "", {})}
        found += plan.trials(name, given)
        first = dict(method.trials[0]) if method.trials else {}
        guesses[name] = search.choices.get(name, {**shared, **given, **first})
        found += plan.mains(name, guesses[name])
    for name, sweep in plan.sweeps.items():
        found += [spec for point in plan.sweep_runs(name, guesses[sweep.method]).values() for spec in point]
    return list({spec.digest: spec for spec in found}.values())
