"""Ways to choose a strategy for each question, compared on the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from entropy_rft.difficulty.strategies import NAMES, Difficulty
from entropy_rft.errors import UserValueError
from entropy_rft.reporting.estimators import bootstrap_interval, paired_difference

ORACLE = "for each question the cheapest strategy that is right no less often than Normal"
"""The oracle's rule, as every text explains it; `oracle_choices` implements it."""
NEED_THE_PROBE = ("probe", "probe_no_fallback")
"""Ways to choose that need a question's prefill and the probe; the others cost nothing, or cannot be used in
practice."""
_ONE_HOT = np.eye(len(NAMES))


@dataclass(frozen=True)
class Outcomes:
    """The results of every strategy on every question; the first axis is that of a probe's probabilities.

    Attributes:
        correct: 1, 0, or NaN where nothing could be scored; (3, questions, samples).
        tokens: lengths, (3, questions, samples).
        seconds: mean time of an answer, (3, questions).
    """

    correct: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What a way to choose costs and gains, question by question; NaN where a strategy has no answer to score.

    Attributes:
        right: fraction of right answers, (questions,).
        tokens: mean length, (questions,).
        seconds: mean time of an answer and, after `with_routing`, of the choice, (questions,).
        shares: how often each strategy is chosen, (questions, 3).
    """

    right: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    shares: np.ndarray


def compare_policies(
    answers: Outcomes,
    chosen: Sequence[Difficulty],
    others: Mapping[str, Sequence[Difficulty]] | None = None,
    routing_seconds: float | None = None,
) -> dict[str, Any]:
    """Accuracy, tokens and time of ways to choose a strategy; see `measure_policies` for which and `summary` for what.

    Args:
        answers: of the three strategies.
        chosen: by the probe, one for each question.
        others: further choices by name, such as those of a rule.
        routing_seconds: that the probe takes for one question; see `with_routing`.

    Returns:
        Plain JSON values: ``questions``, ``unscorable``, ``samples``, and ``policies`` by name.

    Raises:
        ValueError: shapes that differ, or no question can be scored.
    """
    measured = with_routing(measure_policies(answers, {**(others or {}), "probe": chosen}), routing_seconds)
    usable = np.isfinite(measured["normal"].right)
    return {
        "questions": int(usable.sum()),
        "unscorable": int((~usable).sum()),
        "samples": answers.correct.shape[2],
        "policies": summary(measured),
    }


def measure_policies(answers: Outcomes, choices: Mapping[str, Sequence[Difficulty]]) -> dict[str, Measured]:
    """Ways to choose a strategy, on the same answers.

    - ``easy``, ``normal``, ``hard``: that one for every question.
    - ``random``: any of the three with equal chance; the exact expectation, not a draw.
    - ``random_same_mix``: at random, but each as often as the probe chooses it. Where the probe is better than this,
      the reason is its information about the question.
    - those of `choices`, among them ``probe``.
    - ``oracle``: for each question the cheapest strategy that is right no less often than Normal (`oracle_choices`). It
      chooses on all samples but one and is measured on that one, averaged over the samples: a choice that is measured
      on its own samples looks better by chance. With one sample there is no such oracle.
    - ``oracle_in_sample``: the same, chosen and measured on all samples, as the papers' numbers are; no usable rule can
      reach it.

    Answers that cannot be scored are left out (see `verdicts`). If that leaves a choice without an answer to a
    question, the question is left out of all policies.

    Args:
        answers: of the three strategies.
        choices: by name, one strategy for each question; ``probe`` is among them.

    Raises:
        ValueError: shapes that differ, or no question can be scored.
    """
    correct, tokens, seconds = answers.correct, answers.tokens, answers.seconds
    for chosen in choices.values():
        if correct.shape != tokens.shape or correct.shape[1] != len(chosen):
            raise UserValueError(
                f"answers and choices differ: {correct.shape}, {tokens.shape} and {len(chosen)} choices"
            )
    count, samples = correct.shape[1:]
    scorable = np.isfinite(correct)
    usable = scorable.any(2).all(0)
    oracle = _cross_fitted(answers) if samples > 1 else None
    if oracle is not None:
        usable &= np.isfinite(oracle.right)
    if not usable.any():
        raise UserValueError("no question has an answer of every strategy that can be scored")
    correct = np.where(usable[None, :, None], correct, 0.0)  # an empty mean would warn; they become NaN below
    right, length = np.nanmean(correct, axis=2), tokens.mean(2)  # (3, questions)

    def measured(weights: np.ndarray) -> Measured:
        return Measured(_mixed(weights, right), _mixed(weights, length), _mixed(weights, seconds), weights)

    policies = {name: measured(np.tile(_ONE_HOT[index], (count, 1))) for index, name in enumerate(NAMES)}
    picked = {name: _ONE_HOT[[choice.index for choice in chosen]] for name, chosen in choices.items()}
    policies["random"] = measured(np.full((count, len(NAMES)), 1 / len(NAMES)))
    policies["random_same_mix"] = measured(np.tile(picked["probe"][usable].mean(0), (count, 1)))
    policies |= {name: measured(weights) for name, weights in picked.items()}
    if oracle is not None:
        policies["oracle"] = oracle
    policies["oracle_in_sample"] = measured(_ONE_HOT[oracle_choices(correct, tokens)])
    return {name: _only(policy, usable) for name, policy in policies.items()}


def with_routing(measured: Mapping[str, Measured], seconds: float | None) -> dict[str, Measured]:
    """The same with the time of the choice added to each question, for the ways to choose that need the probe.

    Args:
        measured: of `measure_policies`.
        seconds: of one question, its prefill included; ``None`` if it was not measured; then nothing is added.
    """
    return {
        name: replace(policy, seconds=policy.seconds + (seconds or 0.0)) if name in NEED_THE_PROBE else policy
        for name, policy in measured.items()
    }


def pooled(runs: Sequence[Mapping[str, Measured]]) -> dict[str, Measured]:
    """Several runs over the same questions as one: each question's means over the runs.

    A bootstrap over questions of the result treats them as the same questions in each run. A question that one run
    could not score is left out.

    Raises:
        ValueError: no run, or runs over other numbers of questions.
    """
    counts = {len(run["normal"].right) for run in runs}
    if len(counts) != 1:
        raise UserValueError(f"only runs over the same questions can be pooled, got {sorted(counts) or 'none'}")
    return {name: _mean([run[name] for run in runs]) for name in runs[0] if all(name in run for run in runs)}


def summary(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Each policy in a few numbers, plain JSON values.

    A policy has ``accuracy`` with its 95 % ``interval``, ``tokens``, ``seconds`` (of the batched sampling, by tokens,
    and of the choice: costs, not one user's waiting time), ``shares`` of the strategies, and ``minus_normal``: the
    paired differences in accuracy and tokens to ``normal``, each with its 95 % interval from a bootstrap over
    questions, and ``saving``, the tokens saved as a fraction of normal's, whose interval resamples both together (see
    `saved_fraction`). The ``oracle_share`` of the probe and of other rules is their part of the tokens that the oracle
    saves; ``None`` where it saves none.
    """
    usable = np.isfinite(measured["normal"].right)
    normal = measured["normal"]
    policies = {name: _policy(policy, normal, usable) for name, policy in measured.items()}
    if "oracle" in policies:
        whole = policies["normal"]["tokens"]
        possible = whole - policies["oracle"]["tokens"]
        for name in policies.keys() - {*NAMES, "random", "random_same_mix", "oracle", "oracle_in_sample"}:
            saved = whole - policies[name]["tokens"]
            policies[name]["oracle_share"] = saved / possible if possible > 0 else None
    return policies


