"""Bodies of any form, in the words of each dialect: refused in one line, or routed; never an error of the router."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_rft.difficulty import Difficulty, Strategy
from entropy_rft.difficulty.strategies import Placement
from entropy_rft.router.dialects import DIALECTS, Dialect, Endpoint
from entropy_rft.router.errors import RouterError
from entropy_rft.router.policy import (
    Budget,
    answers_wanted,
    applied,
    asked_difficulty,
    check_request,
    rewrite,
    unprobed,
)

KEYS = {
    "chat": "messages tools tool_choice role content type text name tool_calls function arguments parameters reasoning "
    "reasoning_effort chat_template_kwargs enable_thinking max_tokens max_completion_tokens thinking_token_budget "
    "temperature n stream difficulty continue_final_message image_url model",
    "completions": "prompt n max_tokens temperature thinking_token_budget reasoning_effort difficulty model suffix",
    "responses": "input instructions type role content text output call_id name arguments summary status id reasoning "
    "effort max_output_tokens previous_response_id tools parameters temperature difficulty chat_template_kwargs model",
    "messages": "messages system role content type text thinking budget_tokens input name tool_use_id tools "
    "input_schema max_tokens output_config effort temperature difficulty chat_template_kwargs cache_control model",
}
ROLES = ["user", "assistant", "system", "developer", "tool"]
PARTS = (
    "text input_text output_text refusal thinking redacted_thinking tool_use tool_result image image_url message "
    "function_call function_call_output reasoning item_reference x-anthropic-billing-header"
)
VALUES = "in_progress incomplete completed enabled disabled adaptive none minimal low medium high easy normal hard auto"
WORDS = [*ROLES, *PARTS.split(), *VALUES.split()]
# Every field that a strategy may have, and one with none.
STRATEGIES = [
    Strategy(
        difficulty=Difficulty.HARD,
        instruction="Stop early.",
        temperature=0.5,
        max_tokens_fraction=0.5,
        thinking_tokens=2000,
        reasoning_effort=effort,
        chat_template_kwargs={"enable_thinking": False, "other": 1},
        extra_body={"top_p": 0.9, "top_k": 5, "metadata": {"a": "b"}, "anything": [1]},
    )
    for effort in ("none", "minimal", "high")
] + [Strategy(difficulty=Difficulty.EASY, instruction="", temperature=0.0, max_tokens_fraction=1.0)]


def values(name: Endpoint) -> st.SearchStrategy[Any]:
    """JSON whose keys and texts are mostly ones that the dialect knows."""
    keys = st.one_of(st.sampled_from(KEYS[name].split()), st.text(max_size=3))
    leaves = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from([None, True, False, 0, 1, -1, 5000, 2**53, 0.5, "", "\r\nx: y", "é\0"]),
        st.text(max_size=5),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
        max_leaves=12,
    )


def entries(name: Endpoint) -> st.SearchStrategy[Any]:
    """Messages or items that are nearly right."""
    value = values(name)
    parts = st.lists(
        st.dictionaries(st.sampled_from(["type", "text", "content", "thinking", "name"]), value), max_size=3
    )
    content = st.one_of(st.text(max_size=5), parts, value)
    entry = st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES)},
        optional={
            "content": content,
            "type": st.sampled_from(WORDS),
            "status": st.sampled_from(WORDS),
            "output": content,
        },
    )
    return st.lists(st.one_of(entry, entry, entry, value), min_size=0, max_size=4)


def bodies(name: Endpoint) -> st.SearchStrategy[Any]:
    value = values(name)
    asked: dict[str, st.SearchStrategy[Any]] = {
        "chat": {"messages": entries(name)},
        "completions": {
            "prompt": st.one_of(st.text(), st.lists(st.one_of(st.integers(0, 2**63), st.text(), value)), value)
        },
        "responses": {"input": st.one_of(st.text(), entries(name))},
        "messages": {"messages": entries(name), "max_tokens": st.one_of(st.integers(-1, 9000), value)},
    }[name]
    more = {key: value for key in KEYS[name].split() if key not in asked}
    return st.one_of(st.fixed_dictionaries(asked, optional=more), st.fixed_dictionaries(asked, optional=more), value)


OPTIONS = st.tuples(
    st.sampled_from(STRATEGIES),
    st.builds(Budget, st.integers(1, 20_000), st.booleans(), st.booleans()),
    st.sampled_from(["system", "user_end"]),
    st.booleans(),
    st.booleans(),
)


def check(dialect: Dialect, body: Any, options: tuple[Strategy, Budget, Placement, bool, bool]) -> None:
    strategy, budget, placement, thinking, takes_effort = options
    before = deepcopy(body)
    refusal = None
    try:
        checked = check_request(body, dialect.name)
        asked_difficulty(checked, None, dialect.effort(checked) if takes_effort else None)
    except RouterError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert "\n" not in refusal.message
        assert orjson.loads(refusal.body(dialect.errors))
        return
    unprobed(checked, dialect.name)
    dialect.question(checked)  # a turn is recognised by it also where the probe cannot read the request
    new, _ = rewrite(
        checked, strategy, budget, dialect.name, None, placement, thinking=thinking, takes_effort=takes_effort
    )
    assert orjson.loads(orjson.dumps(new)) == new
    for _, shown in applied(checked, new, placement, dialect.name):
        assert re.fullmatch(r"[!-~]+", shown), "it becomes part of a header"
    dialect.continues(checked)
    assert answers_wanted(checked, dialect.name) >= 0
    assert body == before, "the client's body is not changed"
    set_by_us = {*dialect.conversation, *dialect.limits, *dialect.objects, *(strategy.extra_body or {})}
    set_by_us |= {"difficulty", "temperature", "reasoning_effort", "chat_template_kwargs", "thinking_token_budget"}
    for key, value in body.items():
        if key not in set_by_us:
            assert new[key] is value


def check_any(dialect: Dialect, examples: int, again: bool) -> None:
    def run(body: Any, options: Any) -> None:
        check(dialect, body, options)

    wanted = settings(
        max_examples=examples,
        derandomize=again,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test: Callable[[], None] = wanted(given(bodies(dialect.name), OPTIONS)(run))
    test()


ROUTED = [dialect for dialect in DIALECTS.values() if dialect.routed]


@pytest.mark.parametrize("dialect", ROUTED, ids=lambda dialect: dialect.name)
def test_any_body(dialect: Dialect) -> None:
    check_any(dialect, 60, again=True)


@pytest.mark.soak
@pytest.mark.parametrize("dialect", ROUTED, ids=lambda dialect: dialect.name)
def test_any_body_at_length(dialect: Dialect) -> None:
    check_any(dialect, 1500, again=False)
