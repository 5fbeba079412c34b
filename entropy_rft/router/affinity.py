"""Which backend a conversation belongs to, so that its next turn finds the earlier ones in that backend's prefix cache.

Rendezvous hashing, weighted: each backend gets a score from the hash of its name and the conversation's beginning, and
the highest wins. Where a backend is added or lost, only its own conversations move. The load is bounded, as in
"Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam; arXiv:1608.01350): a backend that has more
than 1.25 times its share of the outstanding requests is passed over for the next one in the order of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, log
from typing import Any

from entropy_rft.router.backends import Backend
from entropy_rft.router.conversation import digest

_BOUND = 1.25  # of a backend's share of the outstanding requests


def affinity_key(messages: Sequence[dict[str, Any]] | None) -> bytes | None:
    """What a conversation keeps over its turns: all up to the user's first message, as a hash.

    Args:
        messages: of the conversation, as OpenAI's.

    Returns:
        (16,) bytes; ``None`` where there is no message of the user, or where it is not JSON.
    """
    first = next((i for i, message in enumerate(messages or ()) if message.get("role") == "user"), None)
    return None if messages is None or first is None else digest(messages, first)


def affine(key: bytes, backends: Sequence[Backend]) -> Backend | None:
    """The backend for the conversation that begins with `key`; ``None`` only where there is none.

    Args:
        key: of `affinity_key`.
        backends: that may be asked now.
    """
    outstanding = sum(backend.outstanding for backend in backends) + 1
    weights = sum(backend.weight for backend in backends)
    for backend in sorted(backends, key=lambda each: _score(key, each), reverse=True):
        if backend.outstanding + 1 <= ceil(_BOUND * outstanding * backend.weight / weights):
            return backend
    return None


def _score(key: bytes, backend: Backend) -> float:
    """Exponential with the weight as its rate, so that each backend is first in proportion to its weight."""
    number = int.from_bytes(blake2b(backend.name.encode(), digest_size=8, key=key).digest(), "big")
    return backend.weight / -log((number + 1) / (2**64 + 2))
