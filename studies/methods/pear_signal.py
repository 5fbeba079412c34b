"""What PEAR's penalty says about the length of the thinking, before any training.

PEAR rewards, of the right answers to a question, those with the smaller penalty. So it shortens the thinking only as
far as the penalty grows with the thinking's length *among the right answers to one question*: that is measured here.
The penalty is a difference of means per token. A longer text that goes through the same forks has the same sum of
entropies on more tokens, so a smaller mean; the sum stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.pear import pear_penalty
from studies.methods.answers import Answers, marker_of, questions_of, sample_answers
from studies.methods.compare import Estimate, Quantity, estimate
from studies.methods.plan import Plan

SUM = "sum of the thinking's entropy"
_NEARLY_ONE = 1 - 1e-9
PER_TOKENS = 10  # a slope is the change of the penalty over so many tokens of thinking
_PEAR = "pear"


@dataclass(frozen=True)
class Answer:
    """A right answer: tokens of its thinking, the mean entropy of either phase, nats per token."""

    thinking: int
    h_think: float
    h_answer: float


def penalty_of(answer: Answer, alpha: float) -> float:
    """PEAR's penalty, nats."""
    return pear_penalty(answer.h_think, answer.h_answer, alpha)


def alphas_of(plan: Plan) -> list[float]:
    """The α that the plan's PEAR is trained with, or searched among.

    Raises:
        ValueError: the plan has no PEAR.
    """
    if _PEAR not in plan.methods:
        raise UserValueError(f"study {plan.name!r} has no method {_PEAR!r}, so its penalty cannot be measured")
    method = plan.methods[_PEAR]
    found = [float({**method.fields, **trial}.get("pear_alpha", 1.0)) for trial in (method.trials or [{}])]
    return sorted(set(found))


