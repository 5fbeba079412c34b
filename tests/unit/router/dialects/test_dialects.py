"""The list of dialects."""

from __future__ import annotations

import pytest

from entropy_rft.router import policy
from entropy_rft.router.dialects import BY_PATH, DIALECTS, errors_of
from entropy_rft.router.errors import OPENAI, RouterError

ANTHROPIC = DIALECTS["messages"].errors


def test_each_has_a_name_and_a_path_of_its_own() -> None:
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {name: name for name in DIALECTS}
    assert {path: dialect.path for path, dialect in BY_PATH.items()} == {path: path for path in BY_PATH}
    assert len(DIALECTS) == len(BY_PATH) == 5


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches", True),
        ("/v1/messagesx", False),
        ("/v1/responses/resp_1/cancel", False),
        ("/v1/chat/completions", False),
        ("/nowhere", False),
    ],
)
def test_errors_of_a_path(path: str, anthropic: bool) -> None:
    assert errors_of(path) is ANTHROPIC or errors_of(path).body is OPENAI.body
    assert (errors_of(path) is ANTHROPIC) is anthropic


def test_a_prompt_may_be_embeddings_alone() -> None:
    """vLLM answers that; the router has nothing to read, and must not refuse it."""
    dialect = DIALECTS["completions"]
    for body in ({"prompt_embeds": "AAAA"}, {"prompt": None, "prompt_embeds": ["AAAA", "BBBB"]}):
        assert policy.check_request(body, "completions") == body
        assert dialect.question(body).text == ""
        assert dialect.prompts(body) == (1 if isinstance(body["prompt_embeds"], str) else 2)
        assert len(list(dialect.turns(body))) == 1
    with pytest.raises(RouterError, match="prompt must be"):
        policy.check_request({"prompt": None, "prompt_embeds": None}, "completions")