def saved_fraction(
    normal: np.ndarray, other: np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[float]:
    """The tokens that `other` saves as a fraction of normal's, with a percentile bootstrap interval over questions.

    Each resample is of questions and has its own total of `normal`: long questions save many tokens *and* add many to
    that total, so an interval of the saved tokens alone, over a fixed total, would be far too wide.

    Args:
        normal: tokens of each question, (questions,).
        other: the same of another choice.
        confidence, resamples, seed: of the bootstrap.

    Returns:
        [fraction, low, high]; 0 where normal takes no tokens at all.
    """
    saved = np.stack([normal - other, normal])  # (2, questions)
    generator = np.random.default_rng(seed)
    rows = max(1, min(resamples, 2_000_000 // len(normal)))  # 48 MB of indices and values at a time
    totals = np.concatenate(
        [
            saved[:, generator.integers(len(normal), size=(min(rows, resamples - start), len(normal)))].sum(-1)
            for start in range(0, resamples, rows)
        ],
        axis=1,
    )
    ratios = np.divide(totals[0], totals[1], out=np.zeros(resamples), where=totals[1] > 0)
    tail = (1 - confidence) / 2
    whole = float(normal.sum())
    found = [float(saved[0].sum()) / whole if whole > 0 else 0.0, *np.quantile(ratios, [tail, 1 - tail]).tolist()]
    return [0.0 + value for value in found]  # not "-0.0"


def _mixed(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A policy's mean on each question, (questions,); weights are (questions, 3), values (3, questions)."""
    return np.einsum("qs,sq->q", weights, values)


def oracle_choices(correct: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The cheapest strategy that is right no less often than Normal: its index for each question, (questions,).

    A strategy without an answer that can be scored is not chosen; where Normal has none, there is nothing to compare
    with, and Normal is chosen. Of equally cheap strategies the first in the order Easy, Normal, Hard is chosen.

    Args:
        correct: 1, 0, or NaN where nothing could be scored; (3, questions, samples).
        tokens: lengths, (3, questions, samples).
    """
    known = np.isfinite(correct)
    counts = known.sum(2)
    right = np.where(known, correct, 0.0).sum(2) / np.maximum(counts, 1)
    normal = Difficulty.NORMAL.index
    allowed = (right >= right[normal] - 1e-12) & (counts > 0) & (counts[normal] > 0)
    allowed[normal] = True
    return np.where(allowed, tokens.mean(2), np.inf).argmin(0)


def _cross_fitted(answers: Outcomes) -> Measured:
    """The oracle that chooses on all samples but one and is measured on that one; the mean over the samples.

    A choice on two of four samples would more often miss the best strategy. Policies that are compared with it would
    then look better than they are.
    """
    correct, tokens = answers.correct, answers.tokens
    samples = correct.shape[2]
    every = np.arange(correct.shape[1])
    right, length, chosen = [], [], []
    for fold in range(samples):
        rest = np.arange(samples) != fold
        choice = oracle_choices(correct[:, :, rest], tokens[:, :, rest])
        right.append(correct[choice, every, fold])
        length.append(tokens[choice, every, fold])
        chosen.append(_ONE_HOT[choice])
    verdicts = np.stack(right)
    known = np.isfinite(verdicts)
    shares = np.mean(chosen, axis=0)
    return Measured(
        right=np.divide(
            np.where(known, verdicts, 0.0).sum(0),
            known.sum(0),
            out=np.full(len(every), np.nan),
            where=known.any(0),
        ),
        tokens=np.mean(length, axis=0),
        seconds=_mixed(shares, answers.seconds),
        shares=shares,
    )


def _mean(several: Sequence[Measured]) -> Measured:
    fields = ("right", "tokens", "seconds", "shares")
    return Measured(*(np.mean([getattr(one, name) for one in several], axis=0) for name in fields))


def _only(policy: Measured, usable: np.ndarray) -> Measured:
    def kept(values: np.ndarray) -> np.ndarray:
        return np.where(usable if values.ndim == 1 else usable[:, None], values, np.nan)

    return Measured(kept(policy.right), kept(policy.tokens), kept(policy.seconds), kept(policy.shares))


def _policy(policy: Measured, normal: Measured, usable: np.ndarray) -> dict[str, Any]:
    right, length = policy.right[usable], policy.tokens[usable]
    accuracy = paired_difference(list(normal.right[usable]), list(right))
    tokens = paired_difference(list(normal.tokens[usable]), list(length))
    return {
        "accuracy": float(right.mean()),
        "interval": list(bootstrap_interval(right.clip(0, 1))),
        "tokens": float(length.mean()),
        "seconds": float(policy.seconds[usable].mean()),
        "shares": {name: float(s) for name, s in zip(NAMES, policy.shares[usable].mean(0), strict=True)},
        "minus_normal": {
            "accuracy": list(accuracy),
            "tokens": list(tokens),
            "saving": saved_fraction(normal.tokens[usable], length),
        },
    }
