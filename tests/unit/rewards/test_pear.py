from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from trl.rewards import accuracy_reward, think_format_reward

from entropy_rft import PEARReward
from entropy_rft.rewards import build_rewards
from entropy_rft.rewards.pear import shorter_preferred


def right(completions: list, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def given(completions: list, values: list, **kwargs: Any) -> list[float | None]:
    return values


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("phases", [(0.0, 0.0), (0.3, 0.1), (0.1, 0.3), (2.0, 0.25), (0.0, 1.5)])
def test_the_published_formula(alpha: float, phases: tuple[float, float]) -> None:
    h_think, h_answer = phases
    penalty = max(0.0, h_think - alpha * h_answer)
    reward = PEARReward(given, alpha=alpha)
    assert reward(["a", "b"], [phases, phases], values=[1.0, 0.0]) == [min(1.0, 1.0 - penalty), 0.0]


def test_score_format_score_and_floor() -> None:
    reward = PEARReward(given, score=1.2, format_score=-0.5, floor=0.1)
    phases = [(0.1, 0.0), (0.5, 0.0), (3.0, 0.0), (3.0, 0.0)]
    assert reward(["x"] * 4, phases, values=[1.0, 1.0, 0.25, -1.0]) == [1.0, pytest.approx(0.7), 0.1, -0.5]
    assert PEARReward(given)(["x"], [(3.0, 0.0)], values=[1.0]) == [-2.0]  # as published: below a wrong answer


def test_none_stays_none_and_nan_is_not_a_free_pass() -> None:
    rewards = PEARReward(given, floor=0.1)(["x"] * 3, [(0.5, 0), (math.nan, 0), (0, 0)], values=[None, 1.0, 1.0])
    assert rewards[0] is None
    assert math.isnan(rewards[1])
    assert rewards[2] == 1.0


@pytest.mark.parametrize("chat", [True, False])
def test_conversational_and_plain_completions_reach_the_correctness_reward_untouched(chat: bool) -> None:
    completion: Any = [{"role": "assistant", "content": "3"}] if chat else "3"
    seen = []

    def correctness(completions: list, solution: list, **kwargs: Any) -> list[float]:
        seen.append((completions, solution, kwargs["prompts"]))
        return [1.0]

    assert PEARReward(correctness)(completions=[completion], phase_entropies=[(0.25, 0)], solution=["3"], prompts=["?"])
    assert seen == [([completion], ["3"], ["?"])]


def test_with_trls_accuracy_reward() -> None:
    def chat(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rewards = PEARReward(accuracy_reward)(
        completions=[chat(r"<think>x</think>\boxed{3}"), chat(r"\boxed{4}"), chat(r"\boxed{3}")],
        solution=["3", "3", "no number here"],
        phase_entropies=[(0.5, 0.25), (0.5, 0.25), (0.5, 0.25)],
    )
    assert rewards == [0.75, 0.0, None]


def test_logs_one_penalty_per_scored_completion() -> None:
    logged: list = []
    PEARReward(given)(
        ["x"] * 3,
        [(0.5, 0), (0.25, 0), (1, 0)],
        log_metric=lambda *entry: logged.append(entry),
        values=[1.0, 0.0, None],
    )
    assert [entry for entry in logged if entry[0] == "pear/penalty"] == [("pear/penalty", 0.5), ("pear/penalty", 0.25)]


def test_logs_which_correct_completions_score_below_a_wrong_one() -> None:
    for floor, expected in ((None, [0.0, 1.0]), (0.1, [0.0, 0.0])):
        logged: list = []
        PEARReward(given, floor=floor)(
            ["x"] * 4,
            [(0.5, 0), (1.5, 0), (2, 0), (1, 0)],
            log_metric=lambda *entry: logged.append(entry),  # noqa: B023
            values=[1.0, 1.0, 0.0, None],
        )
        assert [value for name, value in logged if name == "pear/below_wrong"] == expected


def test_how_often_the_shorter_of_two_correct_answers_is_preferred() -> None:
    rng = np.random.default_rng(0)
    prompts = [[{"role": "user", "content": str(q)}] for q in range(6) for _ in range(8)]
    correct = [float(x) if x < 2 else None for x in rng.integers(0, 3, size=48)]
    lengths = [int(n) for n in rng.integers(10, 14, size=48)]
    drawn = rng.integers(1, 4, size=48).astype(float)
    rewards = [None if c is None else float(x) if c else 0.0 for c, x in zip(correct, drawn, strict=True)]
    rewards[0], correct[0] = math.nan, 1.0  # counts in no pair
    expected = []
    for q in range(6):
        counted = []
        for i in range(8 * q, 8 * q + 8):
            for j in range(8 * q, 8 * q + 8):
                known = i > 0 < j and correct[i] and correct[j]
                if known and lengths[i] < lengths[j] and rewards[i] != rewards[j]:
                    counted.append(rewards[i] > rewards[j])
        if counted:
            expected.append(np.mean(counted))
    assert len(expected) > 2
    assert shorter_preferred(prompts, correct, rewards, lengths) == pytest.approx(expected)


def test_the_same_uncertain_tokens_on_more_tokens_are_preferred() -> None:
    logged: list = []
    PEARReward(given)(
        ["x"] * 5,
        [(1.0 / 10, 0), (1.0 / 20, 0), (1.0 / 40, 0), (0.5, 0), (0.1, 0)],
        log_metric=lambda *entry: logged.append(entry),
        values=[1.0, 1.0, 1.0, 0.0, 1.0],
        # Arrays do not compare; the second question has a single correct answer, so no pair.
        prompts=[*[np.zeros(2)] * 4, np.ones(2)],
        completion_ids=[[1] * n for n in (10, 20, 40, 30, 10)],
    )
    assert [value for name, value in logged if name == "pear/prefers_shorter"] == [0.0]


def test_without_phase_entropies_it_names_the_trainer() -> None:
    with pytest.raises(ValueError, match="EntropyGRPOTrainer"):
        PEARReward(right)(completions=["x"])


def test_pickles_and_has_a_name() -> None:
    reward = pickle.loads(pickle.dumps(PEARReward(think_format_reward, alpha=0.5, floor=0.1)))
    assert (reward.alpha, reward.floor, reward.__name__) == (0.5, 0.1, "pear_reward")
    assert repr(reward) == "PEARReward(think_format_reward, alpha=0.5, score=1.0, format_score=0.0, floor=0.1)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"correctness": "accuracy"}, TypeError, "correctness must be a TRL reward function, got 'accuracy'"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
        ({"score": math.inf}, ValueError, "score must be finite, got inf"),
        ({"format_score": None}, TypeError, "format_score must be a number, got None"),
        ({"floor": 1.5}, ValueError, r"floor must not be above the best reward min\(1, score\) = 1\.0, got 1\.5"),
    ],
)
def test_bad_arguments_are_named_at_construction(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PEARReward(**({"correctness": right} | arguments))


def test_asynchronous_correctness_is_refused() -> None:
    async def later(completions: list, **kwargs: Any) -> list[float]:
        return [1.0]

    with pytest.raises(TypeError, match="synchronous"):
        PEARReward(later)


class TestNames:
    def test_known_names(self) -> None:
        rewards = build_rewards(["pear", "think_format", "task"], [right], {"alpha": 2.0})
        assert isinstance(rewards[0], PEARReward)
        assert rewards[0].correctness is right
        assert rewards[0].alpha == 2.0
        assert rewards[1:] == [think_format_reward, right]

    def test_ones_own(self) -> None:
        assert build_rewards(["trl.rewards:accuracy_reward"], [right]) == [accuracy_reward]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["pearl"], "there is no reward 'pearl'; did you mean pear"),
            (["no_such_module:f"], "cannot be imported"),
            (["trl.rewards:nothing"], "cannot be imported"),
            (["math:pi"], "not callable"),
            ([], "rewards is empty"),
        ],
    )
    def test_unknown_names(self, names: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_rewards(names, [right])
