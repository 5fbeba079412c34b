"""All backends: which one gets the next request, and the checks that tell which are up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from entropy_rft.router.affinity import affine
from entropy_rft.router.backends import Backend
from entropy_rft.router.lag import Lag
from entropy_rft.router.settings import DEFAULT_BUDGET, RouterSettings

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from entropy_rft.router.in_process import ASGISession

logger = logging.getLogger("entropy_rft.router")
_MODELS_LIMIT = 2**20  # bytes of /v1/models that are read
# A connection takes several turns of the loop: where it is later than this, the time limit is longer by so many turns.
_LATE_S = 0.05
_TURNS = 10
_MOST_SLACK_S = 30.0


class Pool:
    """Backends and their client session.

    Args:
        settings: of the router.
        backends: state of each, in the configured order.
        session: asks them; by default one is opened that does so over the network. It is closed with the pool.

    Attributes:
        elsewhere: set where another process checks the backends: waits until it has told what it found, and applies
            what it tells from then on.
    """

    def __init__(
        self, settings: RouterSettings, backends: Sequence[Backend], session: ASGISession | None = None
    ) -> None:
        self.settings = settings
        self.backends = list(backends)
        self.session: aiohttp.ClientSession | ASGISession
        if session is not None:
            self.session = session
        self.elsewhere: Callable[[Pool], Awaitable[None]] | None = None
        self.lag = Lag()
        self._turn = 0
        self._checks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the session and check every backend once, then keep checking."""
        if not hasattr(self, "session"):
            self.session = self._opened()
        self.lag.start()
        if self.elsewhere is not None:
            await self.elsewhere(self)
            return
        await asyncio.gather(*(self._check(backend) for backend in self.backends))
        self._checks = asyncio.create_task(self._keep_checking())

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        from entropy_rft.router.unreadable import reporting

        timeouts = self.settings.timeouts
        return aiohttp.ClientSession(
            # vLLM closes a connection after 5 s of idleness: ours ends before, so that no request uses a closed one.
            connector=reporting(aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=4)),
            timeout=self._timeout(timeouts.connect_s),
            # Answers are passed on as they arrive. No compression is requested.
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent", "Accept"),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            read_bufsize=2**18,
        )

    def _timeout(self, connect_s: float) -> aiohttp.ClientTimeout:
        import aiohttp

        # `connect` includes the DNS lookup, `sock_connect` does not.
        first_byte_s = self.settings.timeouts.first_byte_s
        return aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=first_byte_s, ceil_threshold=60)

    @property
    def slack_s(self) -> float:
        """Seconds that a connection may take longer now because this process itself is late; mostly 0."""
        return min(_MOST_SLACK_S, _TURNS * self.lag.seconds) if self.lag.seconds > _LATE_S else 0.0

    def request(self, method: str, url: URL, payload: bytes | None, headers: Mapping[str, str]) -> Any:
        """Ask a backend: to be awaited for its answer, whose head has arrived."""
        late = {} if not self.slack_s else {"timeout": self._timeout(self.settings.timeouts.connect_s + self.slack_s)}
        return self.session.request(method, url, data=payload, headers=headers, allow_redirects=False, **late)

    async def close(self) -> None:
        """Stop the checks and close all connections."""
        self.lag.close()
        if self._checks is not None:
            self._checks.cancel()
            await asyncio.gather(self._checks, return_exceptions=True)
        await self.session.close()

    def choose(self, now: float, without: Collection[Backend] = ()) -> Backend | None:
        """The backend with the fewest outstanding requests for its weight; ``None`` when none may be asked now.

        A backend that was down in the last check is chosen only when all were, because the check itself may be wrong.
        """
        best: Backend | None = None
        best_load = 0.0
        count = len(self.backends)
        self._turn = turn = (self._turn + 1) % count if count else 0
        for offset in range(count):  # backends of equal load alternate
            backend = self.backends[(turn + offset) % count]
            if backend in without or backend.blocked_s(now) > 0:
                continue
            load = (backend.outstanding + 1) / backend.weight + (1e9 if backend.up is False else 0.0)
            if best is None or load < best_load:
                best, best_load = backend, load
        return best

    def last_resort(self, now: float, without: Collection[Backend] = ()) -> Backend | None:
        """One that only its breaker blocks, and that may be well again.

        For when `choose` finds none: without it, a backend that was started again is asked only after the next check,
        and one that is tried by a long generation only after that.
        """
        back = [each for each in self.backends if each not in without and each.may_be_back(now)]
        return min(back, key=lambda backend: backend.outstanding / backend.weight, default=None)

    def affine(self, key: bytes, now: float) -> Backend | None:
        """The backend of the conversation that begins with `key`; ``None`` when none may be asked now."""
        return affine(key, [each for each in self.backends if each.up is not False and each.blocked_s(now) <= 0])

    def wait_s(self, now: float, among: Collection[Backend] | None = None) -> float:
        """Seconds after which a backend, of all or `among` these, may be asked again."""
        return min((backend.blocked_s(now) for backend in among or self.backends), default=1.0)

    def cooling(self, now: float, among: Collection[Backend] | None = None) -> bool:
        """Whether every backend, of all or `among` these, has asked for a pause (429)."""
        backends = among or self.backends
        return bool(backends) and all(backend.cooling_s(now) > 0 for backend in backends)

    def any_up(self) -> bool:
        """Whether at least one backend answered its last check."""
        return any(backend.up for backend in self.backends)

    def budget(self) -> int:
        """Tokens that an answer may have where no limit is set: the shortest context of the backends, else 16384."""
        return min((b.max_model_len for b in self.backends if b.max_model_len), default=DEFAULT_BUDGET)

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(self.settings.health.interval_s)
            await asyncio.gather(*(self._check(backend) for backend in self.backends))

    async def _check(self, backend: Backend) -> None:
        health = self.settings.health
        was = backend.up
        try:
            healthy = await self._get(backend, health.path) is not None
        except Exception as error:  # no answer of a server may stop the checks
            healthy, reason = False, f"{type(error).__name__}: {error}"
        else:
            reason = "" if healthy else f"{health.path} answered with an error"
        backend.checked(healthy, asyncio.get_running_loop().time())
        if healthy and backend.max_model_len is None and health.path != "/v1/models":
            try:
                await self._get(backend, "/v1/models")
            except Exception as error:  # only the context length is missing, until the next check
                cause = f"{type(error).__name__}: {error}"
                logger.debug("no models from a backend", extra={"backend": backend.name, "cause": cause})
        if healthy != was:
            log = logger.info if healthy else logger.warning
            log("backend is %s", "up" if healthy else "down", extra={"backend": backend.name, "reason": reason})

    async def _get(self, backend: Backend, path: str) -> bytes | None:
        """The body, or ``None`` for an error; the context length in /v1/models is saved."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self.settings.health.timeout_s + self.slack_s)
        async with self.session.get(
            backend.url + path, headers=backend.headers, timeout=timeout, allow_redirects=False
        ) as response:
            if response.status >= 400:
                return None
            body = b""
            while len(body) < _MODELS_LIMIT and (piece := await response.content.readany()):
                body += piece
        if path == "/v1/models":
            backend.max_model_len = context_length(body, self.settings.served_model_name)
        return body


def context_length(models: bytes, name: str | None) -> int | None:
    """The `max_model_len` that vLLM adds to /v1/models: of the model `name`, or of the first that has one."""
    try:
        listed: Any = orjson.loads(models)["data"]
        lengths = [(m.get("id"), m.get("max_model_len")) for m in listed]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    known = [(model, length) for model, length in lengths if type(length) is int and length > 0]
    return next((length for model, length in known if model == name), known[0][1] if known else None)
