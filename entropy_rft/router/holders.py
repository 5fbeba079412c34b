"""Which backend holds a stored answer: only that one can continue, return or delete it.

The router remembers the backends of the latest answers. For an answer that it does not know (it was restarted, or a
second router passed it on) it asks one backend after the other until one does not say 404, so that nothing has to be
shared between routers. An answer that is not found generates nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from cachetools import LRUCache

from entropy_rft.router.backends import Backend
from entropy_rft.router.errors import OPENAI, ErrorShape
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import Proxy
from entropy_rft.router.upstream import Upstream

_MOST = 65_536  # answers that are remembered
_LONGEST = 200  # characters of an id that is remembered; a client may send any text as one


class Holders:
    """Asks the backend that holds an answer.

    Args:
        proxy: asks the backends.
        pool: of them.
    """

    def __init__(self, proxy: Proxy, pool: Pool) -> None:
        self._proxy = proxy
        self._pool = pool
        self._known: LRUCache[str, Backend] = LRUCache(_MOST)

    def remember(self, answer: str, backend: Backend) -> None:
        """`backend` has given the answer with this id."""
        if len(self._pool.backends) > 1 and len(answer) <= _LONGEST:
            self._known[answer] = backend

    async def ask(
        self,
        answer: str,
        method: str,
        path: str,
        payload: bytes | None,
        headers: dict[str, str],
        errors: ErrorShape = OPENAI,
        without_budget: Callable[[], bytes] | None = None,
    ) -> Upstream:
        """As `Proxy.ask`, of the backend that holds the answer with this id; 404 where none does.

        Raises:
            RouterError: that backend may not be asked now, or gave no answer.
        """
        known = self._known.get(answer)
        left = list(self._pool.backends) if known is None else [known]
        while True:
            upstream = await self._proxy.ask(method, path, payload, headers, errors, left, without_budget)
            if upstream.status != 404 or len(left) == 1:
                break
            left.remove(upstream.backend)
            upstream.close()
        if upstream.status < 400:
            self.remember(answer, upstream.backend)
        return upstream
