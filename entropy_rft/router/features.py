"""A question's difficulty: its tokens, the model's hidden state of them, the probe, and a cache of the results."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, cast

import orjson
from cachetools import LRUCache

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import Abandoned, FeatureError
from entropy_rft.router.tokenizing import ChatTokenizer, Question

if TYPE_CHECKING:
    from entropy_rft.difficulty import DifficultyProbe
    from entropy_rft.router.in_process import ASGISession
    from entropy_rft.router.settings_parts import FeatureSettings

__all__ = [
    "FeatureError",
    "FeatureSource",
    "HiddenStates",
    "NoFeatures",
    "ProbedFeatures",
    "Question",
    "build_features",
]

Probabilities = tuple[float, float, float]
"""Of EASY, NORMAL and HARD."""

_INLINE_BYTES = 8_192  # a longer question is tokenized in a thread: it would delay every other request
_MAX_TOKENIZING = 64  # questions that wait for that thread
_OWN_SERVER_SECONDS = 120.0
_SERVER_SECONDS = 10.0
_MAX_FLIGHTS = 4_096  # questions in progress, whatever the limits of the source


class FeatureSource(Protocol):
    """Gives the probabilities of a question's difficulties. Used by one event loop."""

    async def start(self) -> None:
        """Get ready; raises ValueError for a mistake in the settings, but not for a server that is down."""

    async def close(self) -> None: ...

    async def ready(self) -> bool:
        """Whether a question would be answered now."""
        ...

    async def proba(self, request: Question) -> Probabilities:
        """Probabilities of EASY, NORMAL and HARD; raises FeatureError. The deadline is the caller's."""
        ...


class HiddenStates(Protocol):
    """Gives the hidden state of a prompt's last token."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ready(self) -> bool: ...

    async def state(self, token_ids: list[int], wanted: Callable[[], bool]) -> Sequence[float]:
        """(D,) float32 of the last token; raises FeatureError. `wanted` tells whether a request still waits for it."""
        ...


class ServedProbes(Protocol):
    """Servers that evaluate the probe themselves."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ready(self) -> bool: ...

    async def probabilities(self, token_ids: list[int], server: str | None) -> Probabilities:
        """Of EASY, NORMAL and HARD; raises FeatureError. `server`: the address of the one to ask; by default any."""
        ...


