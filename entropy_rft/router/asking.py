"""Asks the backends for one answer, and again in another form where a refusal shows that the first could not work.

A refused request has cost nothing, so no question is generated twice:

- only our token limit leaves the prompt no room: once more without it;
- the chat template may have no system role: once more with the instruction in the user's turn;
- the backend may not know a limit on the thinking: once more with the share of the budget (`Proxy` does that, because
  it depends on the backend).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.router.backends import Backend
from entropy_rft.router.dialects import Dialect
from entropy_rft.router.holders import Holders
from entropy_rft.router.policy import Decision, applied
from entropy_rft.router.proxy import REFUSED, Proxy
from entropy_rft.router.routing import Routing
from entropy_rft.router.upstream import Upstream

# How backends say that prompt and max_tokens together exceed their context.
_TOO_LONG = (b"max_tokens", b"max_completion_tokens", b"max_output_tokens", b"context length")


class Sender:
    """Sends a client's request in its dialect: to any backend, or to the one that holds the answer that it continues.

    Args:
        proxy: asks any backend.
        holders: ask the one that holds an answer.
        dialect: of the request.
        body: the client's, checked.
        headers: of the request, beside the backend's own.
    """

    def __init__(
        self, proxy: Proxy, holders: Holders, dialect: Dialect, body: Mapping[str, Any], headers: dict[str, str]
    ) -> None:
        self._proxy = proxy
        self._holders = holders
        self._dialect = dialect
        self._headers = headers
        self._continued = dialect.continues(body)

    async def __call__(
        self, payload: bytes, without_budget: Callable[[], bytes] | None = None, first: Backend | None = None
    ) -> Upstream:
        """As `Proxy.ask`; an answer that is continued is asked of the backend that holds it, not of `first`.

        Raises:
            RouterError: no backend gave an answer.
        """
        path, headers, errors = self._dialect.path, self._headers, self._dialect.errors
        if self._continued is None:
            return await self._proxy.ask(
                "POST", path, payload, headers, errors, without_budget=without_budget, first=first
            )
        return await self._holders.ask(self._continued, "POST", path, payload, headers, errors, without_budget)


class Asking:
    """One request to the backends.

    Args:
        routing: rewrites the request.
        send: sends it.
        body: the client's, checked.
        decision: about it.
        dialect: of it.

    Attributes:
        request: as it was sent last; before `answer`, as it will be sent first.
    """

    def __init__(
        self, routing: Routing, send: Sender, body: Mapping[str, Any], decision: Decision, dialect: Dialect
    ) -> None:
        self._routing = routing
        self._send = send
        self._body = body
        self._decision = decision
        self._dialect = dialect
        self._placement: Placement = routing.placement
        self._with_limit = True
        self.request, self._limit_is_ours = self._form(thinking=True)
        self._payload = orjson.dumps(self.request)

    async def answer(self) -> Upstream:
        """The backends' answer, open; it is a refusal if no other form of the request is accepted either.

        Raises:
            RouterError: no backend gave an answer.
        """
        upstream = await self._ask()
        if upstream.status == 400 and self._limit_is_ours and any(words in upstream.body for words in _TOO_LONG):
            # The prompt leaves no room for our limit. Without the limit the backend answers.
            self._with_limit = False
            upstream = await self._ask_in_new_form()
        routing, body, endpoint = self._routing, self._body, self._dialect.name
        if upstream.status == 200:
            routing.learn_system_role(body, self.request, endpoint, known=True)
        elif upstream.status in REFUSED and routing.may_lack_system_role(body, self.request, endpoint):
            before, self._placement = (self._placement, self.request), "user_end"
            again = await self._ask_in_new_form()
            if again.status == 200:
                routing.learn_system_role(body, before[1], endpoint, known=False)
                return again
            again.close()
            self._placement, self.request = before
        return upstream

    def applied(self) -> list[tuple[str, str]]:
        """What the router set in the request that was answered; see `policy.applied`."""
        return applied(self._body, self.request, self._placement, self._dialect.name)

    def _form(self, thinking: bool) -> tuple[dict[str, Any], bool]:
        request, ours = self._routing.rewritten(
            self._body, self._decision, self._dialect.name, self._placement, thinking=thinking
        )
        if ours and not self._with_limit:
            del request[self._dialect.limits[-1]]
            ours = False
        return request, ours

    async def _ask_in_new_form(self) -> Upstream:
        self.request, self._limit_is_ours = self._form(thinking=True)
        self._payload = orjson.dumps(self.request)
        return await self._ask()

    async def _ask(self) -> Upstream:
        limits = self._dialect.limits_thinking
        ours = limits(self.request) and not limits(self._body)
        without = partial(self._form, thinking=False) if ours else None
        other = None if without is None else lambda: orjson.dumps(without()[0])
        upstream = await self._send(self._payload, other, self._decision.backend)
        if without is not None and not upstream.thinking_limited:
            self.request, self._limit_is_ours = without()
        return upstream
