"""Asks a backend, and retries on another one only if nothing can have been generated; returns the open answer.

A generation costs time and money, and one that crashes an engine would crash the next one too. So a request is retried
only if the generation cannot have started: there was no connection, or the backend declined (429, 503) or redirected.
After any other failure, such as a time-out, a 500 or a lost connection, the client gets the error. A request that
generates nothing (GET) may be retried after any failure.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from time import time
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from entropy_rft.retry_after import retry_after_seconds
from entropy_rft.router.backends import Backend
from entropy_rft.router.dialects import BY_PATH
from entropy_rft.router.errors import OPENAI, ErrorShape, RouterError
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.tracing import CURRENT, Attempt
from entropy_rft.router.upstream import Headers, Upstream

logger = logging.getLogger("entropy_rft.router")

REFUSED = (400, 422)
"""Statuses of backends for a field or a role that they do not know."""
# How a refusal names a limit on the thinking.
_BUDGET = (b"thinking_token_budget", b"budget_tokens")
_DECLINED = (429, 503)  # nothing was generated
_BROKEN = (500, 502, 503, 504)
_IDEMPOTENT = ("GET", "HEAD")
# No connection, or one that was lost.
_GONE = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)
_SLOWEST_BACKOFF_S = 5.0
# A connection that fails by its time limit fails after this many times the limit only where this process stood still.
_STANDSTILL = 1.5


class Proxy:
    """Sends requests to the pool's backends.

    Args:
        settings: of the router.
        pool: started.
        metrics: retries are counted there.
    """

    def __init__(self, settings: RouterSettings, pool: Pool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._attempts = settings.retries.attempts
        self._backoff_s = settings.retries.backoff_s
        self._between_s = settings.timeouts.between_bytes_s
        self._standstill_s = _STANDSTILL * settings.timeouts.connect_s
        self._limit = settings.limits.max_buffered_bytes
        self._urls = {
            (backend, path): URL(backend.url + path, encoded=True)
            for backend in pool.backends
            for path in (*BY_PATH, "/v1/models")
        }
        self._heads = {
            backend: CIMultiDict({"content-type": "application/json", "accept": "*/*", **backend.headers})
            for backend in pool.backends
        }

    async def ask(
        self,
        method: str,
        path: str,
        payload: bytes | None,
        headers: dict[str, str],
        errors: ErrorShape = OPENAI,
        among: Collection[Backend] | None = None,
        without_budget: Callable[[], bytes] | None = None,
        first: Backend | None = None,
    ) -> Upstream:
        """The first answer that is final, or the last one when the attempts are over.

        Final is every answer but 429 and 503; for GET, any below 500 but 429.

        Args:
            method: of HTTP.
            path: the backend's, with its query.
            payload: the body.
            headers: of the request, beside the backend's own.
            errors: their shape, for a backend's error.
            among: the only backends that may be asked; ``None``: all.
            without_budget: makes the payload for a backend that does not know a limit on the thinking, where `payload`
                has one. Which backends do is found out once: by a refusal, and an answer to the other payload.
            first: the backend that is asked first, if it may be asked now.

        Raises:
            RouterError: no backend may be asked now, or none gave an answer.
        """
        loop = asyncio.get_running_loop()
        others = [] if among is None else [each for each in self._pool.backends if each not in among]
        tried, resorts = list(others), list[Backend]()
        outcome: RouterError | Upstream | None = None
        for attempt in range(self._attempts):
            backend = None if attempt or first is None or first.blocked_s(loop.time()) > 0 else first
            backend = backend or self._pool.choose(loop.time(), tried)
            resort = None if backend else self._pool.last_resort(loop.time(), [*tried, *resorts])
            backend = backend or resort
            if backend is None and len(tried) > len(others):  # no other one is left: retry the same ones, after a pause
                await self._pause(attempt)
                tried = list(others)
                backend = self._pool.choose(loop.time(), tried)
            if backend is None:
                break
            if attempt:
                self._metrics.retries.inc()
            if without_budget is None:
                outcome, generated = await self._attempt(backend, method, path, payload, headers, errors, loop)
            else:
                outcome, generated = await self._limited(
                    backend, method, path, payload, headers, errors, loop, without_budget
                )
            if isinstance(outcome, Upstream) and outcome.status not in (429, *_BROKEN):
                return outcome
            if generated and method not in _IDEMPOTENT:
                break
            if resort is None:
                tried.append(backend)
                continue
            resorts.append(resort)
            if isinstance(outcome, RouterError):
                outcome = None  # it is still gone, as its open breaker says
        if isinstance(outcome, Upstream):
            return outcome
        raise outcome or self._unavailable(loop.time(), among)

    async def _limited(
        self,
        backend: Backend,
        method: str,
        path: str,
        payload: bytes | None,
        headers: dict[str, str],
        errors: ErrorShape,
        loop: asyncio.AbstractEventLoop,
        without_budget: Callable[[], bytes],
    ) -> tuple[Upstream | RouterError, bool]:
        """An attempt with a limit on the thinking; if the backend does not know it, with the other payload.

        What a backend knows is remembered for each path: the field of the limit is another one in each dialect.
        """
        refusal, known = None, backend.limits_thinking.get(path)
        if known is not False:
            outcome, generated = await self._attempt(backend, method, path, payload, headers, errors, loop)
            if not isinstance(outcome, Upstream):
                return outcome, generated
            if not (outcome.status in REFUSED and (known is None or _names_budget(outcome))):
                if outcome.status == 200:
                    backend.limits_thinking[path] = True
                return outcome, generated
            refusal = outcome
            self._metrics.retries.inc()
        other, generated = await self._attempt(backend, method, path, without_budget(), headers, errors, loop)
        if isinstance(other, Upstream):
            other.thinking_limited = False
        if refusal is None:
            return other, generated
        if isinstance(other, Upstream) and other.status in REFUSED and not _names_budget(refusal):
            return refusal, True  # it has another cause
        if _names_budget(refusal) or (isinstance(other, Upstream) and other.status == 200):
            backend.limits_thinking[path] = False
            logger.info(
                "a backend does not know a limit on the thinking: it gets a limit on the answer",
                extra={"backend": backend.name, "path": path},
            )
        return other, generated

    async def _attempt(
        self,
        backend: Backend,
        method: str,
        path: str,
        payload: bytes | None,
        headers: dict[str, str],
        errors: ErrorShape,
        loop: asyncio.AbstractEventLoop,
    ) -> tuple[Upstream | RouterError, bool]:
        """The result, and whether something can have been generated."""
        url = self._urls.get((backend, path))
        if url is None:
            url = URL(backend.url + path, encoded=True)
        head, trace = self._heads[backend], CURRENT.get()
        if headers or trace is not None:
            head = head.copy()
            head.update(headers)
        span = None if trace is None else trace.attempt(backend, method, path, head)
        start, most_s = loop.time(), self._standstill_s + self._pool.slack_s
        known = backend.blocked_s(start) > 0  # to be gone: its breaker is open
        trial = backend.begin(start)
        upstream: Upstream | None = None
        try:
            response = await self._pool.request(method, url, payload, head)
            upstream = Upstream(backend, trial, response, self._between_s, span)
            await upstream.fill(self._limit)
            return self._judged(upstream, errors, loop.time())
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            if span is not None:
                span.failed(error)
            self._end(backend, trial, upstream, span)
            if not (isinstance(error, aiohttp.ConnectionTimeoutError) and loop.time() - start > most_s):
                backend.failed(loop.time(), gone=isinstance(error, _GONE))
            failure = _failure(backend, error)
            logger.log(
                logging.DEBUG if known else logging.WARNING,
                failure.message,
                extra={"backend": backend.name, "cause": f"{type(error).__name__}: {error}"},
            )
            return failure, not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        except BaseException:  # the client disconnected, or the router is shutting down
            self._end(backend, trial, upstream, span)
            raise

    @staticmethod
    def _judged(upstream: Upstream, errors: ErrorShape, now: float) -> tuple[Upstream | RouterError, bool]:
        """Update the backend's state by its answer: the result, and whether something can have been generated."""
        backend, status = upstream.backend, upstream.status
        if 300 <= status < 400:  # it is not followed: requests go only to the configured addresses
            upstream.close()
            backend.failed(now)
            return RouterError(502, f"backend {backend.name} redirects: its url is not right", "backend_garbled"), False
        if status in _BROKEN:
            backend.failed(now)
        else:
            backend.succeeded()
        if status < 400:
            return upstream, True
        if status == 429:
            pause = retry_after_s(upstream.headers)
            if pause is not None:
                backend.cool(now, pause)
        elif status >= 500:
            logger.warning("a backend answered with an error", extra={"backend": backend.name, "status": status})
        # Errors are small: they are sent whole, in the client's dialect, and the backend is released before.
        upstream.body = errors.backend(status, upstream.body)
        upstream.headers = [(n, v) for n, v in upstream.headers if n not in (b"content-type", b"content-encoding")]
        upstream.headers.append((b"content-type", b"application/json"))
        upstream.stream = False
        upstream.close()
        upstream.complete = True
        return upstream, status not in _DECLINED

    @staticmethod
    def _end(backend: Backend, trial: int, upstream: Upstream | None, span: Attempt | None) -> None:
        if upstream is not None:
            upstream.close()
        else:
            backend.ended(trial)
            if span is not None:
                span.end(complete=False)

    async def _pause(self, attempt: int) -> None:
        seconds = min(self._backoff_s * 2 ** (attempt - 1), _SLOWEST_BACKOFF_S)
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))

    def _unavailable(self, now: float, among: Collection[Backend] | None) -> RouterError:
        wait = self._pool.wait_s(now, among)
        if self._pool.cooling(now, among):
            return RouterError(429, "every backend asks for a pause: try again later", "rate_limited", retry_after=wait)
        if all(backend.outstanding >= backend.limit for backend in among or self._pool.backends):
            return RouterError(503, "every backend is busy: try again later", "backends_busy", retry_after=wait)
        return RouterError(503, "no backend is available: try again later", "no_backend", retry_after=wait)


