"""A small grid of temperatures and budgets for each difficulty, tried on questions of a validation split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from entropy_rft.difficulty.collect import SamplerLike
from entropy_rft.difficulty.compare.comparison import Questions, placement_for
from entropy_rft.difficulty.compare.policies import Outcomes, measure_policies
from entropy_rft.difficulty.probe import DifficultyProbe, choose
from entropy_rft.difficulty.strategies import DIFFICULTIES, Difficulty, Placement, Strategy
from entropy_rft.errors import UserValueError
from entropy_rft.sampling import (
    Completion,
    ThinkEndMarker,
    check_settings,
    progress_bar,
    right_and_scored,
    verdicts,
)

TEMPERATURES = (0.2, 0.4, 0.6, 0.8)
FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


_TEST = re.compile(r"(?<![a-z])test(?![a-z])")  # also test[:200], train+test, test-2024; not latest
CONFIDENCES = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Trial:
    """A strategy on the validation questions of its difficulty."""

    strategy: Strategy
    accuracy: float
    tokens: float
    questions: int


def tune_strategies(
    probe: DifficultyProbe,
    questions: Questions,
    sampler: SamplerLike,
    tokenizer: Any,
    *,
    samples: int = 4,
    max_tokens: int = 1024,
    temperatures: Sequence[float] = TEMPERATURES,
    fractions: Sequence[float] = FRACTIONS,
    thinking_tokens: Sequence[int] = (),
    tolerance: float = 0.01,
    min_confidence: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> tuple[dict[Difficulty, Strategy], dict[Difficulty, list[Trial]]]:
    """Find for each difficulty the temperature and the share of the budget that its questions need.

    Each strategy is tried on the questions that the probe sends to it. The cheapest trial is chosen whose accuracy is
    at most `tolerance` below that of the probe's own Normal strategy, which is a trial too. If no other trial reaches
    that, the difficulty gets Normal's strategy. Otherwise all that is not in the grid is kept. Smaller shares need no
    new answers: an answer under a smaller limit has the same distribution as the beginning of an answer under a larger
    one. A limit on the thinking changes what follows, so each one is answered anew; it replaces the shares in the grid.

    A grid of 24 trials on a hundred questions finds differences of a few points by chance: measure the result with
    `probe evaluate` on questions of another split.

    Args:
        probe: its choices and its strategies are the starting point.
        questions: of a validation split.
        sampler: samples the answers.
        tokenizer: of the model.
        samples: answers per question and temperature.
        max_tokens: the whole budget of an answer.
        temperatures, fractions: the grid.
        thinking_tokens: limits on the thinking to try instead of fractions. Without any, a strategy that has a limit
            keeps it, and only temperatures are tried.
        tolerance: accuracy that may be lost, as a fraction.
        min_confidence: below it the probe's choice is Normal.
        seed: of sampling.
        progress: show a bar, on a terminal.

    Returns:
        The strategies, and all trials. A difficulty to which the probe assigns no question keeps its strategy.

    Raises:
        ValueError: an argument is out of range, or the questions are of a test split.
    """
    check_settings(samples=samples, max_tokens=max_tokens)
    check_grid(temperatures, fractions, tolerance, thinking_tokens)
    check_splits(questions)
    grid = {
        difficulty: _grid(probe.strategies[difficulty], temperatures, fractions, thinking_tokens)
        for difficulty in DIFFICULTIES
    }
    chosen = choose(probe.predict_proba(questions.traces.hidden), min_confidence)
    marker = ThinkEndMarker(tokenizer, questions.traces.think_end_token)
    found = dict(probe.strategies)
    tried: dict[Difficulty, list[Trial]] = {difficulty: [] for difficulty in DIFFICULTIES}
    with progress_bar("trials", len(DIFFICULTIES) * (len(temperatures) + 1), progress) as advance:
        for difficulty in DIFFICULTIES:
            own = _sent_to(questions, chosen, difficulty)
            if not own:
                advance(len(temperatures) + 1, "")
                continue
            placement = placement_for(sampler, probe.placement)
            ask = _Asker(own, sampler, tokenizer, marker, samples, max_tokens, seed, placement)
            (normal,) = ask.trials([replace(probe.strategies[Difficulty.NORMAL], difficulty=difficulty)])
            tried[difficulty].append(normal)
            advance(1, difficulty.value)
            for temperature in temperatures:
                same = [strategy for strategy in grid[difficulty] if strategy.temperature == temperature]
                for limit in dict.fromkeys(strategy.thinking_tokens for strategy in same):
                    tried[difficulty] += ask.trials(
                        [strategy for strategy in same if strategy.thinking_tokens == limit]
                    )
                advance(1, difficulty.value)
            found[difficulty] = pick(tried[difficulty], normal.accuracy - tolerance).strategy
    return found, tried


def tune_confidence(
    proba: Any, answers: Outcomes, tolerance: float = 0.01, confidences: Sequence[float] = CONFIDENCES
) -> tuple[float, list[dict[str, float]]]:
    """Find the confidence below which a question is better answered by Normal.

    The cheapest of the candidates whose accuracy is at most `tolerance` below fixed Normal's; of equally cheap ones the
    highest. If there is none, the result is 1: Normal for nearly every question. With a few hundred questions the
    choice depends partly on chance, so its saving must be measured on other questions.

    Args:
        proba: of the probe or another rule, (questions, 3), for questions it was not fitted to.
        answers: of the three strategies to them.
        tolerance: accuracy that may be lost, as a fraction.
        confidences: to try, each between 0 and 1.

    Returns:
        The confidence, and what each candidate costs and gains: ``min_confidence``, ``accuracy``, ``tokens``, beside
        ``accuracy_minus_normal``.

    Raises:
        ValueError: a candidate is out of range, or there is none.
    """
    if not confidences:
        raise UserValueError("confidences needs at least one value")
    trials = []
    for confidence in sorted(confidences):
        measured = measure_policies(answers, {"probe": choose(proba, confidence)})
        normal, rule = measured["normal"], measured["probe"]
        trials.append(
            {
                "min_confidence": float(confidence),
                "accuracy": float(np.nanmean(rule.right)),
                "tokens": float(np.nanmean(rule.tokens)),
                "accuracy_minus_normal": float(np.nanmean(rule.right - normal.right)),
            }
        )
    enough = [trial for trial in trials if trial["accuracy_minus_normal"] >= -tolerance - 1e-12]
    if not enough:
        return 1.0, trials
    return min(enough, key=lambda trial: (trial["tokens"], -trial["min_confidence"]))["min_confidence"], trials


def _grid(
    strategy: Strategy, temperatures: Sequence[float], fractions: Sequence[float], thinking_tokens: Sequence[int]
) -> list[Strategy]:
    if thinking_tokens:
        return [
            replace(strategy, temperature=t, thinking_tokens=limit)
            for t in temperatures
            for limit in sorted(thinking_tokens)
        ]
    if strategy.thinking_tokens is not None:
        return [replace(strategy, temperature=t) for t in temperatures]
    return [replace(strategy, temperature=t, max_tokens_fraction=f) for t in temperatures for f in sorted(fractions)]


def check_grid(
    temperatures: Sequence[float], fractions: Sequence[float], tolerance: float, thinking_tokens: Sequence[int] = ()
) -> None:
    """Raise a ValueError that names what is out of range; callers use it before slow work."""
    if not temperatures or not fractions:
        raise UserValueError("temperatures and fractions need at least one value each")
    for temperature in temperatures:
        Strategy(Difficulty.NORMAL, "", temperature, 1.0)
    for fraction in fractions:
        Strategy(Difficulty.NORMAL, "", 0.0, fraction)
    for limit in thinking_tokens:
        Strategy(Difficulty.NORMAL, "", 0.0, 1.0, limit)
    if not 0 <= tolerance < 1:
        raise UserValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")


def check_splits(questions: Questions) -> None:
    """Raise a ValueError when the questions are of a split called test, of a part of it, or of a sum with it."""
    for task, _ in questions.parts:
        if _TEST.search(task.split.lower()):
            raise UserValueError(
                f"the traces are of the split {task.split!r} of {task.name}: strategies are tuned on a validation "
                "split, so that test questions can still measure them"
            )


def pick(trials: Sequence[Trial], accuracy: float) -> Trial:
    """The cheapest of the trials that reach `accuracy`; of equal ones the more accurate."""
    enough = [trial for trial in trials if trial.accuracy >= accuracy - 1e-12]
    return min(enough, key=lambda trial: (trial.tokens, -trial.accuracy))


def _sent_to(
    questions: Questions, chosen: Sequence[Difficulty], difficulty: Difficulty
) -> list[tuple[Any, list[dict[str, Any]]]]:
    parts, start = [], 0
    for task, rows in questions.parts:
        own = [row for row, choice in zip(rows, chosen[start : start + len(rows)], strict=True) if choice is difficulty]
        start += len(rows)
        if own:
            parts.append((task, own))
    return parts


@dataclass
class _Asker:
    parts: list[tuple[Any, list[dict[str, Any]]]]
    sampler: SamplerLike
    tokenizer: Any
    marker: ThinkEndMarker
    samples: int
    max_tokens: int
    seed: int
    placement: Placement

    def trials(self, strategies: Sequence[Strategy]) -> list[Trial]:
        """Strategies that differ in their share of the budget alone, answered once."""
        longest = max(strategies, key=lambda strategy: strategy.max_tokens_fraction)
        right: dict[int, list[float]] = {i: [] for i in range(len(strategies))}
        lengths: dict[int, list[int]] = {i: [] for i in range(len(strategies))}
        for task, rows in self.parts:
            groups = self.sampler.sample(
                [longest.prompt(row["prompt"], self.placement) for row in rows],
                samples=self.samples,
                temperature=longest.temperature,
                max_tokens=longest.answer_tokens(self.max_tokens),
                **longest.effort,
                seed=self.seed,
                progress=False,
            )
            for i, strategy in enumerate(strategies):
                limit = strategy.answer_tokens(self.max_tokens)
                short = [[shortened(completion, limit, self.tokenizer) for completion in group] for group in groups]
                for group in verdicts(task.reward_funcs[0], rows, short, self.marker):
                    known, scored = right_and_scored(group)
                    if scored:
                        right[i].append(known / scored)
                lengths[i] += [len(completion.token_ids) for group in short for completion in group]
        if not all(right.values()):
            raise UserValueError("the task's reward could score no answer to the validation questions")
        return [
            Trial(strategy, float(np.mean(right[i])), float(np.mean(lengths[i])), len(right[i]))
            for i, strategy in enumerate(strategies)
        ]


def shortened(completion: Completion, limit: int, tokenizer: Any) -> Completion:
    """The completion as it would be under a smaller limit."""
    if len(completion.token_ids) <= limit:
        return completion
    ids = completion.token_ids[:limit]
    return Completion(completion.prompt_ids, ids, tokenizer.decode(ids, skip_special_tokens=True), truncated=True)


def trial_lines(trials: Mapping[Difficulty, Sequence[Trial]], found: Mapping[Difficulty, Strategy]) -> list[list[str]]:
    """The trials as a table's cells; Normal's strategy first for each difficulty; an arrow marks the winner."""
    return [
        [
            f"{'→ ' if trial.strategy == found[difficulty] else '  '}{difficulty.value}{'' if i else ', as Normal'}",
            f"{trial.strategy.temperature:g}",
            _budget(trial.strategy),
            f"{100 * trial.accuracy:.1f}",
            f"{trial.tokens:.1f}",
            str(trial.questions),
        ]
        for difficulty in DIFFICULTIES
        for i, trial in enumerate(trials[difficulty])
    ]


def _budget(strategy: Strategy) -> str:
    """What limits an answer: tokens of thinking (≤), or a share of all tokens."""
    limit = strategy.thinking_tokens
    return f"{strategy.max_tokens_fraction:g}" if limit is None else f"≤{limit}"
