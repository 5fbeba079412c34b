"""What choosing a strategy by a probe saves: all three strategies answer every held-out question, and ways to choose
among them are compared on the same answers."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.difficulty.collect import SamplerLike
from entropy_rft.difficulty.compare.kept_outcomes import KeptOutcomes
from entropy_rft.difficulty.compare.policies import Outcomes, compare_policies
from entropy_rft.difficulty.fitting import BASELINES, check_weights, labels_of, majority
from entropy_rft.difficulty.metrics import classification_report
from entropy_rft.difficulty.probe import DifficultyProbe, choose
from entropy_rft.difficulty.states import question_states
from entropy_rft.difficulty.store import chunk_seed
from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES, Difficulty, Placement, Strategy
from entropy_rft.difficulty.traces import Traces, levels, load_traces
from entropy_rft.errors import UserValueError
from entropy_rft.files import json_text
from entropy_rft.sampling import (
    ThinkEndMarker,
    check_settings,
    encode_prompt,
    knows_system_role,
    progress_bar,
    verdicts,
)
from entropy_rft.sampling.identity import digest
from entropy_rft.tags import THINK_END
from entropy_rft.tasks import Task, load_task, task_rows

SCHEMA = 1
_CHUNKS_OF_A_PART = 1_000_003  # more than a part will ever have


@dataclass(frozen=True)
class Questions:
    """Questions to compare strategies on.

    Attributes:
        traces: of the questions.
        parts: tasks with the rows that are asked of each; in the order of the traces.
        fitted: questions left out because the probe was fitted to them.
    """

    traces: Traces
    parts: list[tuple[Task, list[dict[str, Any]]]]
    fitted: int

    def __len__(self) -> int:
        return len(self.traces)


def held_out_questions(
    directories: Sequence[str | os.PathLike[str]], probe: DifficultyProbe, *, force: bool = False
) -> Questions:
    """The questions of traces that the probe was not fitted to, with their tasks.

    Args:
        directories: that `probe collect` wrote.
        probe: fitted.
        force: accept traces of other weights than the probe's base model.

    Raises:
        ValueError: the traces are of another model or layer than the probe, their task gives other questions now, or
            nothing is left; one line.
    """
    traces = load_traces(*directories)
    check_weights(traces, probe, force)
    if (traces.layer, traces.hidden.shape[1]) != (probe.layer, probe.width):
        raise UserValueError(
            f"the probe reads layer {probe.layer} of width {probe.width}, the traces hold layer {traces.layer} of "
            f"width {traces.hidden.shape[1]}"
        )
    keep = ~traces.among(set(probe.questions))
    parts = []
    for directory, part in zip(directories, traces.by_directory(), strict=True):
        (settings,) = part.settings
        task = load_task(**{"name": "", **_task_arguments(settings["task"])})
        rows = task_rows(task)
        if digest(rows) != settings["digest"]:
            raise UserValueError(
                f"task {task.name!r} has other questions now than when {os.fspath(directory)!r} was collected: "
                "collect them again"
            )
        new = ~part.among(set(probe.questions))
        parts.append((task, [rows[row["index"]] for row, is_new in zip(part.rows, new, strict=True) if is_new]))
    if not keep.any():
        raise UserValueError(
            f"the probe was fitted to all {len(keep)} questions of these traces: collect another split"
        )
    return Questions(traces.take(keep), parts, int((~keep).sum()))


def _task_arguments(source: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in source.items() if name != "options"}, **source.get("options", {})}


def answer_questions(
    questions: Questions,
    strategies: Mapping[Difficulty, Strategy],
    sampler: SamplerLike,
    output_dir: str | os.PathLike[str],
    *,
    samples: int,
    max_tokens: int,
    top_p: float = 1.0,
    seed: int = 0,
    sampler_name: str = "transformers",
    served_model: str | None = None,
    chunk_size: int = 32,
    progress: bool = True,
    marker: ThinkEndMarker | None = None,
    fingerprint: str | None = None,
    placement: Placement = "system",
) -> Outcomes:
    """Answer every question with every strategy, with the same seed for each.

    Answers are stored in `output_dir` chunk by chunk, each under its question. The same call resumes a killed
    comparison. Another probe with the same strategies is compared on the same answers, without sampling. If the
    questions have changed (a collection was continued, a probe was fitted to another part), only those without answers
    are asked.

    Args:
        questions: with their tasks.
        strategies: one for each difficulty.
        sampler: samples the answers.
        output_dir: of the answers.
        samples: answers per question and strategy.
        max_tokens: the whole budget of an answer, of which a strategy gets its share.
        top_p: of sampling.
        seed: of sampling.
        sampler_name: the sampler's name in the settings: the same seed gives other answers with another sampler.
        served_model: the model's name on the server, if a server answers.
        chunk_size: questions in a chunk; a killed process loses at most one chunk.
        progress: show a bar, on a terminal.
        marker: ends the thinking; see :func:`~entropy_rft.sampling.verdicts`.
        fingerprint: of the model that answers; by default that of the traces' model.
        placement: of the instruction, the probe's; ``user_end`` in any case if the chat template has no system role.

    Raises:
        ValueError: an argument is out of range, or the directory was started with other settings.
    """
    check_settings(samples=samples, top_p=top_p, max_tokens=max_tokens)
    rows: list[dict[str, Any]] = []
    placement = placement_for(sampler, placement)
    settings = {
        "fingerprint": fingerprint or questions.traces.fingerprint,
        "sampler": sampler_name,
        **({} if served_model is None else {"served_model": served_model}),
        "strategies": {name: strategies[d].to_dict() for name, d in zip(NAMES, DIFFICULTIES, strict=True)},
        "samples": samples,
        "max_tokens": max_tokens,
        "top_p": top_p,
        "seed": seed,
        **({} if placement == "system" else {"placement": placement}),
    }
    limited = any(strategy.thinking_tokens is not None for strategy in strategies.values())
    if marker is not None and (limited or marker.text != THINK_END):
        settings["think_end_token"] = marker.text  # it decides where a limit cuts, and what counts as the answer
    with progress_bar("questions", len(questions), progress) as advance:
        for (task, chosen), collected in zip(questions.parts, questions.traces.settings, strict=True):
            if not chosen:
                continue
            # A task's options decide what counts as right, so answers under other options are other answers.
            options = collected["task"].get("options")
            name = f"{task.name} {json_text(options)}" if options else task.name
            kept = KeptOutcomes(Path(output_dir), {**settings, "task": name}, chosen, chunk_size)
            advance(sum(row is not None for row in kept.rows()), "")
            for gap in kept.gaps():
                asked = gap.questions
                made: list[dict[str, Any]] = [{"index": index} for index in gap.store.span(gap.chunk)]
                for difficulty in DIFFICULTIES:
                    strategy = strategies[difficulty]
                    advance(0, f"chunk {gap.chunk + 1} of {gap.store.chunks}: {difficulty.value}")
                    started = time.perf_counter()
                    groups = sampler.sample(
                        [strategy.prompt(row["prompt"], placement) for row in asked],
                        samples=samples,
                        temperature=strategy.temperature,
                        top_p=top_p,
                        max_tokens=strategy.answer_tokens(max_tokens),
                        **strategy.effort,
                        # No two parts share random numbers, and part 0 has those of an uninterrupted comparison.
                        seed=chunk_seed(seed, gap.chunk + _CHUNKS_OF_A_PART * gap.part),
                        progress=False,
                    )
                    seconds = time.perf_counter() - started
                    total = sum(len(completion.token_ids) for group in groups for completion in group)
                    right = verdicts(task.reward_funcs[0], asked, groups, marker)
                    for row, group, verdict in zip(made, groups, right, strict=True):
                        lengths = [len(completion.token_ids) for completion in group]
                        row[f"{difficulty.value}_correct"] = verdict
                        row[f"{difficulty.value}_tokens"] = lengths
                        # Time is measured for a whole batch: an answer's share of it is its share of the tokens.
                        row[f"{difficulty.value}_seconds"] = seconds * sum(lengths) / max(1, total) / len(group)
                gap.store.write(gap.chunk, made, _schema())
                advance(len(asked), "")
            rows += [row for row in kept.rows() if row is not None]
    return Outcomes(
        correct=np.asarray([[row[f"{name}_correct"] for row in rows] for name in NAMES], dtype=np.float64),
        tokens=np.asarray([[row[f"{name}_tokens"] for row in rows] for name in NAMES], dtype=np.float64),
        seconds=np.asarray([[row[f"{name}_seconds"] for row in rows] for name in NAMES], dtype=np.float64),
    )


def placement_for(sampler: SamplerLike, wanted: Placement = "system") -> Placement:
    """Where an instruction goes for the model that `sampler` asks: as wanted, if its chat template has a system role;
    as in the router."""
    tokenizer = getattr(sampler, "tokenizer", None)
    return wanted if tokenizer is None or knows_system_role(tokenizer) else "user_end"


def by_level(traces: Traces) -> dict[str, Any]:
    """Accuracy and entropy by difficulty level: the U shape, if there is one.

    If no question has a level, the questions are divided into five groups by accuracy, from high to low. If only some
    have none, those are a group of their own.
    """
    named = levels(traces.rows)
    if named:
        groups = {level: [row for row in traces.rows if row["level"] == level] for level in named}
        groups["no level"] = [row for row in traces.rows if row["level"] is None]
        kind = "level"
    else:
        bounds = [(0.8, 1.01), (0.6, 0.8), (0.4, 0.6), (0.2, 0.4), (0.0, 0.2)]
        groups = {
            f"{100 * low:.0f}–{min(100, 100 * high):.0f} %": [
                row for row in traces.rows if low <= row["accuracy"] < high
            ]
            for low, high in bounds
        }
        kind = "accuracy"
    table = {}
    for name, rows in groups.items():
        if rows:
            table[name] = {
                "questions": len(rows),
                **{column: _mean(rows, column) for column in ("accuracy", "entropy", "entropy_thinking", "tokens")},
            }
    return {"by": kind, "groups": table}


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else None


def evaluate_probe(
    probe: DifficultyProbe,
    questions: Questions,
    answers: Outcomes,
    *,
    min_confidence: float = 0.5,
    baselines: Mapping[str, DifficultyProbe] | None = None,
    settings: Mapping[str, Any] | None = None,
    routing: float | None = None,
) -> dict[str, Any]:
    """Everything that `probe evaluate` reports, plain JSON values: the classifier, the policies and the U.

    Args:
        probe: whose `thresholds` label the questions and whose choices are measured.
        questions: held out.
        answers: of its strategies to them.
        min_confidence: below it the probe's choice is Normal.
        baselines: of `fit_baselines`, to be compared with the probe.
        settings: to be written into the result.
        routing: `routing_seconds`, which are added to the probe's time.
    """
    traces = questions.traces
    choices = rule_choices(probe, traces, min_confidence, baselines)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "model": traces.model,
        "tasks": [f"{task.name}/{task.split}" for task, _ in questions.parts],
        "settings": {"min_confidence": min_confidence, **(settings or {})},
        "left_out": {
            "fitted": questions.fitted,
            "unscorable_traces": traces.unscorable,
            "uncollected": traces.uncollected,
        },
        **compare_policies(answers, choices.pop("probe"), choices, routing),
        "routing_seconds": routing,
        "levels": by_level(traces),
    }
    if probe.thresholds is not None:
        result["thresholds"] = asdict(probe.thresholds)
        result["classifier"] = classifier_reports(probe, traces, baselines)
    return result


def rule_choices(
    probe: DifficultyProbe,
    traces: Traces,
    min_confidence: float | Mapping[str, float],
    baselines: Mapping[str, DifficultyProbe] | None = None,
) -> dict[str, list[Difficulty]]:
    """What the probe chooses for each question, and what a classifier that sees the prompt's length alone would.

    Args:
        probe: fitted.
        traces: of the questions.
        min_confidence: below it a choice is Normal; one for all rules, or one for each by its name.
        baselines: of `fit_baselines`; without them the probe is the only rule.
    """
    proba = rule_probabilities(probe, traces, baselines)
    least = min_confidence if isinstance(min_confidence, Mapping) else dict.fromkeys(proba, min_confidence)
    return {name: choose(values, least[name]) for name, values in proba.items()}


def rule_probabilities(
    probe: DifficultyProbe, traces: Traces, baselines: Mapping[str, DifficultyProbe] | None = None
) -> dict[str, Any]:
    """The probabilities, (questions, 3), that each rule which could be used chooses by: ``probe``, ``prompt_length``.

    The pass rate is not a rule: it is unknown before the answers.
    """
    proba: dict[str, Any] = {"probe": probe.predict_proba(traces.hidden)}
    if baselines and "prompt_length" in baselines:
        lengths = traces.column(BASELINES["prompt_length"])[:, None]
        proba["prompt_length"] = baselines["prompt_length"].predict_proba(lengths)
    return proba


def classifier_reports(
    probe: DifficultyProbe, traces: Traces, baselines: Mapping[str, DifficultyProbe] | None = None
) -> dict[str, Any]:
    """How well the probe, the majority and the baselines predict the labels of these questions.

    Raises:
        ValueError: the probe has no thresholds.
    """
    if probe.thresholds is None:
        raise UserValueError("the probe has no thresholds: without them the questions have no labels")
    truth = labels_of(traces, probe.thresholds)
    counts = probe.metrics.get("labels") or dict(zip(NAMES, np.bincount(truth, minlength=3).tolist(), strict=True))
    reports = {
        "probe": classification_report(probe.predict_proba(traces.hidden), truth),
        "majority": classification_report(majority([counts[name] for name in NAMES], len(truth)), truth),
    }
    for name, baseline in (baselines or {}).items():
        column = traces.column(BASELINES[name])[:, None]
        reports[name] = classification_report(baseline.predict_proba(column), truth)
    return reports


def routing_seconds(model: Any, tokenizer: Any, probe: DifficultyProbe, prompts: Sequence[Any]) -> float | None:
    """Median time to predict one question's difficulty: its prefill and the probe. A server shares that prefill."""
    times = []
    for prompt in prompts[:21]:
        started = time.perf_counter()
        probe.predict_proba(question_states(model, [encode_prompt(tokenizer, prompt)], probe.layer))
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:] or times)) if times else None  # the first one warms up


def _schema() -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    fields = [("index", pa.int64())]
    for name in NAMES:
        fields += [
            (f"{name}_correct", pa.list_(pa.bool_())),
            (f"{name}_tokens", pa.list_(pa.int64())),
            (f"{name}_seconds", pa.float64()),
        ]
    return pa.schema(fields)
