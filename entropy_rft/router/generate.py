"""The hot path: a POST in any dialect, from the first byte to the last."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from time import perf_counter
from typing import Any

from entropy_rft.router.asking import Asking, Sender
from entropy_rft.router.deadline import timeout
from entropy_rft.router.dialects import Dialect
from entropy_rft.router.errors import RouterError
from entropy_rft.router.experiment import UNCHANGED
from entropy_rft.router.guard import CONNECTION
from entropy_rft.router.holders import Holders
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.policy import DIFFICULTY_HEADER, Decision, answers_wanted, check_request, stripped, unchanged
from entropy_rft.router.proxy import Proxy, passed_on
from entropy_rft.router.relay import Relay, Send, Truncated
from entropy_rft.router.routing import Routing
from entropy_rft.router.security import ClientGone, Keys, Receive, parse, read_body, request_id
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.tracing import CURRENT, RequestTrace, Tracing
from entropy_rft.router.upstream import Headers, Upstream

logger = logging.getLogger("entropy_rft.router")

_DIFFICULTY = DIFFICULTY_HEADER.encode()
_APPLIED = b"x-entropy-rft-applied"
_WOULD_APPLY = b"x-entropy-rft-would-apply"
OWN_HEADERS = (
    DIFFICULTY_HEADER,
    "x-entropy-rft-confidence",
    "x-entropy-rft-reason",
    "x-entropy-rft-arm",
    "x-entropy-rft-applied",
    "x-entropy-rft-would-apply",
    "x-entropy-rft-routing-ms",
)
_LINGER_S = 5.0  # how long the rest of a refused body is read, so that its sender can read the error
_MOST_LINGERING = 256  # such bodies at the same time; a further one's connection is closed at once
_INLINE_BYTES = 2**18  # a longer body is checked and parsed in a thread: it would delay every other request
_ID_WITHIN = 65_536  # bytes at an answer's beginning that hold its id


class Exchange:
    """One request and its answer, with the state that other parts need."""

    __slots__ = (
        "decision",
        "dialect",
        "gone",
        "headers",
        "relay",
        "scope",
        "started",
        "status",
        "task",
        "trace",
        "would",
    )

    def __init__(self, scope: Any, headers: dict[bytes, bytes], send: Send, ours: Headers, dialect: Dialect) -> None:
        self.scope = scope
        self.headers = headers
        self.dialect = dialect
        self.relay = Relay(send, ours, dialect)
        self.started = perf_counter()
        self.task = asyncio.current_task()
        self.decision: Decision | None = None
        self.status = "500"
        self.gone = False
        self.trace: RequestTrace | None = None
        self.would: list[str] = []  # the fields that shadow mode would set

    def leave(self) -> None:
        """The client has disconnected: cancel the request."""
        if not self.relay.finished and self.task is not None:
            self.gone = True
            self.task.cancel()

    def abort(self) -> None:
        """Abort the client's connection."""
        connection = self.scope.get(CONNECTION)
        if connection is not None:
            connection.abort()
        else:
            self.leave()


