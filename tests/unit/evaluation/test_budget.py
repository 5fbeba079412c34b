"""With the model in the package the token budget binds: what a strategy saves on hard questions costs right answers."""

from __future__ import annotations

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer, verdicts
from entropy_rft.tasks import load_task

BUDGET = 128  # few completions need more


@pytest.fixture(scope="module")
def accuracy():
    """How often the embedded model is right about questions of a level, with a strategy under a limit in tokens."""
    sampler = TransformersSampler(*load_model_and_tokenizer(DEFAULT_MODEL, device="cpu"))

    def of(level, difficulty, limit):
        task = load_task(DEFAULT_TASK, split="validation", limit=48, levels=[level])
        rows, strategy = [dict(row) for row in task.dataset], DEFAULT_STRATEGIES[difficulty]
        prompts = [strategy.prompt(row["prompt"]) for row in rows]
        groups = sampler.sample(prompts, temperature=strategy.temperature, max_tokens=limit, progress=False)
        return sum(right for (right,) in verdicts(task.reward_funcs[0], rows, groups)) / len(rows)

    return of


def test_too_few_tokens_cost_accuracy_on_hard_questions(accuracy):
    small = DEFAULT_STRATEGIES[Difficulty.EASY].max_tokens(BUDGET)
    whole = accuracy(5, Difficulty.NORMAL, BUDGET)
    assert whole > 0.35
    # The same random numbers: what differs are the answers that were cut off.
    assert accuracy(5, Difficulty.NORMAL, small) < whole - 0.1


def test_the_small_budget_is_enough_for_easy_questions(accuracy):
    small = DEFAULT_STRATEGIES[Difficulty.EASY].max_tokens(BUDGET)
    assert accuracy(1, Difficulty.EASY, small) > 0.9
