"""JSON requests to one server, with every failure as a `FeatureError` of one line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError
from entropy_rft.router.tracing import CURRENT

if TYPE_CHECKING:
    import aiohttp

    from entropy_rft.router.in_process import ASGISession


class JSONClient:
    """A session with one server.

    Args:
        url: of the server, with or without ``/v1``.
        api_key: sent as a bearer token.
        timeout: seconds for one request.
        session: asks the server, and is not closed here; by default one is opened that does so over the network.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, session: ASGISession | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = timeout
        self._session: aiohttp.ClientSession | ASGISession | None = session
        self._given = session is not None

    def open(self) -> None:
        """Open the session; needs a running event loop."""
        import aiohttp

        if self._given:
            return
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
        )

    async def close(self) -> None:
        if self._session is not None and not self._given:
            await self._session.close()

    async def request(
        self, method: str, path: str, body: Any = None, parse: bool = True, traced: bool = False
    ) -> tuple[int, Any]:
        """The status, and the parsed answer (``None`` without `parse`).

        Args:
            method, path, body: of the request.
            parse: the answer is JSON.
            traced: it is asked for one client's request, and becomes a part of that one's trace.

        Raises:
            FeatureError: the server cannot be reached, is too slow, or does not answer in JSON.
        """
        import aiohttp
        import orjson

        if self._session is None or self._session.closed:
            raise FeatureError("the feature source is not started")
        limit = aiohttp.ClientTimeout(total=self._timeout, connect=min(3.0, self._timeout))
        content = None if body is None else orjson.dumps(body)
        headers = {**self._headers, "Content-Type": "application/json"} if content else {**self._headers}
        if traced and (trace := CURRENT.get()) is not None:
            trace.pass_on(headers)
        try:
            async with self._session.request(
                method, self.url + path, data=content, headers=headers, timeout=limit, allow_redirects=False
            ) as response:
                text = await response.read()
                return response.status, orjson.loads(text) if parse else None
        except asyncio.TimeoutError as error:
            raise FeatureError(f"{self.url} did not answer in {self._timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FeatureError(f"{self.url} cannot be reached: {' '.join(str(error).split())}") from error
        except orjson.JSONDecodeError as error:
            raise FeatureError(f"{self.url}{path} gave status {response.status} without JSON") from error

    async def models(self) -> dict[str, int | None]:
        """The names of the server's models, each with its context length where the server gives one.

        Raises:
            FeatureError: it does not name a model.
        """
        status, data = await self.request("GET", "/v1/models")
        try:
            if status != 200:
                raise UserValueError(f"status {status}{said(data)}")
            lengths = {str(entry["id"]): entry.get("max_model_len") for entry in data["data"]}
            if not lengths:
                raise UserValueError("it names none")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(f"{self.url} does not name its model ({error}): set features.model") from error
        return {name: length if isinstance(length, int) else None for name, length in lengths.items()}


def said(data: Any) -> str:
    """What the server says went wrong, shortened to one line."""
    inner = data.get("error", data) if isinstance(data, dict) else data
    message = inner.get("message", "") if isinstance(inner, dict) else inner
    return f": {' '.join(str(message).split())[:200]}" if message else ""
