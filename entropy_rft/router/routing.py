"""Makes a decision, and the request for the backend, from a parsed request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from entropy_rft.difficulty.strategies import Difficulty, Placement, Strategy
from entropy_rft.router import policy
from entropy_rft.router.affinity import affinity_key
from entropy_rft.router.backends import Backend
from entropy_rft.router.deadline import timeout
from entropy_rft.router.dialects import DIALECTS
from entropy_rft.router.experiment import Experiment
from entropy_rft.router.features import FeatureError, FeatureSource
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.policy import Budget, Decision, Endpoint
from entropy_rft.router.pool import Pool
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.tokenizing import Question
from entropy_rft.router.tracing import CURRENT
from entropy_rft.router.turns import Turns

logger = logging.getLogger("entropy_rft.router")
_QUIET_S = 10.0  # between two log lines about a feature source that fails


class Routing:
    """Decides about requests; a failure of the feature source fails no request.

    Args:
        settings: of the router.
        strategies: one for each difficulty.
        features: ``None`` makes every question Normal.
        pool: its context length is the budget where none is set.
        metrics: reasons and latencies go there.
        knows_system_role: whether the model's chat template supports system messages; ``None``: found out from the
            backends' answers.
        placement: of the instruction, where the chat template supports system messages.
        before: the routing that this one replaces; what it has learned is taken over.
    """

    def __init__(
        self,
        settings: RouterSettings,
        strategies: Mapping[Difficulty, Strategy],
        features: FeatureSource | None,
        pool: Pool,
        metrics: Metrics,
        knows_system_role: bool | None = None,
        placement: Placement = "system",
        *,
        before: Routing | None = None,
    ) -> None:
        self._settings = settings
        self._strategies = strategies
        self._features = features
        self._pool = pool
        self._metrics = metrics
        self._deadline_s = settings.features.deadline_ms / 1000
        self._last_complaint = float("-inf")
        self.experiment: Experiment = Experiment(settings, None if before is None else before.experiment)
        self._deciding = 0
        self._idle: asyncio.Event | None = None
        self._asks_backends = settings.features.kind == "vllm" and settings.features.url is None
        if knows_system_role is None and before is not None:
            knows_system_role = before._knows_system_role
        self._knows_system_role: bool | None = knows_system_role
        self._placement: Placement = placement
        self._affine = settings.affinity == "conversation"
        kept = None if before is None else before._turns
        self._turns: Turns | None = (kept or Turns()) if settings.keep_difficulty else None
        self._takes_effort = settings.client_reasoning_effort == "difficulty"
        if knows_system_role is False and before is None:
            self._say_placement()

    async def decide(self, body: Mapping[str, Any], endpoint: Endpoint, header: str | None) -> Decision:
        """The difficulty of a checked request, and why.

        Raises:
            RouterError: the client gives an unknown difficulty.
        """
        asked = DIALECTS[endpoint].question(body) if self._affine else None
        self._deciding += 1
        try:
            decision = await self._decided(body, endpoint, header, asked)
        finally:
            self._deciding -= 1
            if self._idle is not None and not self._deciding:
                self._idle.set()
        if asked is not None:
            # Not before the probe has answered: requests that were sent meanwhile count for the bound of the load.
            decision = replace(decision, backend=self._backend(asked) or decision.backend)
        return decision

    async def idle(self) -> None:
        """Wait until no decision is in progress, after another routing has taken this one's place."""
        if self._deciding:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def _backend(self, asked: Question) -> Backend | None:
        """Of a request's conversation, where it can be read as one."""
        key = affinity_key(asked.messages)
        return None if key is None else self._pool.affine(key, asyncio.get_running_loop().time())

    async def _decided(
        self, body: Mapping[str, Any], endpoint: Endpoint, header: str | None, question: Question | None
    ) -> Decision:
        dialect = DIALECTS[endpoint]
        asked = policy.asked_difficulty(body, header)
        place = self.experiment.place(body, dialect)
        arm = self.experiment.arm(place, asked is not None)
        if arm == "control":
            return Decision(Difficulty.NORMAL, None, "control", arm=arm, place=place)
        # An effort is the backend's field too: it does not take a request out of its arm, as a difficulty does.
        effort = dialect.effort(body) if self._takes_effort else None
        asked = policy.asked_difficulty(body, header, effort)
        if asked is not None:
            return Decision(asked, 1.0, "client", arm=arm, place=place)
        return replace(await self._found(body, endpoint, question), arm=arm, place=place)

    async def _found(self, body: Mapping[str, Any], endpoint: Endpoint, asked: Question | None) -> Decision:
        """By the probe, where it can be asked."""
        if self._features is None:
            decision = policy.normal("no_probe")
        else:
            reason = policy.unprobed(body, endpoint)
            if reason is None:
                asked = asked or DIALECTS[endpoint].question(body)
                decision = await self._probed(self._features, body, endpoint, asked)
            else:
                decision = self._kept(body, endpoint, policy.normal(reason), asked)
        if decision.reason not in ("probe", "turn"):
            self._metrics.fell_back(decision.reason)
        return decision

    async def _probed(
        self, features: FeatureSource, body: Mapping[str, Any], endpoint: Endpoint, asked: Question
    ) -> Decision:
        trace = CURRENT.get()
        if trace is None:
            return await self._asked(features, body, endpoint, asked)
        with trace.features() as found:
            found.append(await self._asked(features, body, endpoint, asked))
            return found[0]

    async def _asked(
        self, features: FeatureSource, body: Mapping[str, Any], endpoint: Endpoint, asked: Question
    ) -> Decision:
        backend = None
        if self._asks_backends:
            backend = self._backend(asked) if self._affine else None
            backend = backend or self._pool.choose(asyncio.get_running_loop().time())
        return self._kept(body, endpoint, await self._answered(features, asked, backend), asked)

    def _kept(
        self, body: Mapping[str, Any], endpoint: Endpoint, decision: Decision, asked: Question | None = None
    ) -> Decision:
        """`decision`, or the conversation's earlier one where that was higher.

        Args:
            asked: the request's question, where it was made already.
        """
        if self._turns is None:
            return decision
        dialect = DIALECTS[endpoint]
        answer = dialect.continues(body)
        if answer is not None:
            return self._turns.continued(answer, decision)
        return self._turns.kept((asked or dialect.question(body)).messages, decision)

    def remember(self, answer: str, decision: Decision) -> None:
        """Save what a request needs that continues the answer with this id."""
        self.experiment.remember(answer, decision.place)
        if self._turns is not None and decision.reason not in ("client", "control"):
            self._turns.remember(answer, decision)

    async def _answered(self, features: FeatureSource, asked: Question, backend: Backend | None) -> Decision:
        start = perf_counter()
        if backend is not None:
            asked = replace(asked, server=backend.url)
        try:
            async with timeout(self._deadline_s):
                proba = await features.proba(asked)
        except asyncio.TimeoutError:
            return self._unknown("feature_timeout", f"no answer within {1000 * self._deadline_s:g} ms")
        except FeatureError as error:
            return self._unknown("feature_error", str(error))
        except Exception as error:  # a failure of the source must not fail the request
            return self._unknown("feature_error", f"{type(error).__name__}: {error}")
        finally:
            self._metrics.feature.observe(perf_counter() - start)
        return replace(policy.from_probabilities(proba, self._settings.min_confidence), backend=backend)

    def _unknown(self, reason: str, cause: str) -> Decision:
        now = perf_counter()
        if now - self._last_complaint > _QUIET_S:
            self._last_complaint = now
            logger.warning("the probe could not be asked: routed as normal", extra={"reason": reason, "cause": cause})
        return policy.normal(reason)

    @property
    def placement(self) -> Placement:
        """Where instructions go."""
        return "user_end" if self._knows_system_role is False else self._placement

    def rewritten(
        self,
        body: Mapping[str, Any],
        decision: Decision,
        endpoint: Endpoint,
        placement: Placement,
        *,
        thinking: bool,
    ) -> tuple[dict[str, Any], bool]:
        """The request for the backend, and whether only the router set its token limit (see `policy.rewrite`)."""
        settings = self._settings
        budget = Budget(
            settings.max_tokens or self._pool.budget(),
            settings.max_tokens is not None,
            settings.client_max_tokens == "budget",
        )
        strategy, model = self._strategies[decision.difficulty], settings.served_model_name
        return policy.rewrite(
            body, strategy, budget, endpoint, model, placement, thinking=thinking, takes_effort=self._takes_effort
        )

    def would_apply(self, body: Mapping[str, Any], decision: Decision, endpoint: Endpoint) -> Sequence[tuple[str, str]]:
        """What the strategy would set in a request that is passed on unchanged; see `policy.applied`."""
        try:
            request, _ = self.rewritten(body, decision, endpoint, self.placement, thinking=True)
            return policy.applied(body, request, self.placement, endpoint)
        except Exception:  # the request does not depend on it
            logger.exception("what the strategy would set could not be found out")
            return ()

    def may_lack_system_role(self, body: Mapping[str, Any], request: Mapping[str, Any], endpoint: Endpoint) -> bool:
        """Whether our system message in `request` may be the cause of its refusal."""
        return self._knows_system_role is None and self._added_system(body, request, endpoint)

    def learn_system_role(
        self, body: Mapping[str, Any], request: Mapping[str, Any], endpoint: Endpoint, known: bool
    ) -> None:
        """Save what an answer shows: our system message was accepted (`known`), or it was the cause of a refusal."""
        if self._knows_system_role is not None or (known and not self._added_system(body, request, endpoint)):
            return
        self._knows_system_role = known
        if not known:
            self._say_placement()

    @staticmethod
    def _added_system(body: Mapping[str, Any], request: Mapping[str, Any], endpoint: Endpoint) -> bool:
        """Whether the request has a system message that is not the client's."""
        opens = DIALECTS[endpoint].opens_with_system
        return opens(request) and not opens(body)

    @staticmethod
    def _say_placement() -> None:
        logger.info("the chat template does not support a system role: instructions go to the end of the user's turn")
