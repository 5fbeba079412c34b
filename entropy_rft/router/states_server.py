"""Hidden states from a server of the same model: what does not depend on the server's protocol."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError, MicroBatcher
from entropy_rft.router.first_check import FirstCheck
from entropy_rft.router.json_client import JSONClient, said

logger = logging.getLogger(__name__)

_PROBE_TOKENS = [1]  # any one token: sent once, to check the server's states
_READY_SECONDS = 2.0


class StatesServer(ABC):
    """Asks a server with token ids, so that its chat template is not used.

    A state of the server is checked once, before any is used: its width, and that it is not normalised.

    Args:
        url: of the server, with or without ``/v1``.
        model: what the server calls the model; ``None`` takes the first one that it names.
        api_key: sent as a bearer token.
        layer: that the probe reads; such a server has only the last one.
        width: that the probe reads; ``None`` checks nothing.
        batch_size: questions in one request.
        concurrency: requests at the same time.
        max_queue: questions that may wait; further ones are refused.
        timeout: seconds for one request.

    Attributes:
        what: the server, in messages.
        path: that is asked.
        advice: what to do about a server that normalises.

    Raises:
        ValueError: the probe reads another layer than the last.
    """

    what: str
    path: str
    advice: str

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        layer: int = -1,
        width: int | None = None,
        batch_size: int = 16,
        concurrency: int = 4,
        max_queue: int = 1024,
        timeout: float = 10.0,
    ) -> None:
        if layer != -1:
            raise UserValueError(
                f"the probe reads layer {layer}, but {self.what} gives only the last one (-1): "
                "set features.kind to local, or collect traces with --layer -1"
            )
        self._client = JSONClient(url, api_key, timeout)
        self.url = self._client.url
        self.model = model
        self.width = width
        self.max_tokens: int | None = None
        self._refused: str | None = None
        self._check = FirstCheck(self.url, self._first_look)
        self._batcher = MicroBatcher(
            self._run, batch_size=batch_size, max_queue=max_queue, concurrency=concurrency, timeout=timeout + 1
        )

    async def start(self) -> None:
        """Check the server's states, if it is reachable already.

        Raises:
            ValueError: the probe cannot read its states.
        """
        self._client.open()
        try:
            await self._check.make()
        except FeatureError as error:
            if self._refused is not None:
                await self.close()
                raise UserValueError(str(error)) from error
            logger.warning("the feature source is not reachable yet: %s", error)

    async def close(self) -> None:
        await self._batcher.close()
        await self._client.close()

    async def ready(self) -> bool:
        try:
            await asyncio.wait_for(self._look(), _READY_SECONDS)
        except (FeatureError, asyncio.TimeoutError):
            return False
        return True

    async def state(self, token_ids: list[int], wanted: Callable[[], bool]) -> Sequence[float]:
        """(D,) float32 of the last token.

        Raises:
            FeatureError: the server cannot be reached, refuses, or sends an unexpected answer; or the queue is full.
        """
        await self._check.before_a_question()
        if self.max_tokens is not None and len(token_ids) > self.max_tokens:
            raise FeatureError(f"the question has {len(token_ids)} tokens, {self.what} takes {self.max_tokens}")
        return await self._batcher.value(token_ids, wanted)

    async def _look(self) -> None:
        await self._check.make()
        status, data = await self._client.request("GET", "/health", parse=False)
        if status != 200:
            raise FeatureError(f"{self.url}/health gave status {status}{said(data)}")

    async def _first_look(self) -> None:
        """Read the model's name and limit, and check that the probe can read a state."""
        if self._refused is not None:
            raise FeatureError(self._refused)
        named = await self._client.models()
        model = self.model or next(iter(named))
        if model not in named:
            self._refuse(f"features.model: {self.url} has no model {model!r}, only {', '.join(named)}")
        self.model, self.max_tokens = model, named[model]
        (state,) = await self._ask([_PROBE_TOKENS])
        if self.width is not None and len(state) != self.width:
            self._refuse(
                f"features.url: {self.url} gives states of width {len(state)}, but the probe reads {self.width}: "
                "serve the probe's base model"
            )
        norm = float((state.astype("float64") ** 2).sum()) ** 0.5
        if abs(norm - 1) < 1e-3:
            self._refuse(f"features.url: {self.url} normalises its states: {self.advice}")

    def _refuse(self, message: str) -> NoReturn:
        """Refuse the server until the router is restarted."""
        self._refused = message
        raise FeatureError(message)

    async def _run(self, batch: list[list[int]]) -> Sequence[Any]:
        try:
            return await self._ask(batch)
        except Refused:
            if len(batch) == 1:
                raise
        # One bad question fails the whole request: each question is sent again alone.
        return await asyncio.gather(*(self._ask_one(token_ids) for token_ids in batch))

    async def _ask_one(self, token_ids: list[int]) -> Any:
        try:
            return (await self._ask([token_ids]))[0]
        except FeatureError as error:
            return error

    async def _ask(self, batch: list[list[int]]) -> list[Any]:
        """One request: (D,) float32 of each question.

        Raises:
            FeatureError: `Refused` where the server refuses a question itself.
        """
        import numpy as np

        status, data = await self._client.request("POST", self.path, self._body(batch))
        if status != 200:
            kind = Refused if status in (400, 413, 422) else FeatureError
            raise kind(f"{self.url}{self.path} gave status {status}{said(data)}")
        try:
            states = [np.asarray(state, "<f4") for state in self._states(data)]
            if len(states) != len(batch) or any(state.ndim != 1 or not len(state) for state in states):
                raise UserValueError(f"{len(states)} states for {len(batch)} questions")
        except (ValueError, LookupError, TypeError) as error:
            raise FeatureError(f"{self.url}{self.path} gave something other than states ({error})") from error
        return states

    @abstractmethod
    def _body(self, batch: list[list[int]]) -> Any:
        """The request for the states of these questions' last tokens."""

    @abstractmethod
    def _states(self, data: Any) -> Sequence[Any]:
        """The state of each question, from the parsed answer; a ValueError, LookupError or TypeError: it has none."""


class Refused(FeatureError):
    """The server refuses the question itself."""
