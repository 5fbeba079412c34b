"""The parts that decide and answer, put together: for the router as a server, and for the one inside a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from entropy_rft.router.deadline import timeout
from entropy_rft.router.features import FeatureSource, ProbedFeatures
from entropy_rft.router.generate import Generate
from entropy_rft.router.holders import Holders
from entropy_rft.router.loading import Chosen, check_kind, load_chosen
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import Proxy, passed_on
from entropy_rft.router.routing import Routing
from entropy_rft.router.security import Keys
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.tracing import Tracing, check_tracing

_FEATURES_PATIENCE_S = 2.0


class Loaded:
    """What the settings name, loaded.

    Args:
        settings: of the router.
        features: a source other than the one that the settings describe.
        probe: a `DifficultyProbe` other than the one that the settings name.
        process: the metrics hold those of the process too.

    Attributes:
        settings, probe, strategies, placement: as of `Chosen`; a reload changes them.
        probe_given: the probe is not the one that the settings name.
        metrics: with its registry.

    Raises:
        ValueError: the probe or the strategies cannot be loaded; one line.
    """

    def __init__(
        self, settings: RouterSettings, features: FeatureSource | None, probe: Any, *, process: bool = True
    ) -> None:
        if features is None:
            check_kind(settings)
        if settings.tracing:
            check_tracing()
        self.probe_given = probe is not None
        chosen = load_chosen(settings, probe)
        model = settings.model or settings.served_model_name or getattr(chosen.probe, "base_model", None) or ""
        self.metrics = Metrics(model=str(model), process=process)
        self.take(chosen)

    def take(self, chosen: Chosen) -> None:
        """Use this from now on."""
        self.settings = chosen.settings
        self.probe = chosen.probe
        self.strategies = chosen.strategies
        self.placement = chosen.placement
        self.metrics.watch_probe(
            getattr(self.probe, "metrics", {}).get("mean_tokens", {}), getattr(self.probe, "digest", lambda: "")()
        )

    def says(self) -> str:
        """What decides, in one line."""
        if self.probe is None:
            how = "the difficulty that the client names"
        else:
            name = self.settings.probe or "given"
            digest = getattr(self.probe, "digest", lambda: "")()[:6]
            how = f"the difficulty that the probe {name} ({digest}) finds, features: {self.settings.features.kind}"
        said = f"questions get the strategy of {how}; instructions go to {self.placement}"
        instructed = any(strategy.instruction for strategy in self.strategies.values())
        if self.settings.features.kind == "vllm" and self.placement == "system" and instructed:
            said += ", so answers do not reuse their question's prefill (probe train --placement user_end lets them)"
        return said


@dataclass
class Parts:
    """What answers: `generate` the requests that are routed, `proxy` and `holders` the others; and what they use."""

    proxy: Proxy
    holders: Holders
    generate: Generate
    pool: Pool
    features: FeatureSource | None

    async def close(self) -> None:
        """End the features that are in use."""
        if self.features is not None:
            await self.features.close()


def routing_of(loaded: Loaded, features: FeatureSource | None, pool: Pool, before: Routing | None = None) -> Routing:
    """The routing by what is loaded; `before` is the one that it replaces."""
    knows = features.knows_system_role if isinstance(features, ProbedFeatures) else None
    return Routing(
        loaded.settings, loaded.strategies, features, pool, loaded.metrics, knows, loaded.placement, before=before
    )


async def assembled(
    loaded: Loaded,
    features: FeatureSource | None,
    pool: Pool,
    keys: Keys,
    stack: contextlib.AsyncExitStack,
    draining: Callable[[], bool] = lambda: False,
    passed: Callable[[dict[bytes, bytes], bytes], dict[str, str]] = passed_on,
) -> Parts:
    """Start the features and put the parts together.

    Args:
        loaded: of the settings.
        features: not started; ``None``: every question is Normal.
        pool: started.
        keys: of the clients.
        stack: ends what is started here.
        draining: the router is shutting down.
        passed: as of `Generate`.

    Raises:
        ValueError: the features cannot be used; one line.
    """
    settings, metrics = loaded.settings, loaded.metrics
    proxy = Proxy(settings, pool, metrics)
    holders = Holders(proxy, pool)
    routing = routing_of(loaded, features, pool)
    tracing = Tracing() if settings.tracing else None
    if tracing is not None:
        stack.push_async_callback(asyncio.get_running_loop().run_in_executor, None, tracing.close)
    generate = Generate(settings, routing, proxy, holders, metrics, keys, draining, passed, tracing)
    parts = Parts(proxy, holders, generate, pool, features)
    stack.push_async_callback(parts.close)
    stack.push_async_callback(generate.close)
    if features is not None:
        await features.start()
    metrics.watch(pool, features)
    return parts


class Readiness:
    """Whether the parts work now; kept in the metrics.

    Args:
        settings: of the router.
        pool: of the backends.
        features: or ``None``.
        metrics: of the router.

    Attributes:
        features: that are in use now.
    """

    def __init__(self, settings: RouterSettings, pool: Pool, features: FeatureSource | None, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self.features = features
        self._metrics = metrics

    async def keep(self, draining: Callable[[], bool] = lambda: False) -> None:
        """Keep the metrics up to date without requests to /ready."""
        while True:
            await self.missing(draining())
            await asyncio.sleep(self._settings.health.interval_s)

    async def missing(self, draining: bool = False) -> tuple[list[str], bool]:
        """The parts that do not work now, and whether the router is not ready because of them."""
        missing = ["draining"] if draining else []
        if not self._pool.any_up():
            missing.append("backends")
        if self.features is not None:
            try:
                async with timeout(_FEATURES_PATIENCE_S):
                    up = await self.features.ready()
            except Exception:  # after any error it is not ready
                up = False
            self._metrics.feature_up.set(up)
            if not up:
                missing.append("features")
        serious = any(name != "features" or self._settings.ready_needs_features for name in missing)
        self._metrics.ready.set(not serious)
        return missing, serious


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task that runs beside the requests, and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
