"""Every reward that a recipe can name: ours, all of TRL's, and one's own, each with its arguments."""

from __future__ import annotations

import asyncio
import pickle
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trl import rewards as trl_rewards
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, think_format_reward

from entropy_rft import PEARReward
from entropy_rft.rewards import Accuracy, build_rewards, reward_names
from entropy_rft.rewards.catalogue import OURS, catalogue
from entropy_rft.rewards.fitting import fitted
from entropy_rft.rewards.parameters import parameters_of
from entropy_rft.rewards.values import reward_name

# What each reward of TRL's that cannot do without is given here. A reward that is new in TRL and needs arguments
# belongs in this list; one that needs none is tried as it is.
NEEDED: dict[str, dict[str, Any]] = {
    "cosine_scaled": {"max_len": 4},
    "soft_overlong_punishment": {"max_completion_len": 4, "soft_punish_cache": 2},
}
TRLS = sorted(set(trl_rewards.__all__) - {module.name for module in pkgutil.iter_modules(trl_rewards.__path__)})

OWN = """
def reward(completions, scale: float = 1.0, level=None, **kwargs):
    return [scale * (level if isinstance(level, int) else 1)] * len(completions)

async def later(completions, scale=1.0, **kwargs):
    return [scale] * len(completions)

def closed(completions, scale: int = 1, prompts=None, completion_ids=None, trainer_state=None):
    return [float(scale)] * len(completions)

def entropies(completions, phase_entropies, scale=1.0, **kwargs):
    return [scale * thinking for thinking, _ in phase_entropies]

class Reward:
    def __init__(self, scale: float, words: "list[str] | None" = None):
        self.scale, self.words = scale, words

    def __call__(self, completions, **kwargs):
        return [self.scale] * len(completions)

class Halved:
    def __init__(self, correctness):
        self.correctness = correctness

    def __call__(self, completions, **kwargs):
        return [value / 2 for value in self.correctness(completions=completions, **kwargs)]

def factory(scale=1.0):
    if scale < 0:
        raise RuntimeError("scale\\nbelow 0")
    return Reward(scale)

def number(scale=1.0):
    return scale
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own, `own_rewards`."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


def right(completions: list, **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def build(*wanted: Any, **pear: Any) -> list[Callable[..., Any]]:
    return build_rewards(list(wanted), [right], pear)


def called(reward: Any, *texts: str, **columns: Any) -> list[Any]:
    """As the trainer calls it, on completions of three tokens."""
    return reward(
        prompts=["?"] * len(texts),
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[1, 2, 1]] * len(texts),
        trainer_state=None,
        **columns,
    )


@pytest.mark.parametrize("function", TRLS)
def test_every_reward_of_trl_has_a_name(function: str) -> None:
    (name,) = [name for name, path in catalogue().items() if path == f"trl.rewards:{function}"]
    assert name in reward_names()
    assert function.endswith(name) or function.endswith(f"{name}_reward")
    (reward,) = build({"name": name, **NEEDED.get(name, {})})
    assert pickle.loads(pickle.dumps(reward)).__name__ == reward.__name__ == reward_name(reward)
    reward = fitted(reward, "</think>")
    values = called(reward, r"<think>x</think>\boxed{7}", "?", solution=["7", "7"])
    assert len(values) == 2
    assert all(isinstance(value, float) for value in values)
    assert values[0] >= values[1]
    assert pickle.loads(pickle.dumps(reward)).__name__ == reward.__name__


def test_names_are_listed_once_and_ours_exist() -> None:
    names = reward_names()
    assert len(names) == len(set(names)) == 1 + len(catalogue())
    assert names[: 1 + len(OURS)] == ("task", *OURS)
    assert build("pear", {"name": "task"})[1] is right


def test_arguments_reach_trls_factories() -> None:
    (cosine,) = build({"name": "cosine_scaled", "max_len": "100", "max_value_correct": "2e0"})
    same = get_cosine_scaled_reward(max_len=100, max_value_correct=2.0)
    assert type(cosine) is type(same)
    assert vars(cosine) == vars(same)
    (accuracy,) = build({"name": "reasoning_accuracy", "reasoning_delimiters": ["####"]})
    for reward in (accuracy, fitted(accuracy, "</think>")):
        assert called(reward, r"#### \boxed{7}", r"</think> \boxed{7}", solution=["7", "7"]) == [1.0, 0.0]
        assert reward.__name__ == "reasoning_accuracy_reward"


def test_a_further_reward_is_a_file_and_an_entry(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OURS, "scaled", f"{own}:Reward")
    monkeypatch.setitem(OURS, "halved", f"{own}:Halved")
    assert {"scaled", "halved"} < set(reward_names())
    scaled = {"name": "scaled", "scale": 2}
    for reward, value in zip(
        build(scaled, {"name": "halved", "correctness": scaled}, "halved"), (2, 1, 0.5), strict=True
    ):
        assert called(reward, "a") == [value]
    with pytest.raises(ValueError, match=r"rewards: scaled needs scale: write {name: scaled, scale: \.\.\.}"):
        build("scaled")


@pytest.mark.parametrize("correctness", ["own_rewards:reward", {"path": "own_rewards:Reward", "scale": 2}, "accuracy"])
def test_pear_wraps_any(own: str, correctness: Any) -> None:
    (pear,) = build({"name": "pear", "correctness": correctness, "alpha": 0.5})
    assert isinstance(pear, PEARReward)
    assert called(pear, r"\boxed{7}", solution=["7"], phase_entropies=[(0.5, 0.5)]) == [0.75]
    assert pear.__name__ == "pear_reward"


def test_pear_around_a_cosine_reward() -> None:
    cosine = {"name": "cosine_scaled", "max_len": 10}
    (pear,) = build({"name": "pear", "correctness": cosine, "format_score": -0.5, "floor": 0.1})
    texts = (r"\boxed{7}", r"\boxed{8}", r"\boxed{7^1}", r"\boxed{7}")
    columns = {"solution": ["7", "7", "7", ""], "phase_entropies": [(0.5, 0.25), (0.5, 0.25), (3.0, 0.0), (0.0, 0.0)]}
    for reward in (pear, fitted(pear, "</think>"), pickle.loads(pickle.dumps(fitted(pear, "</think>")))):
        assert called(reward, *texts, **columns) == [0.75, -0.5, 0.1, None]


def test_pear_hands_the_entropies_to_a_reward_that_names_them(own: str) -> None:
    (pear,) = build({"name": "pear", "correctness": f"{own}:entropies"})
    assert called(pear, "a", "b", phase_entropies=[(0.5, 0.0), (0.0, 0.0)]) == [0.5, 0.0]


def test_the_entrys_own_arguments_win_over_the_fields() -> None:
    fields = {"alpha": 2.0, "floor": 0.1}
    plain, given = build("pear", {"name": "pear", "alpha": 0.5}, **fields)
    assert (plain.alpha, plain.floor, plain.correctness) == (2.0, 0.1, right)  # type: ignore[attr-defined]
    assert (given.alpha, given.floor, given.correctness) == (0.5, 0.1, right)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^pear_floor must not be above the best reward"):
        build("pear", floor=3.0)
    with pytest.raises(ValueError, match=r"^rewards: pear: floor must not be above the best reward"):
        build({"name": "pear", "floor": 3.0}, floor=0.1)


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ("own_rewards:reward", 1.0),
        ({"path": "own_rewards:reward", "scale": "1e-1"}, 0.1),
        ({"path": "own_rewards:closed", "scale": 3.0}, 3.0),
        ({"path": "own_rewards:Reward", "scale": 4}, 4.0),
        ("own_rewards:factory", 1.0),
        ({"path": "own_rewards:factory", "scale": 5}, 5),
        ({"path": "own_rewards:reward", "anything": 3}, 1.0),  # it takes any keyword
    ],
)
def test_ones_own_with_arguments(own: str, wanted: Any, value: float) -> None:
    (reward,) = build(wanted)
    for one in (reward, pickle.loads(pickle.dumps(reward))):
        assert called(one, "a", "b") == [value, value]


def test_an_argument_wins_over_a_column_and_the_signature_stays(own: str) -> None:
    reward, entropies = build({"path": f"{own}:reward", "level": 3}, {"path": f"{own}:entropies", "scale": 2.0})
    assert called(reward, "a", level=["easy"]) == [3.0]
    assert "phase_entropies" in parameters_of(entropies)
    assert called(entropies, "a", phase_entropies=[(0.5, 0.0)]) == [1.0]


def test_an_async_reward_stays_one(own: str) -> None:
    from trl.trainer.utils import is_async_callable

    (later,) = build({"path": f"{own}:later", "scale": 2.0})
    assert is_async_callable(later)
    assert asyncio.run(called(later, "a")) == [2.0]  # type: ignore[arg-type]
    assert not is_async_callable(build({"path": f"{own}:reward", "scale": 2.0})[0])


def test_two_of_one_name_are_told_apart() -> None:
    made = build(
        {"name": "repetition_penalty"}, {"name": "repetition_penalty", "ngram_size": 2}, "pear", {"name": "pear"},
        {"name": "cosine_scaled", "max_len": 10}, {"name": "cosine_scaled", "max_len": 20}, "accuracy", "task",
    )  # fmt: skip
    names = ["repetition_penalty_reward", "repetition_penalty_reward_2", "pear_reward", "pear_reward_2"]
    names += ["cosine_scaled_reward", "cosine_scaled_reward_2", "accuracy_reward", "right"]
    assert [reward_name(reward) for reward in made] == names
    made = [fitted(reward, "</think>") for reward in made]
    assert [reward_name(reward) for reward in made] == names
    assert [called(made[i], r"\boxed{7}", solution=["7"])[0] < 1 for i in (4, 5)] == [True, True]


def test_plain_functions_of_trl_are_trls_own() -> None:
    assert build("accuracy", {"name": "think_format"}, "trl.rewards:accuracy_reward") == [
        *(accuracy_reward, think_format_reward, accuracy_reward),
    ]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cosine", "there is no reward 'cosine'; did you mean cosine_scaled?"),
        ("accuracy_reward", "there is no reward 'accuracy_reward'; did you mean accuracy?"),
        ("cosine_scaled", r"cosine_scaled needs max_len: write {name: cosine_scaled, max_len: \.\.\.}"),
        (
            {"name": "cosine_scaled", "min_len": 1},
            r"cosine_scaled has no argument 'min_len'; did you mean max_len\? \(its arguments: max_len, min_value",
        ),
        ({"name": "cosine_scaled", "max_len": "many"}, "cosine_scaled: max_len must be a whole number, got 'many'"),
        ({"name": "cosine_scaled", "max_len": 1.5}, "cosine_scaled: max_len must be a whole number, got 1.5"),
        ({"name": "cosine_scaled", "max_len": True}, "cosine_scaled: max_len must be a whole number, got True"),
        ({"name": "cosine_scaled", "max_len": None}, "cosine_scaled: max_len must be a whole number, got None"),
        ({"name": "cosine_scaled", "max_len": 0}, "cosine_scaled: max_len must be at least 1, got 0"),
        ({"name": "repetition_penalty", "ngram_size": 0}, "repetition_penalty: ngram_size must be at least 1, got 0"),
        (
            {"name": "repetition_penalty", "max_penalty": 1},
            "repetition_penalty cannot be made with max_penalty 1.0: ValueError: max_penalty 1.0 should not be "
            "positive",
        ),
        (
            {"name": "reasoning_accuracy", "reasoning_delimiters": "####"},
            "reasoning_accuracy: reasoning_delimiters must be a list, got '####'",
        ),
        (
            {"name": "reasoning_accuracy", "reasoning_delimiters": ["####", 4]},
            r"reasoning_delimiters\[1\] must be a text, got 4",
        ),
        ({"name": "accuracy", "solution": "7"}, r"accuracy has no argument 'solution' \(it has none\)"),
        ({"name": "accuracy", "completions": "7"}, "accuracy gets completions from the trainer: leave it out"),
        ({"name": "task", "alpha": 1}, "task has no argument 'alpha'"),
        ({"name": "pear", "alfa": 1}, "pear has no argument 'alfa'; did you mean alpha?"),
        ({"name": "pear", "alpha": "much"}, "pear: alpha must be a number, got 'much'"),
        ({"name": "pear", "correctness": 1}, "rewards: 1 is no reward"),
        ({"name": "pear", "correctness": "acuracy"}, "there is no reward 'acuracy'; did you mean accuracy?"),
        (
            {"name": "pear", "correctness": {"name": "cosine_scaled", "max_length": 3}},
            "cosine_scaled has no argument 'max_length'; did you mean max_len?",
        ),
        ({"name": "pear", "correctness": "own_rewards:later"}, "pear: correctness must be a synchronous reward"),
        ({"path": "own_rewards:reward", "scaled": 2}, "own_rewards:reward has no argument 'scaled'; did you mean sca"),
        ({"path": "own_rewards:closed", "other": 2}, r"no argument 'other' \(its arguments: scale\)"),
        ({"path": "own_rewards:reward", "scale": "x"}, "own_rewards:reward: scale must be a number, got 'x'"),
        ({"path": "own_rewards:Reward", "scale": 1, "words": [1]}, r"words\[0\] must be a text, got 1"),
        ("own_rewards:Reward", r"needs scale: write {path: own_rewards:Reward, scale: \.\.\.}"),
        (
            {"path": "own_rewards:factory", "scale": -1},
            "own_rewards:factory cannot be made with scale -1: RuntimeError: scale below 0",
        ),
        ("own_rewards:number", "own_rewards:number makes 1.0, which is not callable"),
        ("own_rewards:nothing", "'own_rewards:nothing' cannot be imported: module 'own_rewards' has no attribute"),
        ("own_broken:reward", "'own_broken:reward' cannot be imported: division by zero"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_field(own: str, tmp_path: Path, wanted: Any, message: str) -> None:
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    with pytest.raises((ValueError, TypeError), match=message) as error:
        build(wanted)
    assert str(error.value).startswith("rewards: ")
    assert "\n" not in str(error.value)


def test_a_task_without_rewards_leaves_pear_nothing() -> None:
    with pytest.raises(ValueError, match="rewards: pear has nothing to wrap: the task has no reward of its own"):
        build_rewards(["pear"], [])


def test_two_functions_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, value in (("length_rewards_a", 1.0), ("length_rewards_b", 2.0)):
        body = f"def accuracy_reward(completions, **kwargs):\n    return [{value}] * len(completions)\n"
        (tmp_path / f"{module}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = build("length_rewards_a:accuracy_reward", "length_rewards_b:accuracy_reward", "accuracy")
    assert [reward_name(reward) for reward in made] == ["accuracy_reward", "accuracy_reward_2", "accuracy_reward_3"]
    assert [called(reward, "x") for reward in made[:2]] == [[1.0], [2.0]]
    assert isinstance(fitted(made[2], "</think>"), Accuracy)  # TRL's, with its limit on the time
    assert reward_name(fitted(made[2], "</think>")) == "accuracy_reward_3"
