"""Hidden states from a vLLM server that runs the same model with `--runner pooling`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError, MicroBatcher
from entropy_rft.router.first_check import FirstCheck
from entropy_rft.router.json_client import JSONClient, said

logger = logging.getLogger(__name__)

_PROBE_TOKENS = [1]  # any one token: sent once, to check the server's states
_READY_SECONDS = 2.0


class VLLMPooling:
    """Asks ``POST URL/pooling`` with token ids, so the server's chat template is not used.

    Such a server pools the last token after the final norm, and with ``use_activation: false`` does nothing more to it:
    in float32 that equals the state of `question_states` to 1e-4. vLLM before 0.16 does not have that field and
    normalises. So a state of the server is checked once, before any is used: its width, and that it is not normalised.

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

    Raises:
        ValueError: the probe reads another layer than the last.
    """

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
                f"the probe reads layer {layer}, but a pooling server gives only the last one (-1): "
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
            raise FeatureError(f"the question has {len(token_ids)} tokens, the pooling server takes {self.max_tokens}")
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
            self._refuse(f"features.url: {self.url} normalises its states: use vLLM 0.16 or newer")

    def _refuse(self, message: str) -> None:
        """Refuse the server until the router is restarted."""
        self._refused = message
        raise FeatureError(message)

    async def _run(self, batch: list[list[int]]) -> Sequence[Any]:
        try:
            return await self._ask(batch)
        except _Refused:
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
        """One request: (D,) float32 of each question."""
        import base64

        import numpy as np

        body = {
            "model": self.model,
            "input": batch,
            "task": "embed",
            "use_activation": False,
            "encoding_format": "base64",
            "add_special_tokens": False,
        }
        status, data = await self._client.request("POST", "/pooling", body)
        if status != 200:
            kind = _Refused if status in (400, 413, 422) else FeatureError
            raise kind(f"{self.url}/pooling gave status {status}{said(data)}")
        try:
            entries = sorted(data["data"], key=lambda entry: entry["index"])
            states = [np.frombuffer(base64.b64decode(entry["data"], validate=True), "<f4") for entry in entries]
            if len(states) != len(batch) or any(state.ndim != 1 or not len(state) for state in states):
                raise UserValueError(f"{len(states)} states for {len(batch)} questions")
        except (ValueError, KeyError, TypeError) as error:
            raise FeatureError(f"{self.url}/pooling gave something other than states ({error})") from error
        return states


class _Refused(FeatureError):
    """The server refuses the question itself."""
