"""What choosing a strategy by a probe saves: every held-out question is answered by all three strategies, and policies
that choose among them are compared on the same answers."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.difficulty.answers import chunk_seed
from entropy_rft.difficulty.collect import SamplerLike
from entropy_rft.difficulty.fitting import labels_of, majority
from entropy_rft.difficulty.metrics import classification_report
from entropy_rft.difficulty.probe import DifficultyProbe, choose
from entropy_rft.difficulty.states import question_states
from entropy_rft.difficulty.store import ChunkStore, read_rows
from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES, Difficulty, Strategy
from entropy_rft.difficulty.traces import Traces, levels, load_traces
from entropy_rft.evaluation.estimators import bootstrap_interval, paired_difference
from entropy_rft.sampling import check_settings, encode_prompt, progress_bar, verdicts
from entropy_rft.sampling.identity import digest
from entropy_rft.tasks import Task, load_task, task_rows

SCHEMA = 1
_NORMAL = Difficulty.NORMAL.index


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


@dataclass(frozen=True)
class Answers:
    """What every strategy made of every question; the first axis is that of a probe's probabilities.

    Attributes:
        correct: 1, 0, or NaN where nothing could be scored; (3, questions, samples).
        tokens: lengths, (3, questions, samples).
        seconds: mean time of an answer, (3, questions).
    """

    correct: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray


def held_out_questions(
    directories: Sequence[str | os.PathLike[str]], probe: DifficultyProbe, *, force: bool = False
) -> Questions:
    """The questions of traces that the probe was not fitted to, with their tasks.

    Args:
        directories: that `probe collect` wrote.
        probe: fitted.
        force: take traces of other weights than the probe's base model.

    Raises:
        ValueError: the traces are of another model or layer than the probe, their task gives other questions now, or
            nothing is left; one line.
    """
    traces = load_traces(*directories)
    if not force and probe.fingerprint is not None and probe.fingerprint != traces.fingerprint:
        raise ValueError(
            f"the probe was made for the base model {probe.base_model!r}, the traces are of {traces.model!r} with "
            "other weights: collect traces with the probe's model"
        )
    if (traces.layer, traces.hidden.shape[1]) != (probe.layer, probe.width):
        raise ValueError(
            f"the probe reads layer {probe.layer} of width {probe.width}, the traces hold layer {traces.layer} of "
            f"width {traces.hidden.shape[1]}"
        )
    known = set(probe.questions)
    keep = np.asarray([identity not in known for identity in traces.ids], dtype=bool)
    parts = []
    for directory in directories:
        part = load_traces(directory)
        (settings,) = part.settings
        task = load_task(**{"name": "", **_task_arguments(settings["task"])})
        rows = task_rows(task)
        if digest(rows) != settings["digest"]:
            raise ValueError(
                f"task {task.name!r} has other questions now than when {os.fspath(directory)!r} was collected: "
                "collect them again"
            )
        parts.append((task, [rows[row["index"]] for row in part.rows if row["id"] not in known]))
    if not keep.any():
        raise ValueError(f"the probe was fitted to all {len(keep)} questions of these traces: collect another split")
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
    chunk_size: int = 32,
    progress: bool = True,
) -> Answers:
    """Answer every question with every strategy, with the same seed for each.

    Answers are kept in `output_dir` chunk by chunk: a killed comparison goes on, and another probe with the same
    strategies is compared on the same answers at once.

    Args:
        questions: with their tasks.
        strategies: one for each difficulty.
        sampler: who answers.
        output_dir: of the answers.
        samples: answers per question and strategy.
        max_tokens: the whole budget of an answer, of which a strategy gets its share.
        top_p: of sampling.
        seed: of sampling.
        chunk_size: questions that are lost by a kill.
        progress: show a bar, on a terminal.

    Raises:
        ValueError: an argument is out of range, or the directory was begun with other settings.
    """
    check_settings(samples=samples, top_p=top_p, max_tokens=max_tokens)
    rows: list[dict[str, Any]] = []
    with progress_bar("questions", len(questions), progress) as advance:
        for number, (task, chosen) in enumerate(questions.parts):
            if not chosen:
                continue
            directory = Path(output_dir) / f"part-{number}"
            settings = {
                "fingerprint": questions.traces.fingerprint,
                "task": task.name,
                "digest": digest(chosen),
                "strategies": {name: strategies[d].to_dict() for name, d in zip(NAMES, DIFFICULTIES, strict=True)},
                "samples": samples,
                "max_tokens": max_tokens,
                "top_p": top_p,
                "seed": seed,
            }
            store = ChunkStore(directory, settings, len(chosen), chunk_size)
            advance(store.done(), "")
            for chunk in store.missing():
                asked = [chosen[index] for index in store.span(chunk)]
                made: list[dict[str, Any]] = [{"index": index} for index in store.span(chunk)]
                for difficulty in DIFFICULTIES:
                    strategy = strategies[difficulty]
                    advance(0, f"chunk {chunk + 1} of {store.chunks}: {difficulty.value}")
                    started = time.perf_counter()
                    groups = sampler.sample(
                        [strategy.prompt(row["prompt"]) for row in asked],
                        samples=samples,
                        temperature=strategy.temperature,
                        top_p=top_p,
                        max_tokens=strategy.max_tokens(max_tokens),
                        seed=chunk_seed(seed, chunk),
                        progress=False,
                    )
                    seconds = time.perf_counter() - started
                    total = sum(len(completion.token_ids) for group in groups for completion in group)
                    right = verdicts(task.reward_funcs[0], asked, groups)
                    for row, group, verdict in zip(made, groups, right, strict=True):
                        lengths = [len(completion.token_ids) for completion in group]
                        row[f"{difficulty.value}_correct"] = verdict
                        row[f"{difficulty.value}_tokens"] = lengths
                        # A batch is one piece of time: an answer's part of it is that of its tokens.
                        row[f"{difficulty.value}_seconds"] = seconds * sum(lengths) / max(1, total) / len(group)
                store.write(chunk, made, _schema())
                advance(len(asked), "")
            rows += read_rows(directory)
    return Answers(
        correct=np.asarray([[row[f"{name}_correct"] for row in rows] for name in NAMES], dtype=np.float64),
        tokens=np.asarray([[row[f"{name}_tokens"] for row in rows] for name in NAMES], dtype=np.float64),
        seconds=np.asarray([[row[f"{name}_seconds"] for row in rows] for name in NAMES], dtype=np.float64),
    )


def compare_policies(answers: Answers, chosen: Sequence[Difficulty]) -> dict[str, Any]:
    """Accuracy, tokens and time of ways to choose a strategy, on the same answers.

    - ``easy``, ``normal``, ``hard``: that one for every question.
    - ``random``: any of the three with equal chance; the exact expectation, not a draw.
    - ``random_same_mix``: at random, but each as often as the probe chooses it. What the probe does better than this it
      owes to knowing the question.
    - ``probe``: `chosen`.
    - ``oracle``: for each question the strategy that is most often right, and of those the one with the fewest tokens.
      It chooses on one half of the samples and is measured on the other, both ways round: chosen and measured on the
      same samples it would profit from luck. With one sample there is no such oracle.
    - ``oracle_in_sample``: that optimistic oracle, as the papers' numbers are; nobody can reach it.

    Questions where a strategy has no answer that can be scored (in either half) are left out of everything.

    Args:
        answers: of the three strategies.
        chosen: by the probe, one for each question.

    Returns:
        Plain JSON values: ``questions``, ``unscorable`` and ``policies``. A policy has ``accuracy`` with its 95 %
        ``interval``, ``tokens``, ``seconds`` (of the batched sampling, by tokens: costs, not one user's waiting time),
        ``shares`` of the strategies, and ``minus_normal``: the paired differences in accuracy and tokens to ``normal``,
        each with its 95 % interval from a bootstrap over questions, and ``saving``, the tokens saved as a fraction of
        normal's. The probe's ``oracle_share`` is its part of the tokens that the oracle saves.

    Raises:
        ValueError: shapes that differ, or no question can be scored.
    """
    correct, tokens = answers.correct, answers.tokens
    if correct.shape != tokens.shape or correct.shape[1] != len(chosen):
        raise ValueError(f"answers and choices differ: {correct.shape}, {tokens.shape} and {len(chosen)} choices")
    samples = correct.shape[2]
    halves = [np.arange(samples) % 2 == 0, np.arange(samples) % 2 == 1] if samples > 1 else []
    scorable = np.isfinite(correct)
    usable = scorable.any(2).all(0)
    for half in halves:
        usable &= scorable[:, :, half].any(2).all(0)
    if not usable.any():
        raise ValueError("no question has an answer of every strategy that can be scored")
    correct, tokens, seconds = correct[:, usable], tokens[:, usable], answers.seconds[:, usable]
    right, length = np.nanmean(correct, axis=2), tokens.mean(2)  # (3, questions)
    picks = np.asarray([choice.index for choice in chosen])[usable]
    count = len(picks)
    one_hot = np.eye(len(NAMES))
    mix = np.bincount(picks, minlength=len(NAMES)) / count

    weights = {name: np.tile(one_hot[index], (count, 1)) for index, name in enumerate(NAMES)}
    weights["random"] = np.full((count, len(NAMES)), 1 / len(NAMES))
    weights["random_same_mix"] = np.tile(mix, (count, 1))
    weights["probe"] = one_hot[picks]

    measured = {
        name: (_mixed(w, right), _mixed(w, length), _mixed(w, seconds), w.mean(0)) for name, w in weights.items()
    }
    if halves:
        sides = []
        for choosing, measuring in (halves, halves[::-1]):
            w = one_hot[_oracle(correct[:, :, choosing], tokens[:, :, choosing])]
            own = np.nanmean(correct[:, :, measuring], axis=2), tokens[:, :, measuring].mean(2)
            sides.append((_mixed(w, own[0]), _mixed(w, own[1]), _mixed(w, seconds), w.mean(0)))
        measured["oracle"] = tuple((a + b) / 2 for a, b in zip(*sides, strict=True))
    w = one_hot[_oracle(correct, tokens)]
    measured["oracle_in_sample"] = (_mixed(w, right), _mixed(w, length), _mixed(w, seconds), w.mean(0))

    policies = {name: _policy(*values, *measured["normal"][:2]) for name, values in measured.items()}
    if "oracle" in policies:
        possible = policies["normal"]["tokens"] - policies["oracle"]["tokens"]
        saved = policies["normal"]["tokens"] - policies["probe"]["tokens"]
        policies["probe"]["oracle_share"] = saved / possible if possible > 0 else None
    return {"questions": count, "unscorable": int((~usable).sum()), "samples": samples, "policies": policies}


def _mixed(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A policy's mean on each question, (questions,); weights are (questions, 3), values (3, questions)."""
    return np.einsum("qs,sq->q", weights, values)


def _oracle(correct: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The cheapest of the strategies that are right most often, (questions,)."""
    right, length = np.nanmean(correct, axis=2), tokens.mean(2)
    best = right >= right.max(0) - 1e-12
    return np.where(best, length, np.inf).argmin(0)


def _policy(
    right: np.ndarray,
    length: np.ndarray,
    seconds: np.ndarray,
    shares: np.ndarray,
    normal_right: np.ndarray,
    normal_length: np.ndarray,
) -> dict[str, Any]:
    accuracy = paired_difference(list(normal_right), list(right))
    tokens = paired_difference(list(normal_length), list(length))
    whole = float(normal_length.mean())
    return {
        "accuracy": float(right.mean()),
        "interval": list(bootstrap_interval(right.clip(0, 1))),
        "tokens": float(length.mean()),
        "seconds": float(seconds.mean()),
        "shares": {name: float(share) for name, share in zip(NAMES, shares, strict=True)},
        "minus_normal": {
            "accuracy": list(accuracy),
            "tokens": list(tokens),
            # The largest saving is the lowest difference in tokens.
            "saving": [-tokens[0] / whole, -tokens[2] / whole, -tokens[1] / whole],
        },
    }


def by_level(traces: Traces) -> dict[str, Any]:
    """Accuracy and entropy by difficulty level: the U, where there is one.

    Questions without a level are grouped by how often they were answered rightly, into five groups of falling accuracy.
    """
    named = levels(traces.rows)
    if named:
        groups = {level: [row for row in traces.rows if row["level"] == level] for level in named}
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
    answers: Answers,
    *,
    min_confidence: float = 0.5,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that `probe evaluate` reports, plain JSON values: the classifier, the policies and the U.

    Args:
        probe: whose `thresholds` label the questions and whose choices are measured.
        questions: held out.
        answers: of its strategies to them.
        min_confidence: below it the probe's choice is Normal.
        settings: to be written into the result.
    """
    traces = questions.traces
    proba = probe.predict_proba(traces.hidden)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "model": traces.model,
        "tasks": [f"{task.name}/{task.split}" for task, _ in questions.parts],
        "settings": {"min_confidence": min_confidence, **(settings or {})},
        "left_out": {"fitted": questions.fitted, "unscorable_traces": traces.unscorable},
        **compare_policies(answers, choose(proba, min_confidence)),
        "levels": by_level(traces),
    }
    if probe.thresholds is not None:
        result["thresholds"] = asdict(probe.thresholds)
        truth = labels_of(traces, probe.thresholds)
        counts = probe.metrics.get("labels") or dict(zip(NAMES, np.bincount(truth, minlength=3).tolist(), strict=True))
        result["classifier"] = {
            "probe": classification_report(proba, truth),
            "majority": classification_report(majority([counts[name] for name in NAMES], len(truth)), truth),
        }
    return result


def routing_seconds(model: Any, tokenizer: Any, probe: DifficultyProbe, prompts: Sequence[Any]) -> float | None:
    """Median time to tell one question's difficulty: its prefill and the probe. A server shares that prefill."""
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
