"""reasoning-gym's verifiers as rewards, and how an answer is read out of a completion."""

from __future__ import annotations

import atexit
import copy
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.rewards.checking import after_thinking
from entropy_rft.rewards.text import content_of
from entropy_rft.rewards.timed import Budget, TimedProcess
from entropy_rft.tags import THINK_END
from entropy_rft.tasks.generators import from_text

COLUMN = "reasoning_gym"
"""The column that holds what a verifier needs, as JSON: generator, settings, level, question, answer, metadata."""

TAGGED = "Give your final answer between <answer> and </answer>."
"""The request for an answer that the rewards read, whatever its form."""

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(r"(?<![\w)])[-+]?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")
_PREFIX = re.compile(r"(?:the\s+)?(?:final\s+)?answer(?:\s+is|\s*:)\s*", re.IGNORECASE)
_REMEMBERED = 10_000


class Verifier:
    """1 for an answer that reasoning-gym's verifier scores at `threshold` or above, else 0.

    The verifier runs in a process of its own, which ends where a check takes too long: such an answer scores 0, and so
    does one at which the verifier raises an error.

    Args:
        threshold: least score of a right answer; reasoning-gym's own are from 0 to 1.
        thinking: only what follows the end of the thinking is read, and a completion without it scores 0.
    """

    __name__ = "reasoning_gym_reward"

    def __init__(self, threshold: float = 1.0, thinking: bool = True) -> None:
        self.threshold = threshold
        self.think_end_token = THINK_END if thinking else None

    def fitted(self, think_end_token: str) -> Verifier:
        """The same reward for a model that ends its thinking with `think_end_token`."""
        if self.think_end_token in (None, think_end_token):
            return self
        reward = copy.copy(self)
        reward.think_end_token = think_end_token
        return reward

    def __call__(
        self,
        completions: Sequence[Any],
        reasoning_gym: Sequence[str],
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One reward a completion; `reasoning_gym` is the column of that name."""
        budget = SCORER.start_batch()
        answers, scores = [], []
        for completion, entry in zip(completions, reasoning_gym, strict=True):
            text = content_of(completion)
            if self.think_end_token is not None:
                text = after_thinking(text, [self.think_end_token])
            answers.append(read_answer(text, from_text(entry)["answer"]))
            scores.append(SCORER.score(entry, answers[-1], budget))
        if log_extra is not None:
            log_extra("answer_read", answers)
            log_extra("score", scores)
        return [self._reward(score) for score in scores]

    def _reward(self, score: float) -> float:
        return float(score >= self.threshold)


class PartialCredit(Verifier):
    """What the verifier's score is above (or, below 0, under) the reward of :class:`Verifier`; their sum is the score.

    It stands apart, because a verifier gives a well-formed wrong answer a little, and the first reward of a task tells
    right from wrong, for `evaluate`, probes and PEAR.
    """

    __name__ = "partial_credit"

    def _reward(self, score: float) -> float:
        return score - super()._reward(score)


def read_answer(text: str, gold: str | None) -> str:
    """The answer in `text`, from which the thinking was taken off; "" where there is none.

    The last ``<answer>...</answer>`` holds it, or else the last ``\\boxed{...}``. Where there is neither, it is the
    last line that is not blank, without "Answer:" before it; but all of the text where the gold answer has several
    lines or there is none, since many answers are grids. Where the gold answer is a number, it is the last number of
    that line ("7 + 4 = 11" says 11).
    """
    if tagged := _TAGS.findall(text):
        return str(tagged[-1]).strip()
    if (boxed := _last_box(text)) is not None:
        return boxed.strip()
    text = text.strip()
    if gold is None or "\n" in gold.strip():
        return text
    last = text.rpartition("\n")[2].strip()
    if _NUMBER.fullmatch(gold.strip()) and (numbers := _NUMBER.findall(last)):
        return str(numbers[-1]).rstrip(",")
    return _PREFIX.sub("", last, count=1) if _PREFIX.match(last) else last


def _last_box(text: str) -> str | None:
    """What the last closed ``\\boxed{...}`` holds, with braces within it."""
    for start in reversed([match.end() for match in _BOX.finditer(text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


class _Scorer(TimedProcess):
    """Scores one answer at a time, and remembers: two rewards ask for the same score."""

    def __init__(self) -> None:
        super().__init__("entropy_rft.tasks.verifier_worker")
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def score(self, entry: str, answer: str, budget: Budget) -> float:
        """The verifier's score; 0 for no answer, and where the check fails or does not end."""
        if not answer:
            return 0.0
        key = hashlib.sha256(f"{entry}\0{answer}".encode(errors="surrogatepass")).digest()
        if key in self._scores:
            return self._scores[key]
        reply = self.ask(key, {"entry": entry, "answer": answer}, budget, answer)
        score = 0.0 if reply is None or "error" in reply else float(reply["value"])
        score = score if math.isfinite(score) else 0.0
        self._scores[key] = score
        while len(self._scores) > _REMEMBERED:
            self._scores.popitem(last=False)
        return score


SCORER = _Scorer()
"""This process's own."""
atexit.register(SCORER.close)
