"""The list of dialects."""

from __future__ import annotations

import pytest

from entropy_rft.router.dialects import BY_PATH, DIALECTS, errors_of
from entropy_rft.router.errors import OPENAI

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
