"""What the embedded model does on held-out questions: the measures of docs/embedded-model.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Any

from entropy_rft.entropy import TokenStatistics
from entropy_rft.reporting.estimators import bootstrap_interval, paired_difference, pass_at_k
from entropy_rft.sampling import Completion, TransformersSampler, score_completions
from entropy_rft.tasks.modulo import LEVELS, MOVES, Chain, Kind, apply, kinds, questions
from entropy_rft.tasks.task import chat_prompt
from studies.embedded.ways import Way, result

MAX_TOKENS = 224
SAMPLES = 16
BANDS = {"1-3": (1, 2, 3), "4-7": (4, 5, 6, 7), "8-10": (8, 9, 10)}
_STEP = re.compile(
    # A chain of several moves ("early" and "direct") is no step: recalling has no parts.
    r"(Recall(?! \d[-+*]\d=\d[-+*])|Split|Turn) (\d)([-+*])(\d)=(?:\d[-+]\d=)?(\d)\."
    r"(?: Check \d[-+]\d=(\d) (?:yes|no)\.)?((?: Again [^.\n]*\.)*)"
)


@dataclass(frozen=True)
class WrittenStep:
    """A line of the thinking: the way, the fact, its first result, what a check found (None: no check), its repeats."""

    way: Way
    digit: int
    move: tuple[str, int]
    first: int
    checked: int | None
    repeats: int

    @property
    def right(self) -> int:
        return apply(self.digit, self.move)


def written_steps(text: str) -> list[WrittenStep]:
    """The steps of a completion, in order; lines that are none, or with a move that no question has, are left out."""
    return [
        WrittenStep(
            Way(way), int(digit), (sign, int(operand)), int(first), int(check) if check else None, again.count("Again")
        )
        for way, digit, sign, operand, first, check, again in _STEP.findall(text)
        if (sign, int(operand)) in MOVES
    ]


def correct(text: str, item: Chain) -> bool:
    """The answers are a digit in a box, so a comparison of strings is exact and quick."""
    return text.rpartition("</think>")[2].strip() == f"The answer is \\boxed{{{item.answer}}}."


def held_out(per_level: int, hardest: int = 0, split: str = "test") -> list[Chain]:
    """`per_level` questions of each level, then further ones of the hardest until there are `hardest` of it."""
    stream = questions(split)
    items = [next(stream) for _ in range(per_level * len(LEVELS))]
    more = questions(split, levels=[LEVELS[-1]], seed=1)
    while sum(item.level == LEVELS[-1] for item in items) < hardest:
        item = next(more)
        if item not in items:
            items.append(item)
    return items


def sample(
    model: Any,
    tokenizer: Any,
    items: Sequence[Chain],
    *,
    samples: int = SAMPLES,
    temperature: float = 1.0,
    instruction: str | None = None,
    seed: int = 0,
) -> list[list[Completion]]:
    """`samples` completions of each question."""
    prompts = [chat_prompt(item.question, instruction, None) for item in items]
    sampler = TransformersSampler(model, tokenizer, batch_size=512)
    return sampler.sample(prompts, samples=samples, temperature=temperature, max_tokens=MAX_TOKENS, seed=seed)


def accuracy(items: Sequence[Chain], groups: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """avg@k, pass@k and tokens, overall and by level, and which questions of the hardest level were solved at all."""
    right = [[correct(c.text, item) for c in group] for item, group in zip(items, groups, strict=True)]
    k = len(groups[0])

    def by_level(values: Iterable[float]) -> dict[str, float]:
        grouped: dict[int | None, list[float]] = defaultdict(list)
        for item, value in zip(items, values, strict=True):
            grouped[item.level].append(value)
        return {str(level): round(fmean(grouped[level]), 4) for level in LEVELS if level in grouped}

    averages = by_level(map(fmean, right))
    hardest = [row for item, row in zip(items, right, strict=True) if item.level == LEVELS[-1]]
    solved = [float(any(row)) for row in hardest]
    flat = [completion for group in groups for completion in group]
    thinking = [[_thinking_tokens(c) for c in group] for group in groups]
    return {
        "avg": round(fmean(averages.values()), 4),  # each level counts alike
        "avg_by_level": averages,
        f"pass@{k}_by_level": by_level([pass_at_k(k, sum(row), k) for row in right]),
        "hardest": {
            "questions": len(hardest),
            f"avg@{k}": round(fmean(map(fmean, hardest)), 4),
            "pass@k": {
                str(n): round(fmean(pass_at_k(k, sum(row), n) for row in hardest), 4)
                for n in (1, 2, 4, 8, 16)
                if n <= k
            },
            f"pass@{k}_interval": _rounded(bootstrap_interval(solved)),
            "solved": solved,
        },
        "tokens": round(fmean(len(c.token_ids) for c in flat), 2),
        "thinking_tokens": round(fmean(by_level(map(fmean, thinking)).values()), 2),
        "thinking_tokens_by_level": by_level(map(fmean, thinking)),
        "longest": max(len(c.token_ids) for c in flat),
        "truncated": round(fmean(c.truncated for c in flat), 4),
    }


def _thinking_tokens(completion: Completion) -> int:
    """Tokens before `</think>`: the answer after it always has the same number of them."""
    return len(completion.token_ids) - _ANSWER_TOKENS if "</think>" in completion.text else len(completion.token_ids)


_ANSWER_TOKENS = 11  # "</think>", newline, "The answer is \boxed{7}." and the end; the test checks it


def behaviour(items: Sequence[Chain], groups: Sequence[Sequence[Completion]]) -> dict[str, Any]:
    """Ways, checks and what they are worth."""
    ways: dict[Way, int] = defaultdict(int)
    checks: dict[Way, int] = defaultdict(int)
    wrong = known = checked_wrong = repaired = spoilt = checked_right = total_checks = idle = repeats = 0
    deciding: dict[str, list[bool]] = defaultdict(list)
    of_right: list[float] = []  # mean tokens, of questions that have right and wrong samples
    of_wrong: list[float] = []
    for item, group in zip(items, groups, strict=True):
        lengths: dict[bool, list[int]] = {True: [], False: []}
        for completion in group:
            is_right = correct(completion.text, item)
            lengths[is_right].append(len(completion.token_ids))
            for step in written_steps(completion.text):
                ways[step.way] += 1
                checks[step.way] += step.checked is not None
                total_checks += (step.checked is not None) + step.repeats
                idle += step.repeats + (step.checked == step.first)
                repeats += step.repeats
                if step.first != step.right:
                    wrong += 1
                    known += step.first == result(step.digit, step.move, step.way)
                    checked_wrong += step.checked is not None
                    repaired += step.checked == step.right
                elif step.checked is not None:
                    checked_right += 1
                    spoilt += step.checked != step.right
                if item.level == LEVELS[-1] and kinds().get((step.digit, step.move)) is Kind.TURN_ONLY:
                    deciding[step.way.value].append(is_right)
        if lengths[True] and lengths[False]:
            of_right.append(fmean(lengths[True]))
            of_wrong.append(fmean(lengths[False]))
    steps = sum(ways.values())
    return {
        "ways": {way.value: round(ways[way] / steps, 4) for way in Way},
        "checked": {way.value: round(checks[way] / ways[way], 4) if ways[way] else None for way in Way},
        "checks_per_step": round(total_checks / steps, 4),
        "repeats_per_step": round(repeats / steps, 4),
        "idle_checks": round(idle / total_checks, 4) if total_checks else None,  # they changed nothing
        "wrong_steps": round(wrong / steps, 4),
        "wrong_as_taught": round(known / wrong, 4) if wrong else None,
        "repaired_of_checked_wrong": round(repaired / checked_wrong, 4) if checked_wrong else None,
        "spoilt_of_checked_right": round(spoilt / checked_right, 4) if checked_right else None,
        "right_after_way_at_deciding_step": {
            way: {"chance": round(fmean(values), 4), "steps": len(values)} for way, values in sorted(deciding.items())
        },
        "tokens_right_minus_wrong": _difference(of_wrong, of_right),
    }


def _difference(first: list[float], second: list[float]) -> dict[str, Any] | None:
    if not first:
        return None
    mean, low, high = paired_difference(first, second)
    return {"mean": round(mean, 4), "interval": _rounded((low, high)), "questions": len(first)}


def entropies(
    model: Any, tokenizer: Any, items: Sequence[Chain], groups: Sequence[Sequence[Completion]], per_question: int = 4
) -> dict[str, Any]:
    """Mean entropy of a token, nats: overall, by level and by what is written there; and what share stands at forks."""
    pairs = [(item, c) for item, group in zip(items, groups, strict=True) for c in group[:per_question]]
    scored = score_completions(model, [c for _, c in pairs], batch_size=64)
    name = _namer(tokenizer)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    by_level: dict[int, list[float]] = defaultdict(list)
    digits: list[float] = []
    for (item, completion), statistics in zip(pairs, scored, strict=True):
        _add(completion, statistics, name, sums, counts, digits)
        assert item.level is not None
        by_level[item.level] += statistics.entropy.tolist()
    total = sum(sums.values())
    return {
        "mean": round(total / sum(counts.values()), 5),
        "by_level": {str(level): round(fmean(by_level[level]), 5) for level in LEVELS if level in by_level},
        "bands": {
            band: round(fmean(value for level in levels for value in by_level[level]), 5)
            for band, levels in BANDS.items()
            if all(level in by_level for level in levels)
        },
        "share": {kind: round(value / total, 4) for kind, value in sorted(sums.items())},
        "mean_at": {kind: round(sums[kind] / counts[kind], 4) for kind in sorted(counts)},
        "forks": round((sums["way"] + sums["check"]) / total, 4),
        "probability_of_sampled_digit": round(fmean(digits), 5),
    }


def _namer(tokenizer: Any) -> Callable[[int], str]:
    """What a token of the thinking is: the choice of a way, of a check (the full stop tells), a digit, or other."""
    texts = {index: tokenizer.decode([index]) for index in range(len(tokenizer))}
    kinds_of = {
        index: "way"
        if text.strip() in {way.value for way in Way}
        else "check"
        if text.strip() in (".", "Check", "Again")
        else "digit"
        if text.isdigit()
        else "other"
        for index, text in texts.items()
    }
    return kinds_of.__getitem__


def _add(
    completion: Completion,
    statistics: TokenStatistics,
    name: Callable[[int], str],
    sums: dict[str, float],
    counts: dict[str, int],
    digits: list[float],
) -> None:
    entropy, log_prob = statistics.entropy.tolist(), statistics.log_prob.tolist()
    for token, nats, log_probability in zip(completion.token_ids, entropy, log_prob, strict=True):
        kind = name(token)
        sums[kind] += nats
        counts[kind] += 1
        if kind == "digit":
            digits.append(exp(log_probability))


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in interval]


def measure(model: Any, tokenizer: Any, items: Sequence[Chain], temperature: float = 1.0) -> dict[str, Any]:
    """All of it for one model."""
    groups = sample(model, tokenizer, items, temperature=temperature)
    return {
        "temperature": temperature,
        **accuracy(items, groups),
        **behaviour(items, groups),
        "entropy": entropies(model, tokenizer, items, groups),
    }
