"""TRL's rewards, fitted to a model's own tags, and with checks that come to an end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from entropy_rft import PEARReward
from entropy_rft.rewards import Accuracy, checking, checking_worker, timed
from entropy_rft.rewards.checking import CHECKER, is_harmless
from entropy_rft.rewards.fitting import fitted
from entropy_rft.rewards.parameters import parameters_of

TOWER = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timed, "SECONDS", 0.5)
    yield
    CHECKER.close()


@pytest.mark.parametrize("reward", [accuracy_reward, reasoning_accuracy_reward])
def test_values_and_logged_columns_are_trls(reward: Any) -> None:
    texts = [r"</think>\boxed{7}", r"</think>\boxed{8}", r"\boxed{7}", r"</think>\boxed{\frac{14}{2}}", "</think>"]
    golds = ["7", "7", "7", "7", r"$\sqrt{49}$"]
    own: dict[str, list] = {}
    theirs: dict[str, list] = {}
    ours = fitted(reward, "</think>")
    assert ours(completions=said(*texts), solution=golds, log_extra=own.__setitem__) == reward(
        completions=said(*texts), solution=golds, log_extra=theirs.__setitem__
    )
    assert own == theirs
    assert ours.__name__ == reward.__name__
    assert pickle.loads(pickle.dumps(ours))(completions=said(texts[0]), solution=["7"]) == [1.0]
    assert ours(completions=[r"</think>\boxed{7}"], solution=["7"]) == [1.0]  # plain text, as plain prompts get
    assert ours(completions=[], solution=[]) == []


def test_an_answer_that_was_checked_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checking._remembered.cache_clear()
    checked = []

    def check(reward: str, content: str, solution: str | None, delimiters: list[str] | None) -> Any:
        checked.append((reward, content, solution, delimiters))
        return checking_worker.check(reward, content, solution, delimiters)

    monkeypatch.setattr(checking, "check", check)
    answers = [
        r"One</think>\boxed{7}",
        r"Two</think>\boxed{7}",
        r"Two</think>\boxed{8}",
        "no end",
        r"A</b>B</think>\boxed{7}",
    ]
    reasoning = Accuracy("reasoning_accuracy_reward", ["</b>", "</think>"])
    columns: list[dict[str, list]] = [{}, {}]
    for logged in columns:
        assert reasoning(completions=answers, solution=["7"] * 5, log_extra=logged.__setitem__) == [1, 1, 0, 0, 1]
    assert [content for _, content, _, _ in checked] == [
        r"</think>\boxed{7}",
        r"</think>\boxed{8}",
        "",
        r"</b>B</think>\boxed{7}",
    ]
    theirs: dict[str, list] = {}
    reasoning_accuracy_reward(
        said(*answers), ["7"] * 5, reasoning_delimiters=["</b>", "</think>"], log_extra=theirs.__setitem__
    )
    assert columns == [theirs, theirs]
    # Another gold and another reward are other questions.
    assert reasoning(completions=answers[:1], solution=["8"]) == [0]
    assert Accuracy()(completions=[r"</think>\boxed{7}"], solution=["7"]) == [1]
    assert len(checked) == 6


@pytest.mark.parametrize("bounds", [{}, {"min_value_wrong": -2.0, "max_value_wrong": 0.25, "min_value_correct": 0.75}])
def test_the_cosine_rewards_values_are_trls(bounds: dict[str, float]) -> None:
    texts = [r"\boxed{7}", r"\boxed{8}", r"\boxed{\frac{14}{2}}", "7", r"\boxed{7}"] * 2
    golds = ["7", "7", "7", "7", "no number"] * 2
    ids = [[0] * length for length in (0, 1, 7, 10, 11, 400, 3, 10, 9, 2)]
    theirs = get_cosine_scaled_reward(max_len=10, **bounds)
    ours = fitted(theirs, "</think>")
    arguments = {"completions": said(*texts), "solution": golds, "completion_ids": ids}
    assert ours is not theirs
    assert ours(**arguments, prompts=texts, log_extra=None) == theirs(**arguments)
    assert (ours.__name__, theirs.__name__) == ("cosine_scaled_reward",) * 2
    assert pickle.loads(pickle.dumps(ours))(**arguments) == theirs(**arguments)
    overlong = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=5)
    assert fitted(overlong, "</think>") is overlong  # it checks no answer


def test_another_marker_is_looked_for_also_within_pear() -> None:
    completions = said(r"x[/THINK]\boxed{7}", r"x</think>\boxed{7}")
    assert fitted(reasoning_accuracy_reward, "[/THINK]")(completions=completions, solution=["7", "7"]) == [1.0, 0.0]
    given = partial(reasoning_accuracy_reward, reasoning_delimiters=["[/THINK]"])
    assert isinstance(fitted(given, "</think>"), Accuracy)
    assert fitted(given, "</think>")(completions=completions, solution=["7", "7"]) == [1.0, 0.0]
    more = partial(reasoning_accuracy_reward, reasoning_delimiters=["[/THINK]"], solution=["8"])
    assert fitted(more, "</think>") is more
    pear = PEARReward(reasoning_accuracy_reward, alpha=2.0)
    inside = fitted(pear, "[/THINK]")
    assert inside(completions=completions, solution=["7", "7"], phase_entropies=[(0.5, 0.1)] * 2) == [0.7, 0.0]
    assert pear.correctness is reasoning_accuracy_reward
    assert fitted(len, "[/THINK]") is len


@pytest.mark.parametrize(
    ("end", "text", "opened", "value"),
    [
        ("</think>", "3+4=7\n</think>\nThe answer is 7.", True, 1.0),
        ("</think>", "3+4=7\n</think>\nThe answer is 7.", False, 0.0),
        ("</think>", "<think>3+4=7</think>7", False, 1.0),
        ("</think>", "<think>3+4=7</think>7", True, 0.0),  # opened twice
        ("</think>", "3+4=7", True, 0.0),
        ("[/THINK]", "[THINK]3+4=7[/THINK]7", False, 1.0),
        ("[/THINK]", "3+4=7[/THINK]7", True, 1.0),
        ("[/THINK]", "<think>3+4=7</think>7", False, 0.0),
    ],
)
def test_think_format(end: str, text: str, opened: bool, value: float) -> None:
    reward = fitted(think_format_reward, end)
    assert reward(completions=said(text), thinking_opened=[opened]) == [value]
    assert "thinking_opened" in parameters_of(reward)
    assert "thinking_opened" in parameters_of(PEARReward(reward))


def test_think_format_needs_a_closing_tag() -> None:
    with pytest.raises(ValueError, match="think_format needs tags around the thinking, but think_end_token '####'"):
        fitted(think_format_reward, "####")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        (r"The answer is \boxed{1,234.50}.", True),
        (r"12+5=17 </think> \boxed{\text{17 apples}}", True),
        ("7^7", False),
        ("9!!", False),
        ("9**9", False),
        ("1E1000000000", False),
        (r"\binom{9}{2}", False),
        ("9" * 50, False),
        ("a" * 5_000, False),
    ],
)
def test_what_is_checked_in_this_process(text: str, harmless: bool) -> None:
    assert is_harmless(text) is harmless


@pytest.mark.parametrize("answer", ["2^{2^{2^{2^{2^2}}}}", "(10^7)!", "1E1000000000", "9" * 100_000])
def test_an_answer_that_is_too_large_is_wrong(impatient: None, answer: str) -> None:
    started = time.monotonic()
    reward = fitted(accuracy_reward, "</think>")
    texts = (rf"\boxed{{{answer}}}", r"\boxed{7^1}")
    assert reward(completions=said(*texts), solution=["7", "7"]) == [0.0, 1.0]
    cosine = fitted(get_cosine_scaled_reward(max_len=2), "</think>")
    assert cosine(completions=said(*texts), solution=["7", "7"], completion_ids=[[1], [1]]) == [-0.75, 0.75]
    assert time.monotonic() - started < 15


def test_a_tower_is_wrong_in_a_thread_too_and_the_next_answers_are_checked(impatient: None) -> None:
    results: list[Any] = []
    reward = fitted(reasoning_accuracy_reward, "</think>")

    def ask() -> None:
        columns: dict[str, list] = {}
        completions = said(f"</think>{TOWER}", r"</think>\boxed{3^2}", r"</think>\boxed{9}")
        values = reward(completions=completions, solution=["7", "9", "9"], log_extra=columns.__setitem__)
        results.append((values, columns["answer_parsed"][0]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [([0.0, 1.0, 1.0], "[too long to check]")] * 2


def test_many_of_them_get_less_time_each(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = CHECKER.start_batch()
    assert budget.seconds == 0.5
    budget.spent = timed._PATIENCE
    monkeypatch.setattr(timed, "_HURRIED", 0.25)
    assert budget.seconds == 0.25


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "from trl.rewards import accuracy_reward\n"
        "from entropy_rft.rewards.fitting import fitted\n"
        "from entropy_rft.rewards.checking import CHECKER\n"
        "reward = fitted(accuracy_reward, '</think>')\n"
        r"print(reward(completions=[r'\boxed{3^2}'], solution=['9']), CHECKER._process.pid, flush=True)" + "\n"
        "import os; os._exit(0)\n"  # as a process that is killed: nothing tidies up
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    value, pid = done.stdout.split()
    assert value == "[1.0]"
    deadline = time.monotonic() + 30  # run() has already waited for whoever holds stderr
    while time.monotonic() < deadline:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} outlives its parent")


def test_many_open_files_do_not_stop_the_check() -> None:
    opened = [os.dup(0) for _ in range(1_100)]
    try:
        CHECKER.close()
        assert Accuracy()(completions=[r"\boxed{2^3}"], solution=["8"]) == [1.0]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_a_gold_answer_that_is_not_text() -> None:
    with pytest.raises(TypeError, match="solution must be text, got 7: convert the column"):
        Accuracy()(completions=["7"], solution=[7])  # type: ignore[list-item]
    assert Accuracy()(completions=["7", r"\boxed{7}"], solution=[None, "7"]) == [None, 1.0]


@pytest.mark.parametrize(("name", "value"), [("correctness", 0.5), ("fitted", True)])
def test_a_reward_may_have_attributes_of_these_names(name: str, value: Any) -> None:
    class Own:
        def __call__(self, completions: list, weights: list, **kwargs: Any) -> list[float]:
            return [1.0] * len(completions)

    reward = Own()
    setattr(reward, name, value)
    assert fitted(reward, "</think>") is reward
    assert parameters_of(reward) == {"completions", "weights", "kwargs"}
