"""Train a probe on traces, and measure it on held-out questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from entropy_rft.difficulty.calibration import calibrate_thresholds
from entropy_rft.difficulty.labels import NoProbeError, Thresholds, labelled
from entropy_rft.difficulty.metrics import classification_report
from entropy_rft.difficulty.optimisation import split_groups
from entropy_rft.difficulty.probe import DifficultyProbe
from entropy_rft.difficulty.states import is_old
from entropy_rft.difficulty.strategies import DEFAULT_STRATEGIES, DIFFICULTIES, NAMES, Difficulty, Placement, Strategy
from entropy_rft.difficulty.traces import Traces
from entropy_rft.errors import UserValueError

BASELINES = {"prompt_length": "prompt_tokens", "pass_rate": "accuracy"}
"""The baselines without a hidden state, by name, with the column of the traces that each of them sees."""


def train_probe(
    traces: Traces,
    *,
    kind: str = "mlp",
    hidden_units: int = 256,
    thresholds: Thresholds | None = None,
    strategies: Mapping[Difficulty, Strategy] = DEFAULT_STRATEGIES,
    placement: Placement = "system",
    test_fraction: float = 0.2,
    min_share: float = 0.05,
    epochs: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> DifficultyProbe:
    """Label the traces and fit a probe to most of them.

    `test_fraction` of the questions is held out first: neither the thresholds nor the probe see it. The metrics on it
    are in the probe's `metrics["test"]`. Those of baselines without a hidden state are in `metrics["baselines"]`:

    - ``majority``: always the commonest class;
    - ``prompt_length``: a classifier like this one that sees the prompt's length alone;
    - ``pass_rate``: one that sees the question's own fraction of right answers, which takes many answers to measure. It
      is an upper bound for a prediction from the accuracy alone, not a usable method.

    Args:
        traces: of one model.
        kind, hidden_units, epochs, learning_rate, seed: of the probe.
        thresholds: of the labels; ``None`` calibrates them.
        strategies: saved with the probe.
        placement: of their instructions, saved with the probe.
        test_fraction: of the questions.
        min_share: smallest share of a class when thresholds are calibrated.

    Raises:
        ValueError: too few questions, one class only, or an argument out of range; one line.
    """
    questions = set(traces.questions)
    if len(questions) < 10:
        raise UserValueError(f"a probe needs at least 10 different questions, the traces have {len(questions)}")
    if seed < 0:
        raise UserValueError(f"seed must be at least 0, got {seed}")
    testing = split_groups(traces.questions, test_fraction, seed)
    seen, unseen = traces.take(~testing), traces.take(testing)
    metrics: dict[str, Any] = {}
    if thresholds is None:
        found = calibrate_thresholds(seen.column("accuracy"), seen.column("entropy"), min_share=min_share, seed=seed)
        thresholds = found.thresholds
        metrics["calibration"] = {name: value for name, value in asdict(found).items() if name not in ("thresholds",)}
    known, truth = labels_of(seen, thresholds), labels_of(unseen, thresholds)
    counts = np.bincount(known, minlength=len(NAMES))
    if (counts > 0).sum() < 2:
        only = NAMES[int(counts.argmax())]
        raise NoProbeError(
            f"all {len(known)} questions are {only} by {thresholds}: calibrate the thresholds, or give others"
        )
    probe = DifficultyProbe(
        kind,
        hidden_units=hidden_units,
        base_model=traces.model,
        fingerprint=traces.fingerprint,
        layer=traces.layer,
        thresholds=thresholds,
        strategies=strategies,
        placement=placement,
        seed=seed,
    )
    targets = [DIFFICULTIES[index] for index in known]
    probe.fit(seen.hidden, targets, groups=seen.questions, epochs=epochs, learning_rate=learning_rate)
    metrics |= probe.metrics
    metrics["labels"] = {name: int(count) for name, count in zip(NAMES, counts, strict=True)}
    metrics["test"] = classification_report(probe.predict_proba(unseen.hidden), truth)
    baselines = {"majority": classification_report(majority(counts, len(unseen)), truth)}
    for name, other in fit_baselines(seen, thresholds, epochs=epochs, learning_rate=learning_rate, seed=seed).items():
        column = unseen.column(BASELINES[name])[:, None]
        baselines[name] = classification_report(other.predict_proba(column), truth)
    metrics["baselines"] = baselines
    probe.metrics = metrics
    return probe


def fit_baselines(
    traces: Traces, thresholds: Thresholds, *, epochs: int = 100, learning_rate: float = 1e-3, seed: int = 0
) -> dict[str, DifficultyProbe]:
    """Classifiers like the probe that see one number of each question instead of its hidden state; see `BASELINES`.

    Args:
        traces: that the probe was fitted to.
        thresholds: of the labels.
        epochs, learning_rate, seed: as for the probe.
    """
    targets = [DIFFICULTIES[index] for index in labels_of(traces, thresholds)]
    return {
        name: DifficultyProbe(hidden_units=32, seed=seed).fit(
            traces.column(column)[:, None], targets, groups=traces.questions, epochs=epochs, learning_rate=learning_rate
        )
        for name, column in BASELINES.items()
    }


def baselines_of(probe: DifficultyProbe, traces: Traces, *, force: bool = False) -> dict[str, DifficultyProbe]:
    """The baselines of a saved probe, fitted as it was to the questions that it was fitted to.

    Args:
        probe: with thresholds.
        traces: that it was trained on; other questions in them are left out.
        force: accept traces of other weights than the probe's base model.

    Raises:
        ValueError: the probe has no thresholds, or the traces are of another model or have none of its questions.
    """
    check_weights(traces, probe, force)
    if probe.thresholds is None:
        raise UserValueError("the probe has no thresholds: without them the questions have no labels")
    own = traces.among(set(probe.questions))
    if not own.any():
        raise UserValueError(
            "the probe was fitted to none of these traces' questions: give those that it was trained on"
        )
    fit = probe.metrics.get("fit", {})  # older probes do not record their settings: then the defaults
    made = {
        name: fit[key] for name, key in (("epochs", "max_epochs"), ("learning_rate", "learning_rate")) if key in fit
    }
    return fit_baselines(traces.take(own), probe.thresholds, seed=probe.seed, **made)


def check_weights(traces: Traces, probe: DifficultyProbe, force: bool = False) -> None:
    """Raise a ValueError unless the traces are of the weights that the probe was made for, or `force` is given."""
    if force or probe.fingerprint is None or probe.fingerprint == traces.fingerprint:
        return
    if is_old(probe.fingerprint) != is_old(traces.fingerprint):
        older, newer = ("probe was", "traces") if is_old(probe.fingerprint) else ("traces were", "probe")
        raise UserValueError(
            f"the {older} made by an earlier version, whose fingerprint of the weights ({probe.fingerprint!r} or "
            f"{traces.fingerprint!r}) cannot be compared with that of the {newer}: make both again, or give --force"
        )
    raise UserValueError(
        f"the probe was made for the base model {probe.base_model!r}, the traces are of {traces.model!r} with other "
        "weights: collect traces with the probe's model"
    )


def labels_of(traces: Traces, thresholds: Thresholds) -> np.ndarray:
    """The classes of the traces' questions, (N,) int64."""
    return labelled(traces.column("accuracy"), traces.column("entropy"), thresholds)


def majority(counts: Any, rows: int) -> np.ndarray:
    """Probabilities of always saying the commonest class, with its share as the confidence; (rows, 3)."""
    shares = np.asarray(counts, dtype=np.float64) / np.sum(counts)
    return np.tile(shares, (rows, 1))
