"""Another probe and other strategies while the router runs: on SIGHUP, or when a file changes.

The new ones are loaded beside the old ones and checked as at the start; then one assignment takes them into use. A
request that has begun ends with the old ones. A mistake leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserMistake, UserValueError
from entropy_rft.router.assembly import Loaded, Parts, Readiness, routing_of
from entropy_rft.router.features import FeatureSource, ProbedFeatures, build_features
from entropy_rft.router.loading import Chosen, check_kind, load_chosen
from entropy_rft.router.settings import EMBEDDED, RouterSettings

logger = logging.getLogger("entropy_rft.router")

RELOADABLE = (
    "probe", "force_probe", "strategies", "placement", "mode", "rollout", "rollout_salt", "min_confidence",
    "max_tokens", "client_max_tokens", "client_reasoning_effort",
)  # fmt: skip
"""Settings that may change while the router runs."""

_LOOK_S = 1.0  # between two looks at the files


@dataclass(frozen=True)
class Reading:
    """Where the settings come from.

    Attributes:
        read: reads them again; raises ValueError for a mistake.
        file: of them, if there is one.
    """

    read: Callable[[], RouterSettings]
    file: str | None = None


def merge(old: RouterSettings, new: RouterSettings) -> RouterSettings:
    """`old` with what may change while the router runs as in `new`; what else has changed is logged."""
    fixed = [name for name in type(old).model_fields if name not in RELOADABLE]
    changed = [name for name in fixed if getattr(old, name) != getattr(new, name)]
    if changed:
        logger.warning("these settings have changed, which needs a restart: %s", ", ".join(changed))
    return old.model_copy(update={name: getattr(new, name) for name in RELOADABLE})


class Reloader:
    """Loads again, and takes what it has loaded into use.

    Args:
        reading: of the settings.
        loaded: in use; changed by a reload.
        parts: in use; changed by a reload.
        readiness: gets the new features.
        given: the features were given by the caller, so they stay.
        build: makes other features, as `build_features`.

    Attributes:
        listens: SIGHUP makes it reload.
        on_done: called after each reload, with whether what it loaded is in use.
    """

    def __init__(
        self,
        reading: Reading,
        loaded: Loaded,
        parts: Parts,
        readiness: Readiness,
        given: bool,
        build: Callable[[RouterSettings, Any], FeatureSource] = build_features,
    ) -> None:
        self._reading = reading
        self._loaded = loaded
        self._parts = parts
        self._readiness = readiness
        self._given = given
        self._build = build
        self._wanted = asyncio.Event()
        self._latest = loaded.settings  # what was read last, also if it was refused
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self.listens = False
        self.on_done: Callable[[bool], None] | None = None

    def start(self) -> None:
        """Reload from now on when the settings say so."""
        how = self._loaded.settings.reload
        if how == "off":
            return
        self._tasks.add(asyncio.create_task(self._work()))
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.request)
            self.listens = True
        if how == "watch":
            self._tasks.add(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """Stop reloading, and let go of what is not in use any more."""
        if self.listens:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._retiring, return_exceptions=True)

    def request(self) -> None:
        """Reload soon."""
        self._wanted.set()

    async def reload(self) -> bool:
        """Load again, and use what was loaded; ``False`` after a mistake, which is logged."""
        async with self._one:
            try:
                chosen = await asyncio.get_running_loop().run_in_executor(None, self._load)
                features = await self._features(chosen)
            except Exception as error:
                self._loaded.metrics.reloaded(False)
                said = " ".join(str(error).split()) or type(error).__name__
                ours = not isinstance(error, UserMistake)
                logger.error("not reloaded, the probe and the strategies stay as they were: %s", said, exc_info=ours)
                return False
            self._switch(chosen, features)
            return True

    def _load(self) -> Chosen:
        self._latest = merged = merge(self._loaded.settings, self._reading.read())
        if merged.features.kind != "none" and merged.probe is None:
            raise UserValueError("probe is missing: features need a probe that reads them")
        if not self._given:
            check_kind(merged)
        # A probe that the caller gave has no file: it stays.
        return load_chosen(merged, self._loaded.probe if self._loaded.probe_given else None)

    async def _features(self, chosen: Chosen) -> FeatureSource | None:
        """The source for the new probe: the one in use where it reads the same states of the same model."""
        old, before, new = self._parts.features, self._loaded.probe, chosen.probe
        if self._given or old is None or new is None or before is None or before.digest() == new.digest():
            return old
        settings = chosen.settings
        if settings.features.kind == "vllm":
            raise UserValueError(
                f"probe: the server evaluates {before.digest()[:6]} (features.kind is vllm), so it cannot be changed "
                f"to {new.digest()[:6]} here alone: restart both; strategies can be reloaded"
            )
        if settings.model is None and new.base_model != before.base_model:
            raise UserValueError(f"the probe was made for {new.base_model}, the router runs for {before.base_model}")
        if isinstance(old, ProbedFeatures) and _reads(before) == _reads(new):
            return old.with_probe(new)
        built = await asyncio.get_running_loop().run_in_executor(None, self._build, settings, new)
        try:
            await built.start()
        except BaseException:
            await built.close()
            raise
        return built

    def _switch(self, chosen: Chosen, features: FeatureSource | None) -> None:
        """Use it for all requests that come from now on."""
        parts, loaded, old = self._parts, self._loaded, self._parts.features
        before = parts.generate.routing
        loaded.take(chosen)
        parts.features = self._readiness.features = features
        parts.generate.routing = routing_of(loaded, features, parts.pool, before)
        loaded.metrics.watch_features(features)
        loaded.metrics.reloaded(True)
        if old is not None and old is not features:
            task = asyncio.create_task(_retired(before, old, features))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        logger.info("reloaded: %s", loaded.says())

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            well = await self.reload()
            if self.on_done is not None:
                self.on_done(well)

    async def _watch(self) -> None:
        # Of what was read last, also if it was refused: when the files that it names are right, it may be accepted.
        await watch(lambda: watched(self._latest, self._reading.file), self.request)


async def watch(files: Callable[[], Iterable[Path]], changed: Callable[[], None]) -> None:
    """For ever: call `changed` when the files have changed, and nothing is written to them any more."""

    def look() -> tuple[Any, ...]:
        return tuple(_stamp(path) for path in files())

    loop = asyncio.get_running_loop()
    used = seen = await loop.run_in_executor(None, look)
    while True:
        await asyncio.sleep(_LOOK_S)
        now = await loop.run_in_executor(None, look)
        if now != used and now == seen:
            used = now
            changed()
        seen = now


def watched(settings: RouterSettings, file: str | None) -> Iterable[Path]:
    """The files whose content counts: of the settings, of the probe and of the strategies."""
    if file is not None:
        yield Path(file).expanduser()
    if isinstance(settings.strategies, str):
        yield Path(settings.strategies).expanduser()
    if settings.probe is not None and settings.probe != EMBEDDED:
        from entropy_rft.difficulty.probe_files import CONFIG, WEIGHTS

        for name in (CONFIG, WEIGHTS):
            yield Path(settings.probe).expanduser() / name


def _stamp(path: Path) -> tuple[str, int, int, int] | None:
    """What changes when a file is written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino


def _reads(probe: Any) -> tuple[Any, ...]:
    """What a source of states depends on."""
    return probe.layer, probe.width, probe.fingerprint, probe.base_model


async def _retired(routing: Any, old: FeatureSource, new: FeatureSource | None) -> None:
    """Close a source when the last request that began with it has its decision."""
    await routing.idle()
    if isinstance(old, ProbedFeatures) and isinstance(new, ProbedFeatures) and old.states is new.states:
        await old.retire()
    else:
        await old.close()
