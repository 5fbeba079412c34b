"""Probabilities from the vLLM servers that answer: each evaluates the probe (`entropy_rft.difficulty.served`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from entropy_rft.difficulty.served.wire import DIGEST_DIGITS, decoded, request_body
from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError
from entropy_rft.router.first_check import FirstCheck
from entropy_rft.router.json_client import JSONClient, said

if TYPE_CHECKING:
    from entropy_rft.router.in_process import ASGISession

logger = logging.getLogger(__name__)

_TOKENS = [1]  # any one token: sent once, to check that a server evaluates the probe
_READY_SECONDS = 2.0


class VLLMServed:
    """Asks ``POST URL/v1/completions`` for one token of a marked request, whose log-probabilities hold the result.

    The prompt is given as token ids, so the server's chat template is not used. vLLM batches these requests with all
    others, and puts the prompt into its prefix cache, so the answer's own request begins where this one ended.

    Args:
        servers: their addresses, with or without ``/v1``, each with its key or ``None``; at least one.
        model: what the servers call the model; ``None`` takes the first one that each names.
        digest: of the probe. A server with another one is refused.
        timeout: seconds for one request.
        session: asks the servers; by default they are asked over the network.
    """

    def __init__(
        self,
        servers: Mapping[str, str | None],
        *,
        model: str | None = None,
        digest: str,
        timeout: float = 10.0,
        session: ASGISession | None = None,
    ) -> None:
        self._servers = {
            url: _Server(JSONClient(url, key, timeout, session), model, digest) for url, key in servers.items()
        }

    def open(self) -> None:
        """Open the connections without asking; needs a running event loop."""
        for server in self._servers.values():
            server.client.open()

    async def start(self) -> None:
        """Check the servers that are reachable already.

        Raises:
            ValueError: a server evaluates no probe, or another one.
        """
        self.open()
        for server in self._servers.values():
            try:
                await server.check.make()
            except _Mistake as error:
                await self.close()
                raise UserValueError(str(error)) from error
            except FeatureError as error:
                logger.warning("the feature source is not reachable yet: %s", error)

    async def check(self) -> None:
        """Check every server that is not checked yet; raises FeatureError."""
        for server in self._servers.values():
            await server.check.make()

    async def close(self) -> None:
        for server in self._servers.values():
            await server.client.close()

    async def ready(self) -> bool:
        """Whether one of the servers would answer now: the balancer takes care of those that are down."""
        looks = [asyncio.wait_for(server.healthy(), _READY_SECONDS) for server in self._servers.values()]
        return True in await asyncio.gather(*looks, return_exceptions=True)

    async def probabilities(self, token_ids: list[int], server: str | None = None) -> tuple[float, float, float]:
        """Probabilities of EASY, NORMAL and HARD.

        Args:
            token_ids: of the question.
            server: the address of the one that is to answer; by default the first.

        Raises:
            FeatureError: the server cannot be reached, refuses, or evaluates no probe or another one.
        """
        chosen = self._servers.get(server or "") or next(iter(self._servers.values()))
        return await chosen.probabilities(token_ids)


class _Mistake(FeatureError):
    """The server was started or is named wrongly."""


class _Server:
    """One server, which is checked before it is asked the first question."""

    def __init__(self, client: JSONClient, model: str | None, digest: str) -> None:
        self.client = client
        self._model = model
        self._digest = digest[:DIGEST_DIGITS]
        self._max_tokens: int | None = None
        self.check = FirstCheck(client.url, self._check)

    async def _check(self) -> None:
        """Read the model's name and limit, and ask for one result."""
        named = await self.client.models()
        model = self._model or next(iter(named))
        if model not in named:
            raise _Mistake(f"features.model: {self.client.url} has no model {model!r}, only {', '.join(named)}")
        self._model, self._max_tokens = model, named[model]
        await self._ask(_TOKENS)

    async def healthy(self) -> bool:
        await self.check.make()
        status, _ = await self.client.request("GET", "/health", parse=False)
        return status == 200

    async def probabilities(self, token_ids: list[int]) -> tuple[float, float, float]:
        await self.check.before_a_question()
        if self._max_tokens is not None and len(token_ids) >= self._max_tokens:  # one token is generated
            raise FeatureError(
                f"the question has {len(token_ids)} tokens, the server takes less than {self._max_tokens}"
            )
        return await self._ask(token_ids)

    async def _ask(self, token_ids: list[int]) -> tuple[float, float, float]:
        url = self.client.url
        body = request_body(self._model, token_ids)
        status, data = await self.client.request("POST", "/v1/completions", body, traced=True)
        if status != 200:
            raise FeatureError(f"{url}/v1/completions gave status {status}{said(data)}")
        try:
            found, digest = decoded(data)
        except ValueError as error:
            raise _Mistake(f"{url}: {error}") from error
        if digest != self._digest:
            raise _Mistake(
                f"{url} evaluates the probe {digest}, but the router has {self._digest}: set ENTROPY_RFT_PROBE of the "
                "server and probe of the router to the same one"
            )
        return found
