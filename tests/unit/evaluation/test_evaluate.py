"""`evaluate_model` on completions and entropies that are known in advance."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from entropy_rft.entropy import TokenStatistics
from entropy_rft.evaluation import evaluate, evaluate_model
from entropy_rft.sampling import Completion, records

MARKER = [90, 91]


class Tokenizer:
    unk_token_id = 1

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"</think>": MARKER, "": []}.get(text, [self.unk_token_id])

    def decode(self, ids, skip_special_tokens):
        assert not skip_special_tokens
        return "</think>" if ids == MARKER else "?"

    def convert_ids_to_tokens(self, ids):
        return [f"[{token}]" for token in ids]


def reward(prompts, completions, completion_ids, solution, difficulty, **kwargs):
    """Right when the text is the solution; unscorable when it is a question mark."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(solution) == len(difficulty)
    assert not kwargs
    texts = [message["content"] for (message,) in completions]
    return [None if text == "?" else float(text == gold) for text, gold in zip(texts, solution, strict=True)]


@dataclass
class FakeTask:
    name: str = "fake"
    split: str = "test"
    dataset: list = field(
        default_factory=lambda: [
            {"prompt": [{"role": "user", "content": "a"}], "solution": "1", "difficulty": 10},
            {"prompt": [{"role": "user", "content": "b"}], "solution": "2", "difficulty": 9},
        ]
    )
    reward_funcs: list = field(default_factory=lambda: [reward])


@dataclass
class Model:
    name_or_path: str = "some/model"


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """Two questions of three completions; every token's entropy is a hundredth of its id."""
    completions = [
        [
            Completion([1], [10, 20, *MARKER, 30], "1", False),
            Completion([1], [10, *MARKER, 50, 60], "0", False),
            Completion([1], [40, 40], "?", True),
        ],
        [
            Completion([1], [10, *MARKER], "2", False),
            Completion([1], [10, *MARKER], "2", False),
            Completion([1], [80], "2", False),
        ],
    ]

    class Sampler:
        def __init__(self, *args, **kwargs):
            pass

        def sample(self, prompts, *, samples, **kwargs):
            return [completions[i % 2][:samples] for i in range(len(prompts))]

    def score(model, batch, **kwargs):
        ids = [torch.tensor(completion.token_ids, dtype=torch.float32) / 100 for completion in batch]
        return [TokenStatistics(log_prob=-x, entropy=x, expected_discriminant=x) for x in ids]

    monkeypatch.setattr(evaluate, "TransformersSampler", Sampler)
    monkeypatch.setattr(records, "score_completions", score)


def test_the_numbers_of_a_known_evaluation():
    result = evaluate_model(Model(), Tokenizer(), FakeTask(), samples=3, max_tokens=5, progress=False)
    assert (result.model, result.task, result.split) == ("some/model", "fake", "test")
    assert (result.questions, result.samples, result.unscorable) == (2, 3, 1)
    assert result.avg_at_k == pytest.approx((1 / 2 + 3 / 3) / 2)
    low, high = result.avg_interval
    assert 0.5 <= low < result.avg_at_k < high <= 1.0
    # k = 3 rests on the second question alone, since the first has two scorable samples
    assert result.pass_at_k == pytest.approx({1: 0.75, 2: 1.0, 3: 1.0})
    assert result.tokens == pytest.approx((5 + 5 + 2 + 3 + 3 + 1) / 6)
    assert result.thinking_tokens == pytest.approx((2 + 1 + 2 + 1 + 1 + 1) / 6)
    assert result.answer_tokens == pytest.approx((1 + 2) / 6)
    assert result.truncated == pytest.approx(1 / 6)
    assert result.marker_missing == pytest.approx(2 / 6)
    assert result.entropy_thinking == pytest.approx((0.1 + 0.2 + 0.1 + 0.4 + 0.4 + 0.1 + 0.1 + 0.8) / 8)
    assert result.entropy_answer == pytest.approx((0.3 + 0.5 + 0.6) / 3)
    assert result.entropy == pytest.approx((2.2 + 1.4 + 4 * 1.81) / 19)
    # Of the second question's right answers that of one token has 0.8 nats, those of three have 0.1.
    assert result.pear_prefers_shorter == 0.0
    assert result.question_means == [0.5, 1.0]
    assert result.settings["max_tokens"] == 5
    assert result.seconds > 0


