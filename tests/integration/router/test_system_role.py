"""Chat templates that know no system role, such as Gemma's: an instruction goes elsewhere, and costs no answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningRouter, running_router
from stub import Stub
from stub_answers import PLAIN, Behaviour, Request
from wire import Reply, exchange, request

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.models.sources import model_source
from entropy_rft.router.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

USER = {"role": "user", "content": "What is 2 + 2?"}
SYSTEM = {"role": "system", "content": "Be kind."}
REFUSES = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
IN_TURN = "What is 2 + 2?\n\nThink step by step."


def gemma_like(asked: Request) -> Behaviour | None:
    refused = any(message["role"] == "system" for message in asked.json["messages"])
    return Behaviour.error(400, "System role not supported") if refused else None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with such a template."""
    path = tmp_path_factory.mktemp("gemma") / "model"
    shutil.copytree(model_source(DEFAULT_MODEL), path)
    template = path / "chat_template.jinja"
    template.write_text(REFUSES + template.read_text())
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    with EmbeddedServer(str(model)) as running:
        yield running.start()


def ask(router: RunningRouter, *messages: dict[str, Any], **fields: Any) -> Reply:
    body = {"model": "model", "messages": list(messages), "difficulty": "normal", "max_tokens": 4, **fields}
    return exchange(router.port, request(json.dumps(body).encode()))


def seen(stub: Stub) -> list[list[dict[str, Any]]]:
    return [asked.json["messages"] for asked in stub.requests]


def test_the_template_tells_before_anything_is_asked(stub: Stub, model: Path) -> None:
    """The router has the tokenizer: no request is needed to find it out."""
    stub.answer = gemma_like
    settings = {"probe": "embedded", "model": str(model), "force_probe": True, "features": {"kind": "local"}}
    with running_router([stub.url], **settings) as router:
        for _ in range(2):
            reply = ask(router, USER)
            assert (reply.status, reply.body) == (200, PLAIN)
        assert ask(router, SYSTEM, USER).status == 400  # the client's own, as without a router
    assert seen(stub) == [[{**USER, "content": IN_TURN}]] * 2 + [[SYSTEM, {**USER, "content": IN_TURN}]]


def test_an_answer_tells_where_the_router_has_no_template(stub: Stub) -> None:
    stub.answer = gemma_like
    with running_router([stub.url]) as router:
        assert ask(router, SYSTEM, USER).status == 400  # says nothing of the instruction: it was the client's
        assert len(stub.requests) == 1
        for _ in range(3):
            reply = ask(router, USER)
            assert (reply.status, reply.body) == (200, PLAIN)
    assert len(stub.requests) == 1 + 2 + 1 + 1  # asked twice once, and known from then on
    assert seen(stub)[-1] == [{**USER, "content": IN_TURN}]


def test_a_refusal_for_another_reason_stays_one(stub: Stub) -> None:
    with running_router([stub.url]) as router:
        stub.answer = lambda asked: Behaviour.error(400, "no such thing")
        reply = ask(router, USER)
        assert (reply.status, reply.error["message"]) == (400, "no such thing")
        stub.answer = None
        assert ask(router, USER).status == 200  # the system role is known, so that …
        before = len(stub.requests)
        stub.answer = lambda asked: Behaviour.error(400, "no such thing")
        assert ask(router, USER).status == 400
        assert len(stub.requests) == before + 1  # … no further refusal is asked about
    assert seen(stub)[-1][0]["role"] == "system"


@pytest.mark.parametrize("stream", [False, True])
def test_before_an_embedded_server(server: str, model: Path, stream: bool) -> None:
    """Its template raises, whoever asks; with the router's own tokenizer and without."""
    own = {"probe": "embedded", "model": str(model), "force_probe": True, "features": {"kind": "local"}}
    for settings in ({}, own):
        with running_router([server], **settings) as router:
            reply = ask(router, USER, stream=stream)
            assert (reply.status, reply.whole) == (200, True)
            assert ask(router, SYSTEM, USER).status == 400