class Generate:
    """Answers requests in every dialect.

    Args:
        settings: of the router.
        routing: decides.
        proxy: asks the backends.
        holders: asks the one that holds a stored answer.
        metrics: counts.
        keys: of the clients.
        draining: whether the router is shutting down, so that connections are not kept alive.
        passed: the headers that a backend gets, from a request's and its id.
        tracing: makes spans.

    Attributes:
        routing: decides about the requests that come from now on.
    """

    def __init__(
        self,
        settings: RouterSettings,
        routing: Routing,
        proxy: Proxy,
        holders: Holders,
        metrics: Metrics,
        keys: Keys,
        draining: Callable[[], bool],
        passed: Callable[[dict[bytes, bytes], bytes], dict[str, str]] = passed_on,
        tracing: Tracing | None = None,
    ) -> None:
        self._limits = settings.limits
        self.id_header = settings.request_id_header.encode()
        self._log_requests = settings.log_requests
        self._log_prompts = settings.log_prompts
        self.routing = routing
        self._proxy = proxy
        self._holders = holders
        self._model = settings.served_model_name
        self._metrics = metrics
        self._keys = keys
        self._draining = draining
        self._passed = passed
        self._tracing = tracing
        self._lingering = 0
        # One thread, so that only one large body at a time takes memory for parsing.
        self._parser = ThreadPoolExecutor(1, "entropy_rft_parser")
        self._numbers = count()
        self._prefix = os.urandom(6).hex()
        self.exchanges: set[Exchange] = set()
        """Requests in progress."""

    async def close(self) -> None:
        """End the thread."""
        self._parser.shutdown(wait=False, cancel_futures=True)

    def request_id(self, headers: dict[bytes, bytes]) -> bytes:
        """The client's own, or a new one."""
        return request_id(headers.get(self.id_header)) or f"{self._prefix}-{next(self._numbers):06x}".encode()

    async def __call__(self, scope: Any, receive: Receive, send: Send, dialect: Dialect) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        identity = self.request_id(headers)
        ours: Headers = [(self.id_header, identity)]
        connection = scope.get(CONNECTION)
        if connection is not None and scope["http_version"] == "1.0":
            send = connection.unchunked(send)
        exchange = Exchange(scope, headers, send, ours, dialect)
        if connection is not None:
            connection.on_lost = exchange.leave
        self.exchanges.add(exchange)
        self._metrics.in_flight.inc()
        if self._tracing is not None:
            exchange.trace = self._tracing.request(headers, dialect.path, dialect.name, identity.decode())
            CURRENT.set(exchange.trace)
        try:
            await self._answer(exchange, receive, identity, ours)
        except RouterError as error:
            exchange.status = str(dialect.errors.status(error.status))
            await self._refuse(exchange, error, receive)
        except ClientGone:
            exchange.status = "499"
        except Truncated:
            exchange.status = "stream_error"
            exchange.abort()
        except asyncio.CancelledError:
            exchange.status = "499"
            if not exchange.gone:
                raise
        except Exception:
            logger.exception("a request failed inside the router", extra={"request_id": identity.decode()})
            exchange.status = "500"
            if exchange.relay.started:
                exchange.abort()
            else:
                await self._refuse(exchange, RouterError(500, "the router failed", "internal_error"), receive)
        finally:
            if connection is not None:
                connection.on_lost = None
            self._leave(exchange)
            self._account(exchange, identity)

    async def _answer(self, exchange: Exchange, receive: Receive, identity: bytes, ours: Headers) -> None:
        limits, headers, relay, dialect = self._limits, exchange.headers, exchange.relay, exchange.dialect
        self._keys.check(headers)
        if len(self.exchanges) > limits.max_requests:
            raise RouterError(503, "the router is busy: try again later", "router_busy", retry_after=1)
        try:
            async with timeout(limits.body_timeout_s):
                raw = await read_body(headers, receive, limits)
        except asyncio.TimeoutError:
            raise RouterError(408, f"the body took longer than {limits.body_timeout_s:g} s", "body_too_slow") from None
        start = perf_counter()
        if len(raw) <= _INLINE_BYTES:
            parsed = parse(raw, limits.max_json_depth)
        else:
            loop = asyncio.get_running_loop()
            parsed = await loop.run_in_executor(self._parser, parse, raw, limits.max_json_depth)
        body = check_request(parsed, dialect.name)
        send = Sender(self._proxy, self._holders, dialect, body, self._passed(headers, identity))
        asking = await self._routed(exchange, body, send, ours, start) if dialect.routed else None
        if self._draining():
            ours.append((b"connection", b"close"))
        if self._log_prompts:
            request = stripped(body, self._model) if asking is None else asking.request
            logger.info("request", extra={"request_id": identity.decode(), "body": request})
        watch = None if CONNECTION in exchange.scope else asyncio.create_task(_watch(receive, exchange))
        upstream = None
        try:
            if asking is None:
                first = None if exchange.decision is None else exchange.decision.backend
                upstream = await send(unchanged(raw, body, self._model), first=first)
            else:
                upstream = await asking.answer()
                self._note_applied(exchange, asking, ours)
            exchange.status = str(dialect.errors.status(upstream.status))
            if upstream.stream:
                self._metrics.first_token.observe(perf_counter() - start)
            if dialect.answer_id is not None and upstream.status == 200:
                found = dialect.answer_id.search(upstream.body, 0, _ID_WITHIN)
                if found:
                    self._remember(found[1].decode("utf-8", "replace"), upstream, exchange.decision)
            await relay.pass_on(upstream)
        finally:
            if upstream is not None:
                upstream.close()
            if watch is not None:
                watch.cancel()
        if relay.died:
            exchange.status = "stream_error"
        elif upstream.status == 200 and exchange.decision is not None:
            decision = exchange.decision
            self._metrics.answered(decision.label, relay.tail, answers_wanted(body, dialect.name), decision.arm)

    async def _routed(
        self, exchange: Exchange, body: dict[str, Any], send: Sender, ours: Headers, start: float
    ) -> Asking | None:
        """Decide, and make the request for the backends; ``None`` where it is passed on unchanged."""
        endpoint, routing = exchange.dialect.name, self.routing
        hint = exchange.headers.get(_DIFFICULTY)
        decision = await routing.decide(body, endpoint, None if hint is None else hint.decode("latin-1"))
        exchange.decision = decision
        asking = None if decision.arm in UNCHANGED else Asking(routing, send, body, decision, exchange.dialect)
        would = routing.would_apply(body, decision, endpoint) if decision.arm == "shadow" else ()
        routing_s = perf_counter() - start
        self._metrics.routing.observe(routing_s)
        if decision.arm != "control":
            ours += [
                (_DIFFICULTY, decision.difficulty.value.encode()),
                (b"x-entropy-rft-confidence", b"%.4f" % (decision.confidence or 0.0)),
            ]
        ours += [
            (b"x-entropy-rft-reason", decision.reason.encode()),
            (b"x-entropy-rft-arm", decision.arm.encode()),
            (b"x-entropy-rft-routing-ms", b"%.3f" % (1000 * routing_s)),
        ]
        if would:
            ours.append((_WOULD_APPLY, ", ".join(shown for _, shown in would).encode()))
            exchange.would = [field for field, _ in would]
        return asking

    def _remember(self, answer: str, upstream: Upstream, decision: Decision | None) -> None:
        """Save what the next turn of a stored answer needs."""
        self._holders.remember(answer, upstream.backend)
        if decision is not None:
            self.routing.remember(answer, decision)

    def _note_applied(self, exchange: Exchange, asking: Asking, ours: Headers) -> None:
        """Show and count what the router set in the request that was answered."""
        found = asking.applied()
        if found:
            ours.append((_APPLIED, ", ".join(shown for _, shown in found).encode()))
        if exchange.decision is not None:
            self._metrics.applied(exchange.decision.difficulty.value, (field for field, _ in found))

    async def _refuse(self, exchange: Exchange, error: RouterError, receive: Receive) -> None:
        """Send an error, and read the rest of the body, so that its sender reads the answer."""
        exchange.task = None  # a client that disconnects now must not cancel this
        given = exchange.headers
        unread = (
            error.status in (401, 408, 413, 415, 503)
            and exchange.decision is None
            and (given.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in given)
        )
        if not unread:
            await exchange.relay.whole(error.status, error.headers(), error.body(exchange.dialect.errors))
            return
        self._leave(exchange)  # a refused request must not count against `max_requests`
        body = error.body(exchange.dialect.errors)
        relay = exchange.relay
        lingers = self._lingering < _MOST_LINGERING
        headers = [*error.headers(), (b"connection", b"close")]
        await relay.whole(error.status, headers, body, complete=not lingers)
        if not lingers:
            return
        self._lingering += 1
        try:
            async with timeout(_LINGER_S):
                await _drain(receive)
        except asyncio.TimeoutError:
            exchange.abort()
            return
        finally:
            self._lingering -= 1
        await relay.end()

    def _leave(self, exchange: Exchange) -> None:
        """It is no longer in progress; may be called again."""
        if exchange in self.exchanges:
            self.exchanges.remove(exchange)
            self._metrics.in_flight.dec()

    def _account(self, exchange: Exchange, identity: bytes) -> None:
        endpoint, decision = exchange.dialect.name, exchange.decision
        difficulty = "none" if decision is None else decision.label
        self._metrics.ended(endpoint, difficulty, exchange.status)
        seconds = perf_counter() - exchange.started
        self._metrics.duration.observe(seconds)
        if exchange.trace is not None:
            exchange.trace.end(exchange.status, decision)
            CURRENT.set(None)
        if decision is not None:
            self._metrics.arms.ended(decision.arm, exchange.status, seconds)
            if exchange.would and exchange.status == "200":
                self._metrics.arms.would_apply(difficulty, exchange.would)
        if self._log_requests:
            logger.info(
                "answered",
                extra={
                    "request_id": identity.decode(),
                    "endpoint": endpoint,
                    "status": exchange.status,
                    "difficulty": difficulty,
                    "reason": None if decision is None else decision.reason,
                    "confidence": None if decision is None else decision.confidence,
                    "arm": None if decision is None else decision.arm,
                    "seconds": round(seconds, 6),
                    **({"would_apply": exchange.would} if exchange.would else {}),
                },
            )


async def _watch(receive: Receive, exchange: Exchange) -> None:
    """For servers that have no `GuardedConnection`."""
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.leave()


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