def test_the_digest_names_the_questions():
    def digest(**changes):
        task = FakeTask()
        task.dataset[1].update(changes)
        return evaluate_model(Model(), Tokenizer(), task, samples=3, progress=False).questions_digest

    assert digest() == digest(difficulty=3)
    assert len({digest(), digest(solution="3"), digest(prompt=[{"role": "user", "content": "c"}])}) == 3


def test_difficulties_are_in_numeric_order_with_their_own_scores():
    result = evaluate_model(Model(), Tokenizer(), FakeTask(), samples=3, progress=False)
    assert list(result.by_difficulty) == ["9", "10"]
    assert result.by_difficulty["9"].avg_at_k == 1.0
    assert result.by_difficulty["9"].entropy_answer is None
    assert result.by_difficulty["10"].unscorable == 1
    assert result.by_difficulty["10"].questions == 1


def test_a_level_column_is_a_difficulty_too():
    task = FakeTask(reward_funcs=[lambda completions, **kwargs: [1.0] * len(completions)])
    for row in task.dataset:
        row["level"] = row.pop("difficulty") % 2
    result = evaluate_model(Model(), Tokenizer(), task, samples=1, progress=False)
    assert list(result.by_difficulty) == ["0", "1"]


def test_without_a_difficulty_column_there_is_no_breakdown():
    task = FakeTask(dataset=[{"prompt": "a", "solution": "1"}], reward_funcs=[lambda completions, **_: [1.0]])
    assert evaluate_model(Model(), Tokenizer(), task, samples=1, progress=False).by_difficulty == {}


def test_plain_text_prompts_get_plain_text_completions():
    seen = {}
    task = FakeTask(dataset=[{"prompt": "a", "solution": "1"}], reward_funcs=[lambda **kw: seen.update(kw) or [0.5]])
    result = evaluate_model(Model(), Tokenizer(), task, samples=1, progress=False)
    assert result.avg_at_k == 1.0
    assert seen == {
        "prompts": ["a"],
        "completions": ["1"],
        "completion_ids": [[10, 20, *MARKER, 30]],
        "solution": ["1"],
    }


def test_nothing_scorable():
    task = FakeTask(reward_funcs=[lambda completions, **_: [None] * (len(completions) - 1) + [float("nan")]])
    result = evaluate_model(Model(), Tokenizer(), task, samples=3, progress=False)
    assert result.unscorable == 6
    assert result.avg_at_k is None
    assert result.avg_interval is None
    assert result.pass_at_k == {}
    assert result.tokens > 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (FakeTask(dataset=[]), "no questions"),
        (FakeTask(dataset=[{"question": "a"}]), "no column 'prompt', only question"),
        (FakeTask(reward_funcs=[]), "no reward_funcs"),
        (FakeTask(reward_funcs=[lambda **_: [1.0]]), "must return a list of 6 numbers or None, .* got 1"),
    ],
)
def test_tasks_that_cannot_be_evaluated(task, message):
    with pytest.raises(ValueError, match=message):
        evaluate_model(Model(), Tokenizer(), task, samples=3, progress=False)


def test_a_tokenizer_without_the_marker_makes_everything_thinking():
    result = evaluate_model(Model(), Tokenizer(), FakeTask(), samples=3, think_end_token="<unknown>", progress=False)
    assert result.marker_missing == 1.0
    assert result.thinking_tokens == result.tokens
    assert result.entropy_thinking == result.entropy
    assert result.entropy_answer is None


def test_an_empty_marker_is_a_mistake():
    with pytest.raises(ValueError, match="think_end_token"):
        evaluate_model(Model(), Tokenizer(), FakeTask(), samples=3, think_end_token="", progress=False)
