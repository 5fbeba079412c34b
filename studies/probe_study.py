"""A probe measured over several seeds: traces, probe and answers of each, then all of them pooled by question."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from entropy_rft.difficulty.fitting import baselines_of, labels_of, train_probe
from entropy_rft.difficulty.probe import DifficultyProbe
from entropy_rft.difficulty.probe_files import CONFIG
from entropy_rft.difficulty.states import fingerprint
from entropy_rft.difficulty.traces import Traces, load_traces
from entropy_rft.errors import UserValueError
from entropy_rft.files import json_text
from entropy_rft.sampling import ThinkEndMarker
from entropy_rft.tasks import load_task
from studies.probe_criteria import against, length_correlations, macro_f1_difference, numbered, strategies_by_level
from studies.probe_settings import StudySettings
from studies.u_shape import u_shape

_AT_ONCE = 512  # completions
_BETWEEN_PARTS = 1_000  # seeds of a task, between two parts; more than a study has seeds
# The targets of the study: macro-F1 above majority, share of the tokens saved, change of the accuracy.
TARGETS = {"macro_f1_minus_majority": 0.15, "saving": 0.20, "accuracy": -0.01}


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
            found = {**StudySettings().to_dict(), **found}  # a study of an earlier version lacks the newer settings
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
        # Where the traces and the answers are, and the seed that they are of.
        asked, asked_seed = (self.directory / "shared", 0) if s.shared_traces else (place, seed)
        train = self._collect(asked / "train", "train", s.train_questions, asked_seed, task_seed=asked_seed)
        probe = self._probe(place / "probe", train, seed)
        baselines = baselines_of(probe, load_traces(*train))
        tuned = self._confidences(asked, train, probe, baselines, asked_seed)
        least = {name: confidence for name, (confidence, _) in tuned.items()}
        test = self._collect(asked / "test", "test", s.test_questions, asked_seed, task_seed=0)
        questions = held_out_questions(test, probe)
        answers = self._answer(asked / "answers", questions, asked_seed, "test questions")
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
            "predicted": _predicted(probe, questions.traces, baselines),
            "policies": summary(measured),
            "levels": by_level(questions.traces),
            "strategies_by_level": strategies_by_level(answers, questions.traces),
            "routing_seconds": routing,
            "seconds": self._seconds(place),
        }
        return result, measured, questions.traces

    def seconds(self, seeds: Sequence[int]) -> float:
        """That the parts of these seeds took, over all attempts; what seeds share counts once."""
        places = [self.directory / name for name in ("shared", *(f"seed-{seed}" for seed in seeds))]
        return round(sum(sum(self._seconds(place).values()) for place in places), 1)

    def _collect(self, target: Path, split: str, questions: int, seed: int, task_seed: int) -> list[Path]:
        """The traces of a split, a directory for each part."""
        parts = self.settings.parts
        self.log(f"seed {seed}: traces of {questions} {split} questions")
        if not parts:
            source = {"name": self.settings.task, "split": split, "limit": questions, "seed": task_seed}
            self._collect_part(target, source, None, _part_of(seed, split))
            return [target]
        directories = []
        for index, part in enumerate(parts):
            own = target / f"part-{index}"
            source = {
                "name": self.settings.task,
                "split": split,
                "limit": questions // len(parts),
                # Parts that differ in their wording alone must not draw the same questions.
                "seed": task_seed + _BETWEEN_PARTS * index,
                "options": dict(part["options"]),
            }
            self._collect_part(own, source, str(part["level"]), _part_of(seed, f"{split}/{index}"))
            directories.append(own)
        return directories

    def _collect_part(self, target: Path, source: dict[str, Any], level: str | None, seed: int) -> None:
        arguments = {**source, **source.get("options", {})}
        arguments.pop("options", None)
        with self._timed(target, f"traces, {source['split']}"):
            collect_traces(
                self.model,
                self.tokenizer,
                load_task(**arguments),
                target,
                sampler=self.sampler,
                model_name=self.settings.model,
                source=source,
                level=level,
                samples=self.settings.samples,
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_tokens,
                layer=self.settings.layer,
                seed=seed,
                batch_size=64,
                chunk_size=max(1, _AT_ONCE // self.settings.samples),
            )

    def _probe(self, target: Path, train: Sequence[Path], seed: int) -> DifficultyProbe:
        if not (target / CONFIG).is_file():  # which save_pretrained writes last
            self.log(f"seed {seed}: probe")
            s = self.settings
            with self._timed(target, "probe"):
                train_probe(
                    load_traces(*train),
                    kind=s.kind,
                    hidden_units=s.hidden_units,
                    thresholds=s.thresholds,
                    min_share=s.min_share,
                    strategies=s.strategies,
                    seed=seed,
                ).save_pretrained(target)
        return DifficultyProbe.from_pretrained(target, base_model=self.model)

    def _confidences(
        self,
        place: Path,
        train: Sequence[Path],
        probe: DifficultyProbe,
        baselines: Mapping[str, DifficultyProbe],
        seed: int,
    ) -> dict[str, tuple[float, list[dict[str, float]] | None]]:
        """The least confidence of each rule with the trials that led to it: each rule gets the one that suits it.

        A value that was tuned for the probe would be unfair to another rule, whose confidences have another meaning.
        """
        s = self.settings
        if s.min_confidence is not None:
            return dict.fromkeys(("probe", "prompt_length"), (s.min_confidence, None))
        own = held_out_questions(train, probe)
        answers = self._answer(place / "confidence", own, seed, "set-aside training questions")
        proba = rule_probabilities(probe, own.traces, baselines)
        return {name: tune_confidence(values, answers, s.tolerance) for name, values in proba.items()}

    def _answer(self, target: Path, questions: Questions, seed: int, what: str) -> Outcomes:
        self.log(f"seed {seed}: all strategies, {len(questions)} {what}")
        with self._timed(target, f"answers, {what}"):
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
    def _timed(self, target: Path, name: str) -> Iterator[None]:
        """Add up the time of what is made in `target`, for its seed; if it is already finished, almost nothing is
        added."""
        place = self.directory / target.relative_to(self.directory).parts[0]
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


def _predicted(probe: DifficultyProbe, traces: Traces, baselines: Mapping[str, DifficultyProbe]) -> dict[str, str]:
    """The class of each question, a digit each: its label, and what each classifier says without the answers."""
    assert probe.thresholds is not None
    said = {name: np.asarray(proba).argmax(1) for name, proba in rule_probabilities(probe, traces, baselines).items()}
    classes = {"label": labels_of(traces, probe.thresholds), **said}
    return {name: "".join(map(str, indices)) for name, indices in classes.items()}


def pool(
    runs: Mapping[int, tuple[dict[str, Any], dict[str, Measured], Traces]], *, shared_traces: bool = False
) -> dict[str, Any]:
    """All seeds as one: policies pooled by question, and mean and range of what has one number per seed.

    Args:
        runs: of each seed.
        shared_traces: all seeds have the same traces, which count once.

    Raises:
        ValueError: the seeds were measured on different questions.
    """
    results = [result for result, _, _ in runs.values()]
    traces = [own for _, _, own in runs.values()]
    if any(own.ids != traces[0].ids for own in traces):
        raise UserValueError("the seeds were measured on different questions: only the same ones can be pooled")
    together = pooled([measured for _, measured, _ in runs.values()])
    policies = summary(together)
    if shared_traces:
        traces = traces[:1]
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
        "pass_rates": by_level(replace(everything, rows=[{**row, "level": None} for row in everything.rows])),
        "u_shape": u_shape(traces) if numbered(everything) else None,
        "length_correlations": length_correlations(everything),
        "against": against(together),
        "macro_f1_minus_prompt_length": macro_f1_difference([r["predicted"] for r in results], "prompt_length", "probe")
        if all("prompt_length" in r["predicted"] for r in results)
        else None,
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