class NoFeatures:
    """For a router whose clients give the difficulty themselves."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ready(self) -> bool:
        return True

    async def proba(self, request: Question) -> Probabilities:
        raise FeatureError("there is no source of features (features.kind is none)")


@dataclass(slots=True, eq=False)
class _Flight:
    """A question in progress, and how many requests wait for it."""

    server: str | None = None
    waiters: int = 0
    task: asyncio.Task[Probabilities] | None = field(default=None, repr=False)


class ProbedFeatures:
    """A probe over hidden states, with two caches: one by a request's own bytes, one by a question's tokens.

    Both hold digests, so that their size does not depend on the prompts', and no prompt is kept after its request.
    Equal questions that arrive together are computed once. A request that times out does not cancel the question for
    the others that wait for it. A started question is finished and cached, because it may be asked again.

    Args:
        tokenize: tokens of a question; raises FeatureError.
        states: where hidden states come from, or servers that evaluate the probe themselves.
        probe: fitted, and made for that model; ``None`` where servers have it.
        cache_size: questions in the cache; 0 is none.
        knows_system_role: whether the model's chat template supports system messages; ``None`` where unknown.

    Attributes:
        hits: questions that were in the cache.
        misses: questions that were not.

    Raises:
        ValueError: `cache_size` is below 0.
    """

    def __init__(
        self,
        tokenize: Callable[[Question], list[int]],
        states: HiddenStates | ServedProbes,
        probe: DifficultyProbe | None,
        cache_size: int = 10_000,
        knows_system_role: bool | None = None,
    ) -> None:
        self.states = states
        self.knows_system_role = knows_system_role
        self.probe = probe
        self._tokenize = tokenize
        if cache_size < 0:
            raise UserValueError(f"cache_size must be at least 0, got {cache_size}")
        self._keys: LRUCache[bytes, bytes] = LRUCache(cache_size)
        self._probabilities: LRUCache[bytes, Probabilities] = LRUCache(cache_size)
        self._flights: dict[bytes, _Flight] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._tokenizing = 0
        self._closed = False
        self.hits = 0
        self.misses = 0

    async def start(self) -> None:
        await self.states.start()

    def with_probe(self, probe: DifficultyProbe) -> ProbedFeatures:
        """The same source for another probe, with caches of its own; one of the two is retired then, not closed."""
        new = ProbedFeatures(self._tokenize, self.states, probe, int(self._keys.maxsize), self.knows_system_role)
        new.hits, new.misses = self.hits, self.misses  # counters that never fall
        return new

    async def close(self) -> None:
        self._closed = True
        await self.states.close()
        await self.retire()

    async def retire(self) -> None:
        """End what is this object's own, but not the states, which another one uses."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def ready(self) -> bool:
        return await self.states.ready()

    async def proba(self, request: Question) -> Probabilities:
        """Probabilities of EASY, NORMAL and HARD.

        Raises:
            FeatureError: they are not available; one line that gives the cause, without the prompt.
        """
        try:
            raw = orjson.dumps(
                (request.messages, request.text, request.token_ids, request.tools, request.chat_template_kwargs)
            )
        except TypeError as error:  # orjson.JSONEncodeError is one
            raise FeatureError("the question is not JSON") from error
        name = blake2b(raw, digest_size=16).digest()
        key = self._keys.get(name)
        found = None if key is None else self._probabilities.get(key)
        if found is not None:
            self.hits += 1
            return found
        token_ids = await self._tokens(request, len(raw))
        try:
            key = blake2b(array("q", token_ids).tobytes(), digest_size=16).digest()
        except (TypeError, OverflowError) as error:
            raise FeatureError("the prompt holds something other than tokens") from error
        _remember(self._keys, name, key)
        found = self._probabilities.get(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        while True:
            flight = self._flights.get(key) or self._launch(key, token_ids, request.server)
            assert flight.task is not None
            flight.waiters += 1
            try:
                return await asyncio.shield(flight.task)
            except Abandoned:  # it was skipped just before this request began to wait
                if self._flights.get(key) is flight:
                    del self._flights[key]
            except asyncio.CancelledError:
                if self._closed and flight.task.cancelled():
                    raise FeatureError("the feature source is closed") from None
                raise
            finally:
                flight.waiters -= 1

    async def _tokens(self, request: Question, size: int) -> list[int]:
        if size <= _INLINE_BYTES or request.token_ids is not None:
            return self._tokenize(request)
        if self._tokenizing >= _MAX_TOKENIZING:
            raise FeatureError(f"{_MAX_TOKENIZING} long questions are waiting to be tokenized already")
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="router-tokenizer")
        self._tokenizing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._tokenize, request)
        finally:
            self._tokenizing -= 1

    def _launch(self, key: bytes, token_ids: list[int], server: str | None) -> _Flight:
        if len(self._flights) >= _MAX_FLIGHTS:
            raise FeatureError(f"{_MAX_FLIGHTS} questions are waiting for their features already")
        flight = _Flight(server)
        flight.task = asyncio.get_running_loop().create_task(self._fly(key, token_ids, flight))
        self._flights[key] = flight

        def landed(task: asyncio.Task[Probabilities]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it when no request waits

        flight.task.add_done_callback(landed)
        return flight

    async def _fly(self, key: bytes, token_ids: list[int], flight: _Flight) -> Probabilities:
        try:
            found = await self._ask(token_ids, flight)
        except FeatureError:
            raise
        except Exception as error:
            raise FeatureError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        _remember(self._probabilities, key, found)
        return found

    async def _ask(self, token_ids: list[int], flight: _Flight) -> Probabilities:
        if self.probe is None:
            return await cast("ServedProbes", self.states).probabilities(token_ids, flight.server)
        state = await cast("HiddenStates", self.states).state(token_ids, lambda: flight.waiters > 0)
        easy, normal, hard = self.probe.predict_proba(state)[0].tolist()
        return easy, normal, hard


def _remember(cache: LRUCache[bytes, Any], key: bytes, value: Any) -> None:
    if cache.maxsize:  # one of size 0 refuses every value
        cache[key] = value


def _patience_s(settings: FeatureSettings) -> float:
    """How long a server of features may take: past a request's deadline, since a late result is cached for the next."""
    return max(_SERVER_SECONDS, settings.deadline_ms / 1000)


def build_features(
    settings: Any, probe: DifficultyProbe | None, session: ASGISession | None = None, tokenizer: str | None = None
) -> FeatureSource:
    """The source of features that the settings ask for.

    Args:
        settings: `RouterSettings`.
        probe: fitted; ``None`` only where ``features.kind`` is none.
        session: asks the backends where they evaluate the probe; by default they are asked over the network.
        tokenizer: name or directory of another one than the model's.

    Raises:
        ValueError: the probe does not fit the source, or the tokenizer cannot be loaded; one line.
    """
    wanted = settings.features
    if wanted.kind == "none":
        return NoFeatures()
    if probe is None:
        raise UserValueError(
            f"features.kind is {wanted.kind!r}, which needs a probe: give one, or set features.kind to none"
        )
    model = settings.model or probe.base_model
    if not model:
        raise UserValueError("the probe does not name its base model: set model to its name or directory")
    states: HiddenStates | ServedProbes
    if wanted.kind == "local":
        from entropy_rft.router.local_states import LocalStates

        states = LocalStates(
            model,
            layer=probe.layer,
            width=probe.width,
            fingerprint=probe.fingerprint,
            force=settings.force_probe,
            batch_size=wanted.batch_size,
            batch_wait=wanted.batch_wait_ms / 1000,
            threads=wanted.threads,
        )
    elif wanted.kind in ("vllm_pooling", "sglang"):
        from entropy_rft.router.sglang import SGLang
        from entropy_rft.router.vllm_pooling import VLLMPooling

        states = (SGLang if wanted.kind == "sglang" else VLLMPooling)(
            wanted.url,
            model=wanted.model,
            api_key=wanted.api_key(),
            layer=probe.layer,
            width=probe.width,
            batch_size=wanted.batch_size,
            timeout=_patience_s(wanted),
        )
    elif wanted.kind == "vllm":
        from entropy_rft.router.vllm_served import VLLMServed

        servers = {each.url: each.api_key() for each in settings.backends}
        if wanted.url is not None:
            servers, session = {wanted.url: wanted.api_key()}, None
        if not servers:
            raise UserValueError(
                "features.kind vllm asks the backends, and there are none: give backends, or features.url"
            )
        named = wanted.model or settings.served_model_name
        # In the server's own process only the deadline of a request limits the time: its first answer may take long.
        patience = _patience_s(wanted) if session is None else _OWN_SERVER_SECONDS
        states = VLLMServed(servers, model=named, digest=probe.digest(), session=session, timeout=patience)
    else:
        raise UserValueError(f"features.kind must be vllm, vllm_pooling, sglang, local or none, not {wanted.kind!r}")
    tokenize = ChatTokenizer.from_pretrained(tokenizer or model)
    local = None if wanted.kind == "vllm" else probe
    return ProbedFeatures(tokenize, states, local, wanted.cache_size, tokenize.knows_system_role)
