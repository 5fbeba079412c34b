"""An agent's turn: what follows one message of the user, answer by answer and tool by tool, keeps its difficulty.

Each request of a turn holds the whole conversation, and the probe reads all of it. After a few results of tools a hard
question may look easy, and the strategy would change in the middle of the work. So within a turn the difficulty is
never lowered. The user's next message begins a new turn, which is decided anew. A user's message right after the result
of a tool is no such one: clients add reminders of their own there, and the model has not answered yet.

There is no session id: a turn is recognised by a hash of the conversation, from its beginning to the user's last
message.

Of a conversation that goes on by the id of a stored answer, the request holds the new input alone, which may be "yes,
go on". Its difficulty is never lower than that of the answer, also where a new turn begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cachetools import LRUCache

from entropy_rft.difficulty.strategies import DIFFICULTIES
from entropy_rft.router.conversation import digest
from entropy_rft.router.policy import Decision

_MOST = 65_536  # turns and answers that are remembered; each takes about 200 bytes, however long the conversation is


class Turns:
    """The highest difficulty of each of the latest turns, and that of each of the latest stored answers.

    Args:
        most: of either that are remembered.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._known: LRUCache[bytes, int] = LRUCache(most)
        self._answers: LRUCache[str, int] = LRUCache(most)

    def remember(self, answer: str, decision: Decision) -> None:
        """The answer with this id was given by `decision`, which the router took."""
        self._answers[answer] = DIFFICULTIES.index(decision.difficulty)

    def continued(self, answer: str, decision: Decision) -> Decision:
        """`decision` about a request that continues the answer with this id, or the answer's where that was higher."""
        before = self._answers.get(answer, -1)
        return _not_below(before, decision)

    def kept(self, messages: Sequence[dict[str, Any]] | None, decision: Decision) -> Decision:
        """`decision`, or the turn's earlier one where that was higher.

        Args:
            messages: of the conversation, as OpenAI's; ``None`` where the request has none.
            decision: about the request alone.
        """
        last = _turns_first(messages or ())
        key = None if messages is None or last is None else digest(messages, last)
        if messages is None or key is None:
            return decision
        level = DIFFICULTIES.index(decision.difficulty)
        # A request that ends with the user's message begins the turn: another client's same question does not matter.
        before = -1 if last == len(messages) - 1 else self._known.get(key, -1)
        self._known[key] = max(level, before)
        return _not_below(before, decision)


def _not_below(level: int, decision: Decision) -> Decision:
    if level <= DIFFICULTIES.index(decision.difficulty):
        return decision
    return replace(decision, difficulty=DIFFICULTIES[level], reason="turn")


def _turns_first(messages: Sequence[dict[str, Any]]) -> int | None:
    """The place of the user's last message that does not follow the result of a tool."""
    roles = [message.get("role") for message in messages]
    begins = (i for i in range(len(roles) - 1, -1, -1) if roles[i] == "user" and (not i or roles[i - 1] != "tool"))
    return next(begins, None)
