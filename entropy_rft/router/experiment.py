"""Which requests get a strategy: those of a share of the conversations, or none at all (shadow mode).

A conversation's place between 0 and 1 is a hash of its beginning, so that all its turns have one arm, on every router
and after every restart, and nothing has to be stored. A larger share keeps the conversations of a smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import orjson
from cachetools import LRUCache

from entropy_rft.router.conversation import said
from entropy_rft.router.dialects import Dialect

if TYPE_CHECKING:
    from entropy_rft.router.settings import RouterSettings

Arm = Literal["treatment", "control", "shadow", "client"]
UNCHANGED: tuple[Arm, ...] = ("control", "shadow")
"""Arms whose requests are passed on without a strategy."""

_MOST = 65_536  # stored answers whose conversation is remembered
_OUTSIDE = 1.0  # the place of a conversation whose beginning is unknown: it never gets a strategy unless all do


class Experiment:
    """Assigns requests to arms.

    Args:
        settings: of the router: `mode`, `rollout` and `rollout_salt`.
        before: whose remembered answers are taken over.
    """

    def __init__(self, settings: RouterSettings, before: Experiment | None = None) -> None:
        self._shadow = settings.mode == "shadow"
        self._share = settings.rollout
        self._salt = settings.rollout_salt
        # Of an answer that is continued by its id only the backend has the beginning, so its place is remembered.
        same = before is not None and before._salt == self._salt
        self._known: LRUCache[str, float] = before._known if before is not None and same else LRUCache(_MOST)

    def place(self, body: Mapping[str, Any], dialect: Dialect) -> float | None:
        """Where the request's conversation lies, from 0 to below 1; ``None`` where no place matters."""
        if not 0 < self._share < 1:
            return None
        continued = dialect.continues(body)
        if continued is not None:
            return self._known.get(continued, _OUTSIDE)
        raw = orjson.dumps((self._salt, beginning(body, dialect)))
        return int.from_bytes(blake2b(raw, digest_size=6).digest(), "big") / 2**48

    def arm(self, place: float | None, asked: bool) -> Arm:
        """The arm of a request.

        Args:
            place: of its conversation.
            asked: the client names a difficulty.
        """
        if asked:
            return "shadow" if self._shadow else "client"
        if self._share == 0 or (place is not None and place >= self._share):
            return "control"
        return "shadow" if self._shadow else "treatment"

    def remember(self, answer: str, place: float | None) -> None:
        """The answer with this id belongs to the conversation at `place`."""
        if place is not None:
            self._known[answer] = place


def beginning(body: Mapping[str, Any], dialect: Dialect) -> list[tuple[str, str]]:
    """The first user message and what stands before it, as role and text; without a user message the first one.

    Later turns repeat it in another form: text may become a list of parts, and marks of a cache move on. So only what
    it says counts.
    """
    found: list[tuple[str, str]] = []
    for role, content in dialect.turns(body):
        found.append((role, said(content)))
        if role == "user":
            return found
    return found[:1]
