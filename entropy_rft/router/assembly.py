"""The parts that decide and answer, put together: for the router as a server, and for the one inside a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from entropy_rft.difficulty.strategies import Difficulty, Placement, Strategy
from entropy_rft.errors import UserValueError
from entropy_rft.router.deadline import timeout
from entropy_rft.router.features import FeatureSource, ProbedFeatures
from entropy_rft.router.generate import Generate
from entropy_rft.router.holders import Holders
from entropy_rft.router.loading import load_probe, placement_of, strategies_of
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import Proxy, passed_on
from entropy_rft.router.routing import Routing
from entropy_rft.router.security import Keys
from entropy_rft.router.settings import RouterSettings

_FEATURES_PATIENCE_S = 2.0


class Loaded:
    """What the settings name, loaded.

    Args:
        settings: of the router.
        features: a source other than the one that the settings describe.
        probe: a `DifficultyProbe` other than the one that the settings name.
        process: the metrics hold those of the process too.

    Attributes:
        probe: or ``None``.
        strategies: one for each difficulty.
        placement: of their instructions.
        metrics: with its registry.

    Raises:
        ValueError: the probe or the strategies cannot be loaded; one line.
    """

    def __init__(
        self, settings: RouterSettings, features: FeatureSource | None, probe: Any, *, process: bool = True
    ) -> None:
        if features is None and settings.probe is not None and "kind" not in settings.features.model_fields_set:
            raise UserValueError(
                "features.kind is missing: a probe needs hidden states: set vllm, local, or vllm_pooling and its url "
                "(none: only clients choose the difficulty)"
            )
        self.settings = settings
        self.probe = probe if probe is not None else load_probe(settings)
        self.strategies: Mapping[Difficulty, Strategy] = strategies_of(settings, self.probe)
        self.placement: Placement = placement_of(settings, self.probe)
        mean_tokens = getattr(self.probe, "metrics", {}).get("mean_tokens", {})
        model = settings.model or settings.served_model_name or getattr(self.probe, "base_model", None) or ""
        self.metrics = Metrics(mean_tokens, str(model), process=process)


@dataclass(frozen=True)
class Parts:
    """What answers: `generate` the requests that are routed, `proxy` and `holders` the others."""

    proxy: Proxy
    holders: Holders
    generate: Generate


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
    if features is not None:
        stack.push_async_callback(features.close)
        await features.start()
    metrics.watch(pool, features)
    knows = features.knows_system_role if isinstance(features, ProbedFeatures) else None
    routing = Routing(settings, loaded.strategies, features, pool, metrics, knows, loaded.placement)
    proxy = Proxy(settings, pool, metrics)
    holders = Holders(proxy, pool)
    generate = Generate(settings, routing, proxy, holders, metrics, keys, draining, passed)
    stack.push_async_callback(generate.close)
    return Parts(proxy, holders, generate)


class Readiness:
    """Whether the parts work now; kept in the metrics.

    Args:
        settings: of the router.
        pool: of the backends.
        features: or ``None``.
        metrics: of the router.
    """

    def __init__(self, settings: RouterSettings, pool: Pool, features: FeatureSource | None, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._features = features
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
        if self._features is not None:
            try:
                async with timeout(_FEATURES_PATIENCE_S):
                    up = await self._features.ready()
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
