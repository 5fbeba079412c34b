"""OpenTelemetry spans: one for each routed request, and below it one for the features and one for each attempt.

`opentelemetry` is imported only where `tracing` is set. A request's trace is in `CURRENT`, so that what works for the
request finds it; without tracing that is one look at a context variable. No attribute holds a text of the client's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from entropy_rft import __version__
from entropy_rft.errors import UserValueError

if TYPE_CHECKING:
    from entropy_rft.router.backends import Backend
    from entropy_rft.router.policy import Decision

CURRENT: ContextVar[RequestTrace | None] = ContextVar("entropy_rft_trace", default=None)
"""Of the request that is being answered; ``None`` without tracing."""

_NAME = "entropy_rft_router"  # the service, where the environment gives it none
_EXPORTERS = ("otlp", "console", "none")
_PROTOCOL = "http/protobuf"
_FAILED = ("feature_error", "feature_timeout")
_SWITCH_SECONDS = 0.0005  # Python's own is 0.005


def check_tracing() -> None:
    """Raise a ValueError, one line, if a package is missing or the environment asks for what is not supported."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise UserValueError(f'tracing needs {error.name}: pip install "entropy_rft[otel]"') from error
    if _exporter() not in _EXPORTERS:
        raise UserValueError(f"OTEL_TRACES_EXPORTER: must be one of {', '.join(_EXPORTERS)}, got {_exporter()!r}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = os.environ.get(name) or _PROTOCOL
        if value != _PROTOCOL:
            raise UserValueError(f"{name}: only {_PROTOCOL} is supported (port 4318 of a collector), got {value!r}")


class Tracing:
    """Makes the spans; how they are sampled and where they go is said by the environment's ``OTEL_…`` variables.

    A provider that the process has already set (vLLM's, or one of ``opentelemetry-instrument``) is used as it is.

    Raises:
        ValueError: as of `check_tracing`.
    """

    def __init__(self) -> None:
        check_tracing()
        from opentelemetry import propagate, trace

        given = trace.get_tracer_provider()
        self._own: Any = _provider() if isinstance(given, trace.ProxyTracerProvider) else None
        self.tracer = (self._own or given).get_tracer("entropy_rft.router", __version__)
        self.trace = trace
        self.inject = propagate.inject
        self._extract = propagate.extract
        self._getter = _getter()

    def request(self, headers: Mapping[bytes, bytes], path: str, endpoint: str, request_id: str) -> RequestTrace:
        """Begin a request's span, as a part of the trace that its headers name."""
        context = self._extract(headers, getter=self._getter)
        attributes = {
            "http.request.method": "POST",
            "url.path": path,
            "entropy_rft.endpoint": endpoint,
            "entropy_rft.request_id": request_id,
        }
        kind = self.trace.SpanKind.SERVER
        span = self.tracer.start_span(f"POST {path}", context, kind, attributes)
        return RequestTrace(self, span, self.trace.set_span_in_context(span, context))

    def close(self) -> None:
        """Send what is left; may take seconds."""
        if self._own is not None:
            self._own.shutdown()


class RequestTrace:
    """The spans of one request.

    Args:
        tracing: makes them.
        span: of the request.
        context: that holds it.
    """

    __slots__ = ("_attempts", "_context", "_features", "_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Any, context: Any) -> None:
        self._tracing = tracing
        self._span = span
        self._context = context
        self._features: Any = span
        self._attempts = 0

    def end(self, status: str, decision: Decision | None) -> None:
        """The request has ended; see `Exchange.status`."""
        span = self._span
        if span.is_recording():
            attributes: dict[str, Any] = {"entropy_rft.status": status}
            if status.isdigit():
                attributes["http.response.status_code"] = int(status)
            if decision is not None:
                attributes |= {**_decided(decision), "entropy_rft.arm": decision.arm}
            span.set_attributes(attributes)  # one call, because each takes a lock
            if status == "stream_error" or status >= "500":
                span.set_status(self._tracing.trace.StatusCode.ERROR)
        span.end()

    @contextmanager
    def features(self) -> Iterator[list[Decision]]:
        """A span for the question to the probe; the decision is to be put into the list."""
        span = self._tracing.tracer.start_span("features", self._context)
        self._features = span
        found: list[Decision] = []
        try:
            yield found
        finally:
            for decision in found:
                span.set_attributes(_decided(decision))
                if decision.reason in _FAILED:
                    span.set_status(self._tracing.trace.StatusCode.ERROR)
            span.end()

    def pass_on(self, headers: MutableMapping[str, str]) -> None:
        """Name the features' span in `headers`, of a request to the server that evaluates the probe."""
        self._tracing.inject(headers, self._tracing.trace.set_span_in_context(self._features, self._context))

    def attempt(self, backend: Backend, method: str, path: str, headers: MutableMapping[str, str]) -> Attempt:
        """Begin the span of a request to a backend, whose `headers` name it as their trace's parent."""
        host, port = _address(backend.url)
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.path": path,
            "server.address": host,
            "server.port": port,
            "entropy_rft.backend": backend.name,
        }
        if self._attempts:
            attributes["http.request.resend_count"] = self._attempts
        self._attempts += 1
        trace = self._tracing.trace
        span = self._tracing.tracer.start_span(f"{method} {path}", self._context, trace.SpanKind.CLIENT, attributes)
        headers.pop("tracestate", None)  # if there is one for the new parent, it is written below
        self._tracing.inject(headers, trace.set_span_in_context(span, self._context))
        return Attempt(span, trace.StatusCode.ERROR)


class Attempt:
    """The span of one request to a backend, which ends with the answer's last byte.

    Args:
        span: of it.
        error: OpenTelemetry's status of a failure.
    """

    __slots__ = ("_error", "_span")

    def __init__(self, span: Any, error: Any) -> None:
        self._span = span
        self._error = error

    def answered(self, status: int) -> None:
        """The head of the answer has come."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 400:
            self._span.set_status(self._error)

    def failed(self, error: BaseException) -> None:
        """There was no answer. The message of an error may hold anything, so only its kind is noted."""
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(self._error)

    def end(self, complete: bool) -> None:
        """Nothing more is read; not `complete`: it was cut off, by the backend or because the client left."""
        if not complete:
            self._span.set_attribute("entropy_rft.incomplete", True)
        self._span.end()


def _decided(decision: Decision) -> dict[str, Any]:
    found: dict[str, Any] = {"entropy_rft.difficulty": decision.label, "entropy_rft.reason": decision.reason}
    if decision.confidence is not None:
        found["entropy_rft.confidence"] = decision.confidence
    return found


@lru_cache(256)
def _address(url: str) -> tuple[str, int]:
    """Host and port of a backend that could be asked."""
    found = urlsplit(url)
    return found.hostname or "", found.port or (443 if found.scheme == "https" else 80)


def _exporter() -> str:
    return os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"


def _provider() -> Any:
    """A provider that reads the sampler, the resource, the limits and the exporter from the environment."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    class Hashed(Resource):
        """A resource that computes its hash once: the exporter asks for it with every span, and it writes JSON."""

        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            self._hash = super().__hash__()

        def __hash__(self) -> int:
            return self._hash

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    found = Resource.create({} if named else {"service.name": _NAME})
    provider = TracerProvider(resource=Hashed(found.attributes, found.schema_url))
    if _exporter() != "none":
        # While the exporter's thread encodes a batch, a request that is ready waits for so long at each of its turns.
        sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
    if _exporter() == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    elif _exporter() == "console":
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    return provider


def _getter() -> Any:
    """Reads the headers of ASGI."""
    from opentelemetry.propagators.textmap import Getter

    class Headers(Getter[Mapping[bytes, bytes]]):
        def get(self, carrier: Mapping[bytes, bytes], key: str) -> list[str] | None:
            value = carrier.get(key.lower().encode("latin-1"))
            return None if value is None else [value.decode("latin-1")]

        def keys(self, carrier: Mapping[bytes, bytes]) -> list[str]:
            return [name.decode("latin-1") for name in carrier]

    return Headers()
