"""A study as data: its methods, searches, sweeps and seeds, and from them the runs that are due."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.files import load_yaml
from entropy_rft.suggestions import did_you_mean
from studies.methods.results import Results, RunResult

START, MAIN, TRIAL, SWEEP = "start", "main", "trial", "sweep"
AIMS = ("accuracy", "entropy", "length", "target", "control")
_OF_A_MEASUREMENT = ("task", "task_options", "think_end_token")  # fields that matter where nothing is trained


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        title: its name in tables.
        aim: the criterion to compare its trials by, see :func:`~studies.methods.search.choose`. ``control``: it has
            none, no claim is judged of it, and it is no rival; it explains what the others do.
        fields: of a recipe, over the study's own.
        trials: fields of each trial, over `fields`; the first method's are for all methods.
        builds_on: a method before it, whose choice it uses too, so that the two differ only by what this one adds.
    """

    title: str
    aim: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    trials: Sequence[Mapping[str, Any]] = ()
    builds_on: str | None = None


@dataclass(frozen=True)
class Sweep:
    """`method` with `field` set to each of `values`, over the seeds of the study; `steps` is a field too."""

    method: str
    field: str
    values: Sequence[float | str]


@dataclass(frozen=True)
class Measurement:
    """The questions for a measurement, and the settings of the sampling.

    `also_at` are further temperatures at which the same questions are answered.
    """

    split: str
    questions: int
    samples: int
    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    batch_size: int = 256
    also_at: Sequence[float] = ()

    def sampling(self) -> dict[str, Any]:
        """The arguments of :func:`~studies.methods.answers.sample_answers`."""
        names = ("samples", "max_tokens", "seed", "temperature", "batch_size")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; without `also_at` where there is none, so that earlier runs keep their digests."""
        own = dict(vars(self))
        also_at = list(own.pop("also_at"))
        return {**own, "also_at": also_at} if also_at else own


@dataclass(frozen=True)
class RunSpec:
    """One complete run: with the model of `model`, these `fields` make a recipe. Two with the same digest are the same
    run.

    Attributes:
        name: stem of its file of results.
        kind: START, MAIN, TRIAL or SWEEP.
        title: for people.
        steps: 0 measures the start.
    """

    name: str
    kind: str
    method: str
    title: str
    seed: int
    steps: int
    fields: Mapping[str, Any]
    measurement: Measurement
    model: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Identifies everything that changes the numbers; not the name or the kind."""
        own = {"seed": self.seed, "steps": self.steps, "fields": dict(self.fields), "model": dict(self.model)}
        own["measurement"] = self.measurement.to_dict()
        return hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def batch(self) -> int:
        """Completions of one generation."""
        batch = int(self.fields.get("per_device_train_batch_size", 8))
        return batch * int(self.fields.get("gradient_accumulation_steps", 1))

    @property
    def completions(self) -> int:
        """Sampled in all, for training and measuring; they take most of the time."""
        trained = self.steps * self.batch // int(self.fields.get("num_iterations", 1))
        asked = self.measurement
        return trained + asked.questions * asked.samples * (1 + len(asked.also_at))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **plain,
            "fields": dict(self.fields),
            "model": dict(self.model),
            "measurement": self.measurement.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunSpec:
        """The inverse of `to_dict`."""
        return cls(**{**data, "measurement": Measurement(**data["measurement"])})


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        name: of the study.
        model: ``{"name": ...}`` of an existing model, or ``{"make": {...}}`` with the arguments of the maker.
        methods: by name; the first is the one that all others are compared with, and its choice is for all.
        fields: of the recipe, of all runs.
        steps: optimisation steps of a main run.
        seeds: of the main runs.
        search_steps, search_seed: of the trials.
        validation: what the trials are compared on.
        test: what the main runs are measured on; nothing is chosen by it.
        sweeps: by name.
        sweep_seeds: of the sweeps' runs; by default those of the main runs.
        accuracy_margin: a trial that is within it of the best of the first method's is not worse; a fraction.
    """

    name: str
    model: Mapping[str, Any]
    methods: Mapping[str, Method]
    fields: Mapping[str, Any]
    steps: int
    seeds: Sequence[int]
    search_steps: int
    search_seed: int
    validation: Measurement
    test: Measurement
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    sweep_seeds: Sequence[int] | None = None
    accuracy_margin: float = 0.01

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserValueError(f"study {self.name!r}: methods is empty: name at least one")
        for name, method in self.methods.items():
            if method.aim not in AIMS:
                raise UserValueError(
                    f"study {self.name!r}: the aim of {name!r} must be one of {', '.join(AIMS)}, got {method.aim!r}"
                )
        for place, (name, method) in enumerate(self.methods.items()):
            earlier = list(self.methods)[:place]
            if method.builds_on is not None and method.builds_on not in earlier:
                raise UserValueError(
                    f"study {self.name!r}: {name!r} builds on {method.builds_on!r}, which is not a method before it"
                    f"{did_you_mean(method.builds_on, earlier)}"
                )
        counts = {name: len(method.trials) for name, method in self.methods.items() if method.trials}
        # One trial of the baseline searches nothing: it is what the accuracy of the other trials is compared with.
        searched = {number for name, number in counts.items() if name != self.baseline or number > 1}
        if len(searched) > 1:
            raise UserValueError(
                f"study {self.name!r}: every method that has trials gets the same number of them, got {counts}"
            )
        for name, sweep in self.sweeps.items():
            if sweep.method not in self.methods:
                raise UserValueError(
                    f"study {self.name!r}: sweep {name!r} is of an unknown method "
                    f"{sweep.method!r}{did_you_mean(sweep.method, list(self.methods))}"
                )
        if self.validation.split == self.test.split:
            raise UserValueError(
                f"study {self.name!r}: validation and test are both {self.test.split!r}: they must differ"
            )
        every = int(self.fields.get("num_iterations", 1))
        if int(self.fields.get("save_steps", every)) % every:
            # A run that resumes within a generation samples it again: other weights, and curves of another length.
            raise UserValueError(
                f"study {self.name!r}: save_steps must be a multiple of num_iterations = {every}, "
                f"got {self.fields['save_steps']}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserValueError(
                f"study {self.name!r}: seeds must be different numbers, at least one, got {self.seeds}"
            )

    @property
    def baseline(self) -> str:
        """The first method."""
        return next(iter(self.methods))

    def only(self, names: Iterable[str] | None, seeds: Sequence[int] | None = None) -> Plan:
        """The same study of some methods (the baseline always) and other seeds.

        Raises:
            ValueError: for an unknown method.
        """
        kept = dict(self.methods)
        if names is not None:
            wanted = [self.baseline, *names]
            for name in wanted:  # grows by the methods that these build on
                if name not in self.methods:
                    raise UserValueError(f"unknown method {name!r}{did_you_mean(name, list(self.methods))}")
                if (base := self.methods[name].builds_on) is not None:
                    wanted.append(base)
            kept = {name: method for name, method in self.methods.items() if name in wanted}
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        sweeps = {name: sweep for name, sweep in self.sweeps.items() if sweep.method in kept}
        swept = self.sweep_seeds
        if seeds is not None and swept is not None:
            swept = [seed for seed in seeds if seed in swept]
        return Plan(
            **{**own, "methods": kept, "sweeps": sweeps, "seeds": list(seeds or self.seeds), "sweep_seeds": swept}
        )

    # --- runs -----------------------------------------------------------------------------------------------------

    def starts(self) -> list[RunSpec]:
        """The model before training, measured on the test questions once a seed."""
        return [self._spec(START, "start", "start", seed, 0, {}, self.test) for seed in self.seeds]

    def trials(self, method: str, shared: Mapping[str, Any]) -> list[RunSpec]:
        """Of one method's search; `shared` is what others' choices give it (nothing for the first one's search)."""
        own = self.methods[method]
        return [
            self._spec(
                TRIAL, f"trial-{method}-{number}", method, self.search_seed, self.search_steps,
                {**own.fields, **shared, **fields}, self.validation,
            )
            for number, fields in enumerate(own.trials)
        ]  # fmt: skip

    def mains(self, method: str, chosen: Mapping[str, Any]) -> list[RunSpec]:
        """Of one method with what its search chose, one run a seed."""
        own = {**self.methods[method].fields, **chosen}
        return [self._spec(MAIN, method, method, seed, self.steps, own, self.test) for seed in self.seeds]

    def sweep_runs(self, name: str, chosen: Mapping[str, Any]) -> dict[float | str, list[RunSpec]]:
        """Value to its runs, main runs among them; `chosen` is what the search chose for the sweep's method."""
        sweep = self.sweeps[name]
        main = {spec.digest: spec for spec in self.mains(sweep.method, chosen)}
        found: dict[float | str, list[RunSpec]] = {}
        for value in sweep.values:
            own = {**self.methods[sweep.method].fields, **chosen}
            steps = self.steps
            if sweep.field == "steps":
                steps = int(value)
            else:
                own[sweep.field] = value
            specs = [
                self._spec(SWEEP, f"sweep-{name}-{point(value)}", sweep.method, seed, steps, own, self.test)
                for seed in (self.seeds if self.sweep_seeds is None else self.sweep_seeds)
            ]
            found[value] = [main.get(spec.digest, spec) for spec in specs]
        return found

    def _spec(
        self,
        kind: str,
        name: str,
        method: str,
        seed: int,
        steps: int,
        own: Mapping[str, Any],
        measurement: Measurement,
    ) -> RunSpec:
        # The sampling seed depends on the run's seed: it is the same for two runs of a pair, and differs between two
        # seeds.
        asked = Measurement(**{**vars(measurement), "seed": measurement.seed + seed})
        everything = {**self.fields, **own}
        if not steps:  # nothing is trained, but the questions are the same
            everything = {name: value for name, value in everything.items() if name in _OF_A_MEASUREMENT}
        title = "start" if kind == START else self.methods[method].title
        return RunSpec(f"{name}-seed{seed}", kind, method, title, seed, steps, everything, asked, self.model)


def point(value: float | str) -> str:
    """A swept value as it stands in names and tables."""
    return value if isinstance(value, str) else f"{value:g}"


def load_plan(path: str | Path) -> Plan:
    """Read a study's YAML.

    Raises:
        ValueError: naming the file, and the field that is missing, unknown or out of range.
    """
    data = load_yaml(path, "plan")
    if not isinstance(data, dict):
        raise UserValueError(f"plan {str(path)!r} must be a mapping of fields to values")
    try:
        data["methods"] = {n: _build(Method, f"methods.{n}", m) for n, m in (data.get("methods") or {}).items()}
        data["sweeps"] = {n: _build(Sweep, f"sweeps.{n}", s) for n, s in (data.get("sweeps") or {}).items()}
        for name in ("validation", "test"):
            data[name] = _build(Measurement, name, data.get(name))
        return _build(Plan, "the plan", data)
    except ValueError as error:
        raise UserValueError(f"plan {str(path)!r}: {error}") from None


def _build(kind: Any, where: str, data: Any) -> Any:
    if not isinstance(data, dict):
        raise UserValueError(f"{where} must be a mapping, got {data!r}")
    known = [f.name for f in fields(kind)]
    for name in data:
        if name not in known:
            raise UserValueError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}")
    try:
        return kind(**data)
    except TypeError as error:  # names the arguments that are missing
        raise UserValueError(f"{where}: {str(error).partition('() ')[2] or error}") from None


def finished(specs: Iterable[RunSpec], results: Results) -> list[RunResult] | None:
    """The results of all of `specs`, or None while one is missing."""
    found = [results.get(spec.name, spec.digest) for spec in specs]
    return None if any(one is None for one in found) else [one for one in found if one is not None]
