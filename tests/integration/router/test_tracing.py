"""The spans of a request: their tree, the context that comes in and goes out, and what no attribute says."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from processes import router_process
from running import PATIENCE, FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour
from stub_app import StubApp, live

from entropy_rft.router.features import FeatureError, Question
from entropy_rft.router.json_client import JSONClient
from entropy_rft.router.middleware import RouterMiddleware
from entropy_rft.router.settings import load_settings

pytestmark = pytest.mark.integration

SECRET = "Where is the treasure?"
KEY = "sk-hidden"
CHAT = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
EASY = FixedFeatures((0.9, 0.06, 0.04))
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Failing(FixedFeatures):
    async def proba(self, request: Question) -> tuple[float, float, float]:
        raise FeatureError(SECRET)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """A provider can be set only once in a process, and the router uses it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def post(router: RunningRouter, body: Any = CHAT, **headers: str) -> httpx.Response:
    return httpx.post(f"{router.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)


def finished(router: RunningRouter, spans: InMemorySpanExporter, requests: int = 1) -> list[ReadableSpan]:
    """All spans, the requests' own last; they end after their answers."""
    router._wait(
        lambda: sum(span.kind is SpanKind.SERVER for span in spans.get_finished_spans()) == requests,
        lambda: str(spans.get_finished_spans()),
    )
    return list(spans.get_finished_spans())


def one(found: list[ReadableSpan], kind: SpanKind) -> ReadableSpan:
    (span,) = [span for span in found if span.kind is kind]
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_the_tree_of_a_request(stub: Stub, spans: InMemorySpanExporter, stream: bool) -> None:
    with running_router([stub.url], features=EASY, tracing=True) as router:
        post(router, {**CHAT, "stream": stream}, traceparent=PARENT, tracestate="a=b")
        found = finished(router, spans)
    request, features, attempt = (one(found, kind) for kind in (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT))
    assert len(found) == 3
    assert {span.context.trace_id for span in found} == {int(TRACE, 16)}
    assert request.parent is not None
    assert request.parent.span_id == int("b7ad6b7169203331", 16)
    assert request.parent.is_remote
    for child in (features, attempt):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
        assert request.start_time <= child.start_time <= child.end_time <= request.end_time
    asked = stub.requests[-1].headers
    assert asked["traceparent"] == f"00-{TRACE}-{attempt.context.span_id:016x}-01"
    assert asked["tracestate"] == "a=b"
    assert request.name == attempt.name == "POST /v1/chat/completions"
    assert {name: request.attributes[f"entropy_rft.{name}"] for name in ("difficulty", "reason", "arm", "status")} == {
        "difficulty": "easy",
        "reason": "probe",
        "arm": "treatment",
        "status": "200",
    }
    assert request.attributes["entropy_rft.confidence"] == features.attributes["entropy_rft.confidence"] == 0.9
    assert request.attributes["http.response.status_code"] == 200
    assert attempt.attributes["http.response.status_code"] == 200
    assert (attempt.attributes["server.address"], attempt.attributes["server.port"]) == ("127.0.0.1", stub.port)
    assert "entropy_rft.incomplete" not in attempt.attributes
    assert {span.status.status_code for span in found} == {StatusCode.UNSET}


class Asking(FixedFeatures):
    """Asks a server, as `VLLMServed` does."""

    def __init__(self, url: str) -> None:
        super().__init__((0.9, 0.06, 0.04))
        self._url = url

    async def proba(self, request: Question) -> tuple[float, float, float]:
        client = JSONClient(self._url, None, PATIENCE)
        client.open()
        try:
            for traced in (True, False):
                await client.request("POST", "/v1/completions", {"prompt": [1]}, traced=traced)
        finally:
            await client.close()
        return await super().proba(request)


def test_the_question_to_the_probe_is_a_part_of_the_trace(stub: Stub, spans: InMemorySpanExporter) -> None:
    with running_router([stub.url], features=Asking(stub.url), tracing=True) as router:
        assert post(router, traceparent=PARENT).status_code == 200
        features = one(finished(router, spans), SpanKind.INTERNAL)
    asked, untraced, _ = stub.requests
    assert asked.headers["traceparent"] == f"00-{TRACE}-{features.context.span_id:016x}-01"
    assert "traceparent" not in untraced.headers


def test_each_attempt_has_a_span_of_its_own(stub: Stub, spans: InMemorySpanExporter) -> None:
    stub.script(Behaviour.error(503), Behaviour.error(503))
    with running_router([stub.url], tracing=True, retries={"backoff_s": 0.0}) as router:
        assert post(router).status_code == 200
        found = finished(router, spans)
    attempts = sorted((span for span in found if span.kind is SpanKind.CLIENT), key=lambda span: span.start_time)
    assert [span.attributes["http.response.status_code"] for span in attempts] == [503, 503, 200]
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    given = [request.headers["traceparent"].split("-")[2] for request in stub.requests]
    assert given == [f"{span.context.span_id:016x}" for span in attempts]
    assert one(found, SpanKind.SERVER).parent is None  # no context came in: a trace of its own
    assert one(found, SpanKind.SERVER).status.status_code is StatusCode.UNSET


def test_failures_are_errors(stub: Stub, spans: InMemorySpanExporter) -> None:
    stub.script(Behaviour(stop_before=-1, stop="abort"), Behaviour.stream(stop_before=2, stop="abort"))
    with running_router([stub.url], features=Failing((1, 0, 0)), tracing=True) as router:
        post(router)
        post(router, {**CHAT, "stream": True})
        found = finished(router, spans, requests=2)
    assert len(found) == 6
    assert {span.status.status_code for span in found if span.kind is not SpanKind.CLIENT} == {StatusCode.ERROR}
    died, broken = (span for span in found if span.kind is SpanKind.CLIENT)
    assert died.attributes["error.type"] == "ServerDisconnectedError"
    assert died.status.status_code is StatusCode.ERROR
    assert broken.attributes["entropy_rft.incomplete"] is True
    statuses = [span.attributes["entropy_rft.status"] for span in found if span.kind is SpanKind.SERVER]
    assert statuses == ["502", "stream_error"]
    assert SECRET not in "".join(span.to_json() for span in found)


def test_no_attribute_holds_a_text_or_a_key(
    stub: Stub, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_BACKEND_KEY", "sk-backend")
    monkeypatch.setenv("TEST_CLIENT_KEYS", KEY)
    backend = {"url": stub.url, "api_key_env": "TEST_BACKEND_KEY"}
    settings: dict[str, Any] = {"auth": {"keys_env": "TEST_CLIENT_KEYS"}, "tracing": True}
    with running_router([backend], features=EASY, **settings) as router:
        assert post(router, authorization=f"Bearer {KEY}").status_code == 200
        assert post(router, {**CHAT, "difficulty": SECRET}, authorization=f"Bearer {KEY}").status_code == 400
        assert post(router, authorization="Bearer sk-guessed").status_code == 401
        found = finished(router, spans, requests=3)
    said = "".join(span.to_json() for span in found)
    for secret in (SECRET, "treasure", KEY, "sk-backend", "sk-guessed", "Bearer"):
        assert secret not in said
    assert stub.requests[-1].headers["authorization"] == "Bearer sk-backend"


def test_without_tracing_the_context_is_passed_on_as_it_came(stub: Stub, spans: InMemorySpanExporter) -> None:
    with running_router([stub.url], features=EASY) as router:
        post(router, traceparent=PARENT)
    assert stub.requests[-1].headers["traceparent"] == PARENT
    assert spans.get_finished_spans() == ()


def test_inside_a_server_the_attempt_is_the_parent_of_the_servers_spans(spans: InMemorySpanExporter) -> None:
    app = StubApp()
    backends = [{"url": "http://this-server", "name": "vllm"}]
    settings = load_settings(None, {"tracing": True, "backends": backends})

    async def main() -> None:
        async with live(RouterMiddleware(app, settings, features=EASY), app) as client:
            await client.ask(CHAT, headers={"traceparent": PARENT})

    asyncio.run(main())
    found = list(spans.get_finished_spans())
    assert len(found) == 3
    attempt = one(found, SpanKind.CLIENT)
    assert app.requests[-1].headers["traceparent"] == f"00-{TRACE}-{attempt.context.span_id:016x}-01"


def test_the_environment_says_where_spans_go(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own, a collector that speaks OTLP over HTTP, and what is left is sent at the end."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with Stub() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        with router_process(tmp_path, {"backends": [stub.url], "tracing": True}, ready="/ready") as router:
            router.wait_until_ready(60)
            answer = httpx.post(f"{router.url}/v1/chat/completions", content=json.dumps(CHAT), timeout=PATIENCE)
            assert answer.status_code == 200
            router.process.send_signal(signal.SIGTERM)
            assert router.process.wait(PATIENCE) == 0, router.said()
            assert "Traceback" not in router.said()
        (sent,) = [request for request in collector.requests if request.path == "/v1/traces"]
    (resource,) = ExportTraceServiceRequest.FromString(sent.body).resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (named["service.name"], named["deployment.environment"]) == ("entropy_rft_router", "test")
    assert len(resource.scope_spans[0].spans) == 2  # without a probe nothing is asked for features