def _names_budget(refusal: Upstream) -> bool:
    return any(name in refusal.body for name in _BUDGET)


def _failure(backend: Backend, error: BaseException) -> RouterError:
    """The error for the client, if no later attempt gives an answer; the cause is only logged."""
    if backend.inside:
        return RouterError(500, "the server failed to answer", "internal_error")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return RouterError(504, f"backend {backend.name} accepted no connection in time", "backend_timeout")
    if isinstance(error, asyncio.TimeoutError):
        return RouterError(504, f"backend {backend.name} did not answer in time", "backend_timeout")
    if isinstance(error, aiohttp.ClientConnectorError):
        return RouterError(502, f"backend {backend.name} cannot be reached", "backend_unreachable")
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return RouterError(502, f"backend {backend.name} did not answer in HTTP", "backend_garbled")
    return RouterError(502, f"backend {backend.name} died before it had answered", "backend_died")


def retry_after_s(headers: Headers) -> float | None:
    """Seconds that a Retry-After header asks for, given in seconds or as a date; ``None`` where there is none."""
    value = next((value.decode("latin-1") for name, value in headers if name == b"retry-after"), None)
    return retry_after_seconds(value, time())


def passed_on(headers: dict[bytes, bytes], request_id: bytes) -> dict[str, str]:
    """The headers of a request that a backend gets: its id and its trace, never its key."""
    passed: dict[str, Any] = {"x-request-id": request_id.decode("ascii")}
    for name in (b"traceparent", b"tracestate"):
        if name in headers:
            passed[name.decode()] = headers[name].decode("latin-1")
    return passed
