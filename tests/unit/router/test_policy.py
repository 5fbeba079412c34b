"""What becomes of a request."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty, Strategy
from entropy_rft.difficulty.strategies import instructed
from entropy_rft.router import policy
from entropy_rft.router.errors import RouterError
from entropy_rft.router.policy import Budget

EASY, NORMAL, HARD = (DEFAULT_STRATEGIES[d] for d in Difficulty)
USER = {"role": "user", "content": "What is 2 + 2?"}
DEFAULT = Budget(1000, explicit=False, of_client=False)
EXPLICIT = Budget(1000, explicit=True, of_client=False)
OF_CLIENT = Budget(1000, explicit=True, of_client=True)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,x"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


@pytest.mark.parametrize(
    ("proba", "difficulty", "reason"),
    [
        ((0.9, 0.05, 0.05), Difficulty.EASY, "probe"),
        ((0.1, 0.3, 0.6), Difficulty.HARD, "probe"),
        ((0.5, 0.25, 0.25), Difficulty.EASY, "probe"),
        ((0.4, 0.3, 0.3), Difficulty.NORMAL, "low_confidence"),
        ((0.3, 0.4, 0.3), Difficulty.NORMAL, "low_confidence"),
        ((float("nan"),) * 3, Difficulty.NORMAL, "low_confidence"),
    ],
)
def test_from_probabilities(proba: tuple[float, ...], difficulty: Difficulty, reason: str) -> None:
    decision = policy.from_probabilities(proba, 0.5)
    assert (decision.difficulty, decision.reason) == (difficulty, reason)


def test_every_reason_is_listed() -> None:
    assert policy.from_probabilities((0.9, 0.1, 0.0), 0.5).reason in policy.REASONS
    assert {"image", "several", "prefill"} <= set(policy.REASONS)


@pytest.mark.parametrize(
    ("body", "header", "asked"),
    [
        ({}, None, None),
        ({"difficulty": "auto"}, "hard", None),
        ({"difficulty": None}, "hard", Difficulty.HARD),
        ({"difficulty": "easy"}, "hard", Difficulty.EASY),
        ({}, " Normal ", Difficulty.NORMAL),
        ({}, "auto", None),
    ],
)
def test_asked_difficulty(body: dict[str, Any], header: str | None, asked: Difficulty | None) -> None:
    assert policy.asked_difficulty(body, header) is asked


@pytest.mark.parametrize(
    ("body", "header", "param"),
    [
        ({"difficulty": "medium"}, None, "difficulty"),
        ({"difficulty": ["easy"]}, None, "difficulty"),
        ({"difficulty": "easy"}, "medium", "x-entropy-rft-difficulty"),
        ({}, "", "x-entropy-rft-difficulty"),
    ],
)
def test_no_such_difficulty(body: dict[str, Any], header: str | None, param: str) -> None:
    with pytest.raises(RouterError, match="must be auto, easy, normal or hard") as caught:
        policy.asked_difficulty(body, header)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("body", [[], None, "x", 3, {}, {"messages": []}, {"messages": "hi"}, {"messages": [3]}])
def test_no_conversation(body: Any) -> None:
    with pytest.raises(RouterError) as caught:
        policy.check_request(body, "chat")
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": []}, {"prompt": 3}, []])
def test_no_prompt(body: Any) -> None:
    with pytest.raises(RouterError) as caught:
        policy.check_request(body, "completions")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "endpoint", "reason"),
    [
        (chat(), "chat", None),
        (chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), "chat", None),
        (chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE]}]), "chat", "image"),
        (chat(messages=[{"role": "user", "content": [IMAGE]}, {"role": "user", "content": "and?"}]), "chat", "image"),
        (chat(messages=[USER, {"role": "assistant", "content": None}, USER]), "chat", None),
        (chat(continue_final_message=True), "chat", "prefill"),
        ({"prompt": "text"}, "completions", None),
        ({"prompt": ["text"]}, "completions", None),
        ({"prompt": [1, 2, 3]}, "completions", None),
        ({"prompt": [[1, 2, 3]]}, "completions", None),
        ({"prompt": ["a", "b"]}, "completions", "several"),
        ({"prompt": [[1], [2]]}, "completions", "several"),
        ({"prompt_embeds": "AAAA"}, "completions", "embeddings"),
        ({"prompt": "text", "prompt_embeds": ["AAAA", "BBBB"]}, "completions", "embeddings"),
    ],
)
def test_what_the_probe_cannot_say(body: dict[str, Any], endpoint: Any, reason: str | None) -> None:
    assert policy.unprobed(body, endpoint) == reason


def test_rewrite_is_the_strategy() -> None:
    body = chat(difficulty="easy", top_p=0.9, unknown={"kept": [1]})
    before = deepcopy(body)
    new, ours = policy.rewrite(body, EASY, DEFAULT, "chat")
    assert body == before
    assert new == {
        "model": "m",
        "messages": EASY.prompt([USER]),
        "top_p": 0.9,
        "unknown": {"kept": [1]},
        "temperature": EASY.temperature,
        "max_tokens": EASY.max_tokens(1000),
    }
    assert ours


def test_what_a_client_says_wins() -> None:
    new, ours = policy.rewrite(chat(temperature=0, max_completion_tokens=7), HARD, EXPLICIT, "chat")
    assert (new["temperature"], new["max_completion_tokens"]) == (0, 7)
    assert "max_tokens" not in new
    assert not ours


def test_null_is_not_said() -> None:
    new, ours = policy.rewrite(chat(temperature=None, max_tokens=None), EASY, DEFAULT, "chat")
    assert (new["temperature"], new["max_tokens"], ours) == (EASY.temperature, 400, True)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_clients_limit_as_a_budget(field: str) -> None:
    new, ours = policy.rewrite(chat(**{field: 100}), EASY, OF_CLIENT, "chat")
    assert (new[field], ours) == (40, False)
    assert policy.rewrite(chat(**{field: "100"}), EASY, OF_CLIENT, "chat")[0][field] == "100"  # the backend's to refuse


def test_normal_sets_no_limit_that_nobody_asked_for() -> None:
    assert "max_tokens" not in policy.rewrite(chat(), NORMAL, DEFAULT, "chat")[0]
    assert policy.rewrite(chat(), NORMAL, EXPLICIT, "chat")[0]["max_tokens"] == 1000


def test_several_greedy_answers_are_not_asked_for() -> None:
    greedy = Strategy(Difficulty.EASY, "", 0.0, 1.0)
    assert "temperature" not in policy.rewrite(chat(n=2), greedy, DEFAULT, "chat")[0]
    assert policy.rewrite(chat(n=1), greedy, DEFAULT, "chat")[0]["temperature"] == 0.0


def test_a_prompt_gets_no_instruction() -> None:
    new, _ = policy.rewrite({"prompt": "2 + 2 ="}, EASY, DEFAULT, "completions")
    assert new["prompt"] == "2 + 2 ="
    assert "messages" not in new
    assert new["temperature"] == EASY.temperature


@pytest.mark.parametrize("strategy", [EASY, NORMAL, HARD])
def test_a_prompt_without_a_limit_keeps_the_backends(strategy: Strategy) -> None:
    new, ours = policy.rewrite({"prompt": "x"}, strategy, DEFAULT, "completions")
    assert "max_tokens" not in new
    assert not ours
    new, ours = policy.rewrite({"prompt": "x"}, strategy, EXPLICIT, "completions")
    assert (new["max_tokens"], ours) == (strategy.max_tokens(1000), True)  # a person said so


def test_the_model_is_renamed() -> None:
    assert policy.rewrite(chat(), NORMAL, DEFAULT, "chat", "theirs")[0]["model"] == "theirs"


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be kind."}, USER],
        [USER, {"role": "assistant", "content": "4"}, USER],
    ],
)
def test_instructed_is_what_the_probe_was_trained_with(messages: list[dict[str, Any]]) -> None:
    assert instructed(messages, HARD.instruction) == HARD.prompt(messages)


def test_instructed_where_a_system_message_has_parts() -> None:
    parts = [{"type": "text", "text": "Be kind."}]
    first, second = instructed([{"role": "developer", "content": parts, "name": "n"}, USER], "Be brief.")
    assert first == {
        "role": "developer",
        "name": "n",
        "content": [*parts, {"type": "text", "text": "\n\nBe brief."}],
    }
    assert second is USER
    assert instructed([{"role": "system", "content": None}], "Be brief.")[0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("body", "endpoint", "count"),
    [
        (chat(), "chat", 1),
        (chat(n=3), "chat", 3),
        (chat(n=None), "chat", 1),
        ({"prompt": ["a", "b"], "n": 2}, "completions", 4),
        ({"prompt": [1, 2]}, "completions", 1),
    ],
)
def test_answers_wanted(body: dict[str, Any], endpoint: Any, count: int) -> None:
    assert policy.answers_wanted(body, endpoint) == count
