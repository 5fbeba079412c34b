"""How much to think, in the dialects that have their own fields for it: Responses and Messages."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from entropy_rft.difficulty import Difficulty, Strategy
from entropy_rft.router import policy
from entropy_rft.router.dialects import DIALECTS, Endpoint
from entropy_rft.router.policy import Budget, applied

DEFAULT = Budget(1000, explicit=False, of_client=False)
OF_CLIENT = Budget(1000, explicit=True, of_client=True)
FULL = Strategy(
    Difficulty.EASY,
    "",
    0.5,
    0.4,
    thinking_tokens=2000,
    reasoning_effort="low",
    chat_template_kwargs={"enable_thinking": False, "depth": 1},
    extra_body={"top_p": 0.9, "min_p": 0.1, "thinking": {"type": "adaptive"}, "reasoning": {}},
)
SET_BY_ALL = {"temperature": 0.5, "top_p": 0.9, "chat_template_kwargs": {"enable_thinking": False, "depth": 1}}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 4000, **fields}


def response(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": "2 + 2?", **fields}


def rewritten(
    endpoint: Endpoint, body: dict[str, Any], strategy: Strategy = FULL, budget: Budget = DEFAULT, **options: Any
) -> dict[str, Any]:
    before = deepcopy(body)
    new, _ = policy.rewrite(body, strategy, budget, endpoint, **options)
    assert body == before
    return new


def test_messages_has_a_field_for_each() -> None:
    body = message()
    new = rewritten("messages", body)
    assert new == {
        **body,
        **SET_BY_ALL,
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low"},
    }
    assert {shown for _, shown in applied(body, new, "system", "messages")} == {
        "temperature=0.5",
        "top_p=0.9",
        "chat_template_kwargs.enable_thinking",
        "chat_template_kwargs.depth",
        "thinking.type=enabled",
        "thinking.budget_tokens=2000",
        "output_config.effort=low",
    }


def test_responses_has_no_limit_on_the_thinking_so_the_share_applies() -> None:
    new = rewritten("responses", response())
    assert new == {**response(), **SET_BY_ALL, "reasoning": {"effort": "low"}, "max_output_tokens": 400}
    assert ("reasoning.effort", "reasoning.effort=low") in applied(response(), new, "system", "responses")


def test_a_field_that_holds_more_keeps_it() -> None:
    body = response(reasoning={"summary": "auto"})
    new = rewritten("responses", body)
    assert new["reasoning"] == {"summary": "auto", "effort": "low"}
    assert [shown for name, shown in applied(body, new, "system", "responses") if "reasoning" in name] == [
        "reasoning.effort=low"
    ]
    config = rewritten("messages", message(output_config={"format": {"type": "x"}}))["output_config"]
    assert config == {"format": {"type": "x"}, "effort": "low"}


def test_a_clients_effort_wins() -> None:
    assert rewritten("responses", response(reasoning={"effort": "high"}))["reasoning"] == {"effort": "high"}
    new = rewritten("messages", message(output_config={"effort": "max"}))
    assert new["output_config"] == {"effort": "max"}
    assert new["chat_template_kwargs"] == {"depth": 1}  # the client says whether to think


@pytest.mark.parametrize(
    ("thinking", "effort", "limit"),
    [
        ({"type": "enabled", "budget_tokens": 1500}, "low", 4000),
        ({"type": "adaptive"}, "low", 1600),  # no limit on the thinking, so the share
        ({"type": "disabled"}, None, 4000),  # nothing is thought: the strategy's effort would contradict
        ("odd", "low", 1600),
    ],
)
def test_a_clients_thinking_wins(thinking: Any, effort: str | None, limit: int) -> None:
    new = rewritten("messages", message(thinking=thinking), budget=OF_CLIENT)
    assert new["thinking"] == thinking
    assert new.get("output_config", {}).get("effort") == effort
    assert new["chat_template_kwargs"] == {"depth": 1}
    assert new["max_tokens"] == limit


@pytest.mark.parametrize(("tokens", "fits"), [(1023, False), (1024, True), (3999, True), (4000, False)])
def test_a_limit_that_messages_cannot_hold_is_the_share(tokens: int, fits: bool) -> None:
    new = rewritten("messages", message(), replace(FULL, thinking_tokens=tokens), OF_CLIENT)
    assert ("thinking" in new, new["max_tokens"]) == (fits, 4000 if fits else 1600)


def test_without_a_limit_on_the_thinking_the_share_is_back() -> None:
    new = rewritten("messages", message(), budget=OF_CLIENT, thinking=False)
    assert ("thinking" in new, new["max_tokens"]) == (False, 1600)


@pytest.mark.parametrize(
    ("effort", "fields"),
    [
        ("none", {"thinking": {"type": "disabled"}}),
        ("minimal", {"output_config": {"effort": "low"}}),
        ("xhigh", {"output_config": {"effort": "xhigh"}}),
    ],
)
def test_efforts_in_messages(effort: str, fields: dict[str, Any]) -> None:
    plain = Strategy(Difficulty.EASY, "", 0.5, 1.0, reasoning_effort=effort)
    assert rewritten("messages", message(), plain) == {**message(), "temperature": 0.5, **fields}
    # A thinking that is disabled needs no limit, so its absence teaches nothing about a backend.
    new = rewritten("messages", message(), replace(plain, thinking_tokens=2000))
    assert DIALECTS["messages"].limits_thinking(new) == (effort != "none")
    own = {"type": "adaptive"}
    assert rewritten("messages", message(thinking=own), plain)["thinking"] == own


@pytest.mark.parametrize(
    ("endpoint", "body", "rest"),
    [
        ("responses", response(reasoning={"effort": "low"}), {}),
        ("responses", response(reasoning={"effort": "low", "summary": "auto"}), {"reasoning": {"summary": "auto"}}),
        ("messages", message(output_config={"effort": "low"}), {}),
        ("completions", {"prompt": "x", "reasoning_effort": "low"}, {}),
    ],
)
def test_an_effort_that_stands_for_a_difficulty_is_not_passed_on(
    endpoint: Endpoint, body: dict[str, Any], rest: dict[str, Any]
) -> None:
    effort = DIALECTS[endpoint].effort(body)
    assert policy.asked_difficulty(body, None, effort) is Difficulty.EASY
    plain = Strategy(Difficulty.EASY, "", 0.5, 1.0)
    new = rewritten(endpoint, body, plain, takes_effort=True)
    names = ("reasoning", "output_config", "reasoning_effort")
    assert {name: new[name] for name in names if name in new} == rest
    assert applied(body, new, "system", endpoint) == [("temperature", "temperature=0.5")]


def test_an_object_that_is_none_is_the_backends_to_refuse() -> None:
    assert rewritten("responses", response(reasoning="x"))["reasoning"] == "x"
    assert rewritten("messages", message(output_config="x"))["output_config"] == "x"
