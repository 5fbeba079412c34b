"""The OpenAPI document against backends that refuse: errors have the shape that each dialect's clients read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from running import FixedFeatures, running_router
from stub import Stub
from stub_answers import Behaviour, Request
from test_schema import KEY, schemathesis
from wire import get

from entropy_rft.router.dialects import DIALECTS

pytestmark = pytest.mark.integration

PATHS = r"^/v1/(chat|completions|responses|messages|models)"


def refusals() -> Iterator[Behaviour]:
    """All that a backend may say instead of an answer, again and again."""
    anthropic = {"type": "error", "error": {"type": "not_found_error", "message": "no such model"}}
    return cycle(
        [
            Behaviour.error(400, "thinking_token_budget is unknown"),
            Behaviour.error(404),
            Behaviour.error(422),
            Behaviour.error(429, headers=(("retry-after", "0"),)),
            Behaviour.error(500),
            Behaviour.error(503),
            Behaviour.json(anthropic, status=404),
            Behaviour.json({"detail": [{"loc": ["body"], "msg": "field required"}]}, status=422),
            Behaviour.json(["what", "is", "this"], status=400),
            Behaviour((b"<html>\xff\xfe Bad gateway</html>",), 502, content_type="text/html"),
            Behaviour((b"",), 500),
            Behaviour(raw=b"garbage\r\n\r\n"),
            Behaviour.stream((b"data: {}\n\n",), status=500),
        ]
    )


def test_refusals_have_the_shape_that_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key as Anthropic's clients send it."""
    monkeypatch.setenv("CLIENT_KEYS", KEY)
    answers = refusals()

    def refuse(request: Request) -> Behaviour:
        return next(answers)

    settings = {"auth": {"keys_env": "CLIENT_KEYS"}, "retries": {"attempts": 1}, "breaker": {"failures": 10**6}}
    with (
        Stub(answer=refuse) as stub,
        running_router([stub.url], features=FixedFeatures((0, 0, 1)), **settings) as router,
    ):
        schemathesis(
            router,
            tmp_path,
            *("--header", f"x-api-key: {KEY}", "--include-path-regex", PATHS),
            checks="status_code_conformance,content_type_conformance,response_schema_conformance",
            examples=10,
        )
        asked = {request.path for request in stub.requests}
        assert asked >= {dialect.path for dialect in DIALECTS.values()}
        assert any(path.startswith("/v1/responses/") for path in asked)
        counted = json.loads(get(router.port, "/health").body)
        assert counted == {"status": "ok"}
        router.assert_idle()
