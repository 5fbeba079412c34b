"""A probe measured over several seeds: traces, probe and answers of each, then all of them pooled by question."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.atomic import write_text
from entropy_rft.difficulty.collect import SamplerLike, collect_traces
from entropy_rft.difficulty.compare.comparison import (
    Questions,
    answer_questions,
    by_level,
    classifier_reports,
    held_out_questions,
    routing_seconds,
    rule_choices,
    rule_probabilities,
)
from entropy_rft.difficulty.compare.policies import (
    ORACLE,
    Measured,
    Outcomes,
    measure_policies,
    pooled,
    summary,
    with_routing,
)
from entropy_rft.difficulty.compare.tuning import tune_confidence
from entropy_rft.difficulty.fitting import baselines_of, train_probe
from entropy_rft.difficulty.labels import Thresholds
from entropy_rft.difficulty.probe import DifficultyProbe
from entropy_rft.difficulty.probe_files import CONFIG
from entropy_rft.difficulty.states import fingerprint
from entropy_rft.difficulty.strategies import DEFAULT_STRATEGIES, DIFFICULTIES, Difficulty, Strategy
from entropy_rft.difficulty.traces import Traces, load_traces
from entropy_rft.errors import UserValueError
from entropy_rft.files import json_text
from entropy_rft.sampling import ThinkEndMarker
from entropy_rft.tasks import load_task

_AT_ONCE = 512  # completions
# The targets of the study: macro-F1 above majority, share of the tokens saved, change of the accuracy.
TARGETS = {"macro_f1_minus_majority": 0.15, "saving": 0.20, "accuracy": -0.01}


@dataclass(frozen=True)
class StudySettings:
    """The settings of a study; see the fields of `collect_traces`, `train_probe` and `answer_questions`.

    Attributes:
        samples: answers to each question of the traces.
        answer_samples: answers to each test question with each strategy.
        min_confidence: below it the choice of the probe, and of the rule by the prompt's length, is Normal. ``None``
            chooses it for each seed and each of the two, on the held-out part of the training questions.
        tolerance: accuracy that this choice may lose, as a fraction.
    """

    model: str = "tiny_reasoner"
    task: str = "arithmetic"
    train_questions: int = 1500
    test_questions: int = 600
    samples: int = 10
    answer_samples: int = 4
    max_tokens: int = 160
    layer: int = -1
    kind: str = "mlp"
    hidden_units: int = 256
    thresholds: Thresholds | None = None
    min_share: float = 0.05
    min_confidence: float | None = None
    tolerance: float = 0.01
    strategies: Mapping[Difficulty, Strategy] = field(default_factory=lambda: dict(DEFAULT_STRATEGIES))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = {d.value: self.strategies[d].to_dict() for d in DIFFICULTIES}
        thresholds = None if self.thresholds is None else asdict(self.thresholds)
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "strategies": names,
                "thresholds": thresholds}  # fmt: skip


@dataclass
class ProbeStudy:
    """A study that can be interrupted and resumed: what is on the disk is not made again.

    Args:
        directory: of everything that is made, one directory a seed.
        settings: of the study.
        model, tokenizer: of the name in the settings.
        sampler: samples the answers.
        log: called with each line of progress.

    Raises:
        ValueError: the directory was started with other settings or another model.
    """

    directory: Path
    settings: StudySettings
    model: Any
    tokenizer: Any
    sampler: SamplerLike
    log: Any = print

    def __post_init__(self) -> None:
        path = self.directory / "study.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        wanted = {"fingerprint": fingerprint(self.model, like=found.get("fingerprint")), **self.settings.to_dict()}
        if found:
            different = [name for name in wanted if found.get(name) != wanted[name]]
            if different:
                name = different[0]
                raise UserValueError(
                    f"{str(self.directory)!r} was started with {name} = {found.get(name)!r}, not {wanted[name]!r}: "
                    "give another directory, or delete it"
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(path, wanted)

    def run(self, seed: int) -> tuple[dict[str, Any], dict[str, Measured], Traces]:
        """One seed: of the training questions, of all sampling, of the split and of the weights.

        The test questions are those of seed 0 whatever the seed, so that seeds can be pooled by question.

        Returns:
            The result (plain JSON values), the policies question by question, and the traces of the test questions.
        """
        place, s = self.directory / f"seed-{seed}", self.settings
        train, test = place / "train", place / "test"
        self._collect(train, "train", s.train_questions, seed, task_seed=seed)
        probe = self._probe(place / "probe", train, seed)
        baselines = baselines_of(probe, load_traces(train))
        tuned = self._confidences(place, probe, baselines, seed)
        least = {name: confidence for name, (confidence, _) in tuned.items()}
        self._collect(test, "test", s.test_questions, seed, task_seed=0)
        questions = held_out_questions([test], probe)
        answers = self._answer(place / "answers", questions, seed, "test questions")
        choices = rule_choices(probe, questions.traces, least, baselines)
        choices["probe_no_fallback"] = rule_choices(probe, questions.traces, 0.0)["probe"]
        routing = routing_seconds(
            self.model, self.tokenizer, probe, [row["prompt"] for _, rows in questions.parts for row in rows]
        )
        measured = with_routing(measure_policies(answers, choices), routing)
        assert probe.thresholds is not None
        result = {
            "thresholds": asdict(probe.thresholds),
            "labels": probe.metrics["labels"],
            "calibration": probe.metrics.get("calibration"),
            "fit": probe.metrics["fit"],
            "held_out_training_questions": {"probe": probe.metrics["test"], **probe.metrics["baselines"]},
            "min_confidence": least["probe"],
            "confidence_trials": tuned["probe"][1],
            "prompt_length_min_confidence": least["prompt_length"],
            "prompt_length_confidence_trials": tuned["prompt_length"][1],
            "questions": len(questions),
            "classifier": classifier_reports(probe, questions.traces, baselines),
            "policies": summary(measured),
            "levels": by_level(questions.traces),
            "routing_seconds": routing,
            "seconds": self._seconds(place),
        }
        return result, measured, questions.traces

    def _collect(self, target: Path, split: str, questions: int, seed: int, task_seed: int) -> None:
        source: dict[str, Any] = {"name": self.settings.task, "split": split, "limit": questions, "seed": task_seed}
        self.log(f"seed {seed}: traces of {questions} {split} questions")
        with self._timed(target.parent, f"traces, {split}"):
            collect_traces(
                self.model,
                self.tokenizer,
                load_task(**source),
                target,
                sampler=self.sampler,
                model_name=self.settings.model,
                source=source,
                samples=self.settings.samples,
                max_tokens=self.settings.max_tokens,
                layer=self.settings.layer,
                seed=_part_of(seed, split),
                batch_size=64,
                chunk_size=max(1, _AT_ONCE // self.settings.samples),
            )

    def _probe(self, target: Path, train: Path, seed: int) -> DifficultyProbe:
        if not (target / CONFIG).is_file():  # which save_pretrained writes last
            self.log(f"seed {seed}: probe")
            s = self.settings
            with self._timed(target.parent, "probe"):
                train_probe(
                    load_traces(train),
                    kind=s.kind,
                    hidden_units=s.hidden_units,
                    thresholds=s.thresholds,
                    min_share=s.min_share,
                    strategies=s.strategies,
                    seed=seed,
                ).save_pretrained(target)
        return DifficultyProbe.from_pretrained(target, base_model=self.model)

    def _confidences(
        self, place: Path, probe: DifficultyProbe, baselines: Mapping[str, DifficultyProbe], seed: int
    ) -> dict[str, tuple[float, list[dict[str, float]] | None]]:
        """The least confidence of each rule with the trials that led to it: each rule gets the one that suits it.

        A value that was tuned for the probe would be unfair to another rule, whose confidences have another meaning.
        """
        s = self.settings
        if s.min_confidence is not None:
            return dict.fromkeys(("probe", "prompt_length"), (s.min_confidence, None))
        own = held_out_questions([place / "train"], probe)
        answers = self._answer(place / "confidence", own, seed, "set-aside training questions")
        proba = rule_probabilities(probe, own.traces, baselines)
        return {name: tune_confidence(values, answers, s.tolerance) for name, values in proba.items()}

    def _answer(self, target: Path, questions: Questions, seed: int, what: str) -> Outcomes:
        self.log(f"seed {seed}: all strategies, {len(questions)} {what}")
        with self._timed(target.parent, f"answers, {what}"):
            return answer_questions(
                questions,
                self.settings.strategies,
                self.sampler,
                target,
                samples=self.settings.answer_samples,
                max_tokens=self.settings.max_tokens,
                seed=_part_of(seed, what),
                chunk_size=max(1, _AT_ONCE // self.settings.answer_samples),
                marker=ThinkEndMarker(self.tokenizer, questions.traces.think_end_token),
            )

    @contextmanager
    def _timed(self, place: Path, name: str) -> Iterator[None]:
        """Add up the time of a part over all attempts; if it is already finished, almost nothing is added."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._seconds(place)
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 2)
            place.mkdir(parents=True, exist_ok=True)
            _write(place / "seconds.json", seconds)

    @staticmethod
    def _seconds(place: Path) -> dict[str, float]:
        path = place / "seconds.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def pool(runs: Mapping[int, tuple[dict[str, Any], dict[str, Measured], Traces]]) -> dict[str, Any]:
    """All seeds as one: policies pooled by question, and mean and range of what has one number per seed.

    Raises:
        ValueError: the seeds were measured on different questions.
    """
    results = [result for result, _, _ in runs.values()]
    traces = [own for _, _, own in runs.values()]
    if any(own.ids != traces[0].ids for own in traces):
        raise UserValueError("the seeds were measured on different questions: only the same ones can be pooled")
    policies = summary(pooled([measured for _, measured, _ in runs.values()]))
    everything = Traces(traces[0].settings, [row for own in traces for row in own.rows], _stacked(traces))
    reports = {
        name: {metric: spread([r["classifier"][name][metric] for r in results]) for metric in _METRICS}
        for name in results[0]["classifier"]
    }
    advantage = spread([_f1(r, "probe") - _f1(r, "majority") for r in results])
    seeds = {
        "accuracy_minus_normal": [r["policies"]["probe"]["minus_normal"]["accuracy"][0] for r in results],
        "saving": [r["policies"]["probe"]["minus_normal"]["saving"][0] for r in results],
        "oracle_share": [r["policies"]["probe"].get("oracle_share") for r in results],
    }
    probe = policies["probe"]["minus_normal"]
    return {
        "seeds": list(runs),
        "questions": len(traces[0]),
        "policies": policies,
        "oracle": ORACLE,
        "classifier": reports,
        "macro_f1_minus_majority": advantage,
        **{name: spread(values) for name, values in seeds.items()},
        "levels": by_level(everything),
        "targets": {
            f"macro-F1 at least {TARGETS['macro_f1_minus_majority']:g} above majority": (
                advantage["mean"] >= TARGETS["macro_f1_minus_majority"]
            ),
            f"at least {100 * TARGETS['saving']:g} % of Normal's tokens saved": probe["saving"][0] >= TARGETS["saving"],
            "accuracy not lower by more than 1 point": probe["accuracy"][0] >= TARGETS["accuracy"],
        },
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, lowest and highest of the seeds' numbers, and the numbers; ``None`` where one is missing."""
    there = [value for value in values if value is not None]
    if len(there) < len(values) or not there:
        return {"mean": None, "low": None, "high": None, "values": list(values)}
    return {"mean": float(np.mean(there)), "low": min(there), "high": max(there), "values": there}


_METRICS = ("accuracy", "macro_f1", "calibration_error")


def _f1(result: Mapping[str, Any], name: str) -> float:
    return float(result["classifier"][name]["macro_f1"])


def _stacked(traces: Sequence[Traces]) -> np.ndarray:
    return np.concatenate([own.hidden for own in traces])


def _part_of(seed: int, part: str) -> int:
    """A seed for each part of a study, so that no two of them share random numbers."""
    from hashlib import blake2b

    return int.from_bytes(blake2b(f"{seed}/{part}".encode(), digest_size=4).digest(), "big") >> 1


def _write(path: Path, data: Any) -> None:
    write_text(path, json_text(data, indent=2) + "\n")
