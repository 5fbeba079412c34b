"""How much to think: what a request gets of it, and what stays the client's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty, Strategy
from entropy_rft.router import policy
from entropy_rft.router.loading import placement_of
from entropy_rft.router.policy import Budget, applied
from entropy_rft.router.settings import load_settings

USER = {"role": "user", "content": "What is 2 + 2?"}
DEFAULT = Budget(1000, explicit=False, of_client=False)
EXPLICIT = Budget(1000, explicit=True, of_client=False)
OF_CLIENT = Budget(1000, explicit=True, of_client=True)
LIMITED = Strategy(Difficulty.EASY, "", 0.5, 0.4, thinking_tokens=64)
FULL = Strategy(
    Difficulty.EASY,
    "Be brief.",
    0.5,
    0.4,
    thinking_tokens=64,
    reasoning_effort="low",
    chat_template_kwargs={"enable_thinking": False, "depth": 1},
    extra_body={"top_p": 0.9, "stop": ["x"]},
)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **fields}


def rewritten(body: dict[str, Any], strategy: Strategy, budget: Budget = DEFAULT, **options: Any) -> dict[str, Any]:
    before = deepcopy(body)
    new, _ = policy.rewrite(body, strategy, budget, options.pop("endpoint", "chat"), **options)
    assert body == before
    return new


def test_everything_that_a_strategy_can_ask_for() -> None:
    assert rewritten(chat(), FULL) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "temperature": 0.5,
        "thinking_token_budget": 64,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False, "depth": 1},
        "top_p": 0.9,
        "stop": ["x"],
    }


def test_what_a_client_says_wins_field_by_field() -> None:
    own = {"thinking_token_budget": 0, "chat_template_kwargs": {"depth": 2, "mine": 1}, "top_p": 1.0, "stop": None}
    new = rewritten(chat(**own), FULL)
    assert (new["thinking_token_budget"], new["top_p"], new["stop"]) == (0, 1.0, ["x"])
    assert new["chat_template_kwargs"] == {"enable_thinking": False, "depth": 2, "mine": 1}


def test_a_clients_effort_says_whether_to_think() -> None:
    """vLLM makes `enable_thinking` of it, unless the template variables have one."""
    new = rewritten(chat(reasoning_effort="high"), FULL)
    assert new["reasoning_effort"] == "high"
    assert new["chat_template_kwargs"] == {"depth": 1}


def test_variables_that_are_none_are_the_backends_to_refuse() -> None:
    assert rewritten(chat(chat_template_kwargs="x"), FULL)["chat_template_kwargs"] == "x"


def test_a_limit_on_the_thinking_takes_the_place_of_the_share() -> None:
    assert "max_tokens" not in rewritten(chat(), LIMITED)
    assert rewritten(chat(), LIMITED, EXPLICIT)["max_tokens"] == 1000
    assert rewritten(chat(max_tokens=100), LIMITED, OF_CLIENT)["max_tokens"] == 100
    assert rewritten({"prompt": "x"}, LIMITED, endpoint="completions")["thinking_token_budget"] == 64


def test_where_a_backend_does_not_know_the_limit_the_share_is_back() -> None:
    for budget, share in ((DEFAULT, 400), (EXPLICIT, 400)):
        new = rewritten(chat(), LIMITED, budget, thinking=False)
        assert (new["max_tokens"], "thinking_token_budget" in new) == (share, False)
    assert rewritten(chat(max_tokens=100), LIMITED, OF_CLIENT, thinking=False)["max_tokens"] == 40
    own = rewritten(chat(thinking_token_budget=5), LIMITED, thinking=False)
    assert own["thinking_token_budget"] == 5  # the client's own stays, and so does the refusal


def test_a_prompt_has_no_template() -> None:
    new = rewritten({"prompt": "x"}, FULL, endpoint="completions")
    assert new == {"prompt": "x", "temperature": 0.5, "thinking_token_budget": 64, "top_p": 0.9, "stop": ["x"]}


@pytest.mark.parametrize(
    ("effort", "difficulty"),
    [
        ("low", Difficulty.EASY),
        ("medium", Difficulty.NORMAL),
        ("high", Difficulty.HARD),
        ("none", None),
        (["low"], None),
    ],
)
def test_an_effort_that_stands_for_a_difficulty(effort: Any, difficulty: Difficulty | None) -> None:
    body = chat(reasoning_effort=effort)
    assert policy.asked_difficulty(body, None, effort) is difficulty
    assert policy.asked_difficulty(body, None) is None
    assert policy.asked_difficulty({**body, "difficulty": "hard"}, None, effort) is Difficulty.HARD
    assert policy.asked_difficulty(body, "auto", effort) is None
    new = rewritten(body, LIMITED, takes_effort=True)
    assert ("reasoning_effort" in new) == (difficulty is None)
    if difficulty is not None:
        assert rewritten(body, FULL, takes_effort=True)["reasoning_effort"] == "low"  # the strategy's


def test_what_was_set_is_named() -> None:
    body = chat(top_p=0.5, chat_template_kwargs={"depth": 2})
    new = rewritten(body, FULL, EXPLICIT, model="theirs")
    assert {shown for _, shown in applied(body, new, "system", "chat")} == {
        "instruction=system",
        "chat_template_kwargs.enable_thinking",
        "stop",
        "reasoning_effort=low",
        "temperature=0.5",
        "thinking_token_budget=64",
        "max_tokens=1000",
    }


def test_a_name_fits_into_a_header() -> None:
    odd = replace(LIMITED, extra_body={"grüße\r\nx: y": 1})
    shown = [text for _, text in applied(chat(), rewritten(chat(), odd), "system", "chat")]
    assert "gr??e??x??y=1" in shown


def test_the_placement_is_the_probes() -> None:
    def of(setting: str | None, probe: Any) -> str:
        return placement_of(load_settings(None, {"placement": setting} if setting else {}), probe)

    end = SimpleNamespace(placement="user_end")
    assert [of(None, None), of("user_end", None), of(None, end), of("user_end", end)] == ["system"] + ["user_end"] * 3
    with pytest.raises(
        ValueError, match="the probe was made for user_end, not system: leave it out, or train the probe"
    ):
        of("system", end)
    with pytest.raises(ValueError, match="placement: input should be 'system' or 'user_end', got 'user'"):
        of("user", None)


def test_an_instruction_at_the_end_leaves_what_is_before_it_alone() -> None:
    """So that the backend's cached prefix stays one, whatever the difficulty."""
    earlier = [{"role": "system", "content": "Be kind."}, USER, {"role": "assistant", "content": "4"}]
    requests = [
        rewritten(chat(messages=[*earlier, USER]), strategy, placement="user_end")["messages"]
        for strategy in DEFAULT_STRATEGIES.values()
    ]
    assert all(messages[:-1] == earlier for messages in requests)
    assert all(messages[-1]["content"].startswith(USER["content"] + "\n\n") for messages in requests)
    assert len({messages[-1]["content"] for messages in requests}) == 3