def within(questions: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """How x and y vary together within a question, over all questions with at least two pairs.

    Args:
        questions: the pairs (x, y) of each.

    Returns:
        ``correlation`` and ``slope`` (of y over x, in units of y for one of x), each an `Estimate` over questions as a
        dict; None where x or y does not vary, or only one question has two pairs. ``spread_x`` and ``spread_y``, the
        standard deviations within a question, in the units of x and y.
    """
    sums, free = [], 0
    for pairs in questions:
        if len(pairs) > 1:
            x, y = (np.asarray(column) - np.mean(column) for column in zip(*pairs, strict=True))
            sums.append((x @ y, x @ x, y @ y))
            free += len(pairs) - 1
    xy, xx, yy = np.asarray(sums).T if sums else np.zeros((3, 1))
    spreads = {name: float(np.sqrt(s.sum() / max(1, free))) for name, s in (("spread_x", xx), ("spread_y", yy))}
    if len(sums) < 2 or not xx.sum() or not yy.sum():
        return {"correlation": None, "slope": None, **spreads}

    def over(values: np.ndarray) -> Quantity:
        return Quantity(values[None], np.ones((1, len(values))))

    def fisher(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        # So that the interval stays between -1 and 1; a draw of questions with a perfect correlation stays finite.
        return np.arctanh(np.clip(a / np.sqrt(b * c), -_NEARLY_ONE, _NEARLY_ONE))

    z = estimate([over(xy), over(xx), over(yy)], fisher)
    correlation = Estimate(*(float(np.tanh(value)) for value in (z.value, z.low, z.high)))
    slope = estimate([over(xy), over(xx)], lambda a, b: a / b)
    return {"correlation": asdict(correlation), "slope": asdict(slope), **spreads}


def right_answers(answers: Answers, model: Any, marker: Any, temperature: float) -> list[list[Answer]]:
    """Of each question those that are right and have ended their thinking, with the entropies at that temperature."""
    from entropy_rft.sampling.records import record_completions
    from studies.methods.worker import SCORED_AT_ONCE

    records = iter(record_completions(model, answers.flat, marker, SCORED_AT_ONCE, False, temperature))
    found = []
    for right in answers.right:
        own = [(next(records), verdict) for verdict in right]
        found.append([
            Answer(record.thinking_tokens, *record.phase_entropies)
            for record, verdict in own
            if verdict and record.marker
        ])  # fmt: skip
    return found


def measure_signal(questions: Sequence[Sequence[Answer]], alphas: Sequence[float]) -> dict[str, Any]:
    """Plain JSON values of one model, in tokens and nats.

    For each α what `within` gives of the thinking's tokens and the penalty, and the same of the thinking's tokens and
    the sum of their entropies.
    """
    flat = [answer for own in questions for answer in own]
    if not flat:
        return {"right": 0}
    signals = {
        f"{alpha:g}": within([[(a.thinking, penalty_of(a, alpha)) for a in own] for own in questions])
        for alpha in alphas
    }
    return {
        "right": len(flat),
        "questions": sum(len(own) > 1 for own in questions),
        "thinking": float(np.mean([a.thinking for a in flat])),
        "penalty": {f"{alpha:g}": float(np.mean([penalty_of(a, alpha) for a in flat])) for alpha in alphas},
        "signals": signals,
        SUM: within([[(a.thinking, a.h_think * a.thinking) for a in own] for own in questions]),
    }


def study_models(models: Mapping[str, str], plan: Plan, device: str = "cpu", log: Any = print) -> dict[str, Any]:
    """Plain JSON values: the signal of each model (see `measure_signal`) on the plan's validation questions.

    Args:
        models: what each is called, and its directory or name.
        plan: has the task, the questions, the marker and PEAR's α.
        log: called with each line of progress.
    """
    from entropy_rft.sampling import load_model_and_tokenizer

    asked = plan.validation
    task = questions_of(plan.fields, asked)
    alphas = alphas_of(plan)
    found = {}
    for name, source in models.items():
        log(f"{name}: {source}")
        model, tokenizer = load_model_and_tokenizer(source, device=device)
        marker = marker_of(plan.fields, tokenizer)
        answers = sample_answers(model, tokenizer, task, marker, **asked.sampling(), progress=True)
        right = right_answers(answers, model, marker, asked.temperature)
        found[name] = {"source": Path(source).name, **measure_signal(right, alphas)}
    return {"study": plan.name, "measurement": asked.to_dict(), "alphas": alphas, "models": found}


def markdown(result: Mapping[str, Any]) -> str:
    """One row for each model and α."""
    asked = result["measurement"]
    columns = (
        "model", "right answers", "questions", "thinking, tokens", "within a question, ±", "α", "penalty, nats",
        "within a question, ±", "correlation with the thinking's length", f"slope, nats for {PER_TOKENS} tokens",
    )  # fmt: skip
    lines = [
        f"Right answers to {asked['questions']} {asked['split']} questions of the study `{result['study']}` × "
        f"{asked['samples']} samples at temperature {asked['temperature']:g}, which the entropies have too. Penalty "
        "and thinking are compared within each question that has two right answers. Brackets: 95 % interval over "
        "questions.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in result["models"].items():
        if not found["right"]:
            lines.append(f"| {name} | 0 |{' |' * 8}")
            continue
        for index, (alpha, signal) in enumerate(found["signals"].items()):
            first = [
                name,
                str(found["right"]),
                str(found["questions"]),
                f"{found['thinking']:.1f}",
                f"{signal['spread_x']:.1f}",
            ]
            cells = first if not index else [""] * len(first)
            cells += [alpha, f"{found['penalty'][alpha]:.3f}", f"{signal['spread_y']:.3f}", *_cells(signal, 3)]
            lines.append(f"| {' | '.join(cells)} |")
        total = found[SUM]
        cells = ["", "", "", "", "", SUM, "", f"{total['spread_y']:.2f}", *_cells(total, 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(signal: Mapping[str, Any], digits: int) -> list[str]:
    if signal["correlation"] is None:
        return ["–", "–"]
    correlation, slope = (Estimate(**signal[name]) for name in ("correlation", "slope"))
    return [_text(correlation, 1, 2), _text(slope, PER_TOKENS, digits + 1)]


def _text(found: Estimate, scale: float, digits: int) -> str:
    value, low, high = (scale * v for v in (found.value, found.low, found.high))
    return f"{value:+.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def write_signal(result: Mapping[str, Any], path: Path) -> str:
    """The table of a result into a file; returns it."""
    from entropy_rft.atomic import write_text

    text = markdown(result)
    write_text(path, text)
    return text
