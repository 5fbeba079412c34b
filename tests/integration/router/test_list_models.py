"""/v1/models: a backend's to the client, and what the router reads in it itself."""

from __future__ import annotations

import json

import pytest
from running import running_router
from stub import Stub
from stub_answers import HEAD, MODELS, Behaviour
from wire import connected, exchange, get, request

pytestmark = pytest.mark.integration

ASKED = request(b"", path="/v1/models", length=-1, method="GET")
HANGS = Behaviour(stop_before=HEAD, stop="hang")


def health(timeout_s: float) -> dict[str, object]:
    return {"path": "/health", "timeout_s": timeout_s, "interval_s": 1000}


def test_it_is_passed_on(stub: Stub) -> None:
    with running_router([stub.url]) as router:
        reply = get(router.port, "/v1/models")
        assert (reply.status, reply.body) == (200, MODELS)
        assert reply.headers["x-request-id"]
        stub.gets["/v1/models"] = Behaviour.error(404, "no models here")
        reply = get(router.port, "/v1/models")
        assert (reply.status, reply.error["message"]) == (404, "no models here")
        stub.refuse()
        reply = get(router.port, "/v1/models")
        assert (reply.status, reply.error["code"]) == (502, "backend_unreachable")
        router.assert_idle()


def test_a_client_that_leaves(stub: Stub) -> None:
    with running_router([stub.url], health=health(1000)) as router:
        stub.gets["/v1/models"] = HANGS
        with connected(router.port) as connection:
            connection.sendall(ASKED)
            router.wait_for_metric(1, "entropy_rft_backend_outstanding")
        stub.wait_for(lambda stub: stub.disconnects == 1)
        router.assert_idle()


@pytest.mark.parametrize("answer", [HANGS, Behaviour((b"{", b"}"), stop_before=1, stop="hang")], ids=["head", "body"])
def test_a_backend_that_says_nothing(stub: Stub, answer: Behaviour) -> None:
    with running_router([stub.url], health=health(0.5)) as router:
        stub.gets["/v1/models"] = answer
        reply = exchange(router.port, ASKED)
        assert (reply.status, reply.error["code"]) == (504, "backend_timeout")
        router.assert_idle()


def test_a_backend_is_up_although_it_does_not_name_its_models(stub: Stub) -> None:
    stub.gets["/v1/models"] = HANGS
    with running_router([stub.url], health=health(0.5)) as router:
        assert router.metric("entropy_rft_backend_up") == 1
        assert get(router.port, "/ready").status == 200


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_the_context_length_from_several_pieces(stub: Stub, path: str) -> None:
    text = json.dumps({"object": "list", "data": [{"id": "m", "max_model_len": 5000}]}).encode()
    # There is no event for "the first piece was read": a pause makes that likely, and no other order is wrong.
    stub.gets["/v1/models"] = Behaviour((text[:40], text[40:]), between=0.05)
    with running_router([stub.url], health={**health(30), "path": path}) as router:
        exchange(router.port, request(json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()))
        assert router.server.router.pool.budget() == 5000
