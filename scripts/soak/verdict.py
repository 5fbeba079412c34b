"""What became of each request of the soak, and whether the memory grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from soak.client import Failure, Tally
from soak.ledger import STREAM_PIECES, Ledger, Record

# An error that could not be avoided: the backend had begun, and the router never begins a question twice.
STREAM_DIED = "a stream whose backend was killed after its first event"
BEGUN = "a backend had begun it and was killed before its first byte"
# The bytes had left for a backend that was alive, and it was killed before it read them. Only its ledger tells that;
# for the router this is the same as `BEGUN`.
UNREAD = "on the way to a backend that was killed before it read it"
UNAVOIDABLE = (STREAM_DIED, BEGUN, UNREAD)

_SLACK_S = 1.0  # between a kill and the failure that it causes


def verdict(failure: Failure, records: Sequence[Record], kills: Sequence[Sequence[float]]) -> str:
    """`STREAM_DIED`, `BEGUN`, `UNREAD`, or words for an answer that was lost.

    Args:
        failure: the request.
        records: what each backend knows of it, once those that were killed are dead.
        kills: the times at which each backend was killed.
    """
    died = [any(failure.start - _SLACK_S <= at <= failure.end + _SLACK_S for at in times) for times in kills]
    receivers = [index for index, record in enumerate(records) if record.received]
    if not failure.code:
        return "lost: the connection ended without an error"
    if not receivers:
        if failure.code == "backend_died" and any(died):
            last = max(at for times in kills for at in times if at <= failure.end + _SLACK_S)
            return UNREAD if failure.start < last else "lost: asked after the backend had died"
        return f"lost: no backend received it ({failure.status} {failure.code})"
    if len(receivers) > 1 or records[receivers[0]].received > 1:
        return "lost: begun more than once"
    record, killed = records[receivers[0]], died[receivers[0]]
    if record.written == (STREAM_PIECES if failure.stream else 1):
        return f"lost: the backend had sent all of it ({failure.status} {failure.code})"
    if not killed:
        return f"lost: its backend lived ({failure.status} {failure.code})"
    if failure.pieces < record.written:
        return "lost: events that the backend had sent"
    return STREAM_DIED if record.written else BEGUN


def outcomes(tally: Tally, ledgers: Sequence[Ledger], kills: Sequence[Sequence[float]]) -> dict[str, Any]:
    """All requests: how many were answered, and each kind of failure; with the first of those that were lost."""
    kinds: Counter[str] = Counter()
    lost = []
    for failure in tally.failures:
        kind = verdict(failure, [ledger.record(failure.number) for ledger in ledgers], kills)
        kinds[kind] += 1
        if kind not in UNAVOIDABLE:
            lost.append({"what": kind, "number": failure.number, "seen": failure.seen})
    count = tally.sent
    received = sum(ledger.receipts(count) for ledger in ledgers)
    whole = np.frombuffer(tally.whole, dtype=np.uint8)[:count].astype(bool)
    return {
        "sent": tally.sent,
        "answered": tally.answered,
        "unavoidable": {kind: kinds[kind] for kind in UNAVOIDABLE},
        "lost": len(lost),
        "lost_kinds": {kind: number for kind, number in sorted(kinds.items()) if kind not in UNAVOIDABLE},
        "lost_first": lost[:10],
        "without_any_outcome": tally.open,
        "held_back_by_the_load": tally.held_back,
        "begun_twice": int((received > 1).sum()),
        "answered_but_not_received_once": int((received[whole] != 1).sum()),
    }


def slope(times_s: Sequence[float], values: Sequence[float], block_s: float = 60.0) -> dict[str, Any]:
    """The trend of `values` an hour by least squares over the means of blocks, with a 95 % interval.

    Neighbouring samples are alike, so each block counts once. Where the residuals of the blocks are still alike
    (autocorrelation r of neighbours above 0), the variance is multiplied by (1 + r) / (1 - r) and the degrees of
    freedom are those of n (1 - r) / (1 + r) blocks.
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for time_s, value in zip(times_s, values, strict=True):
        blocks.setdefault(int((time_s - times_s[0]) / block_s), []).append((time_s / 3600, value))
    means = np.array([np.mean(pairs, axis=0) for pairs in blocks.values()])
    result: dict[str, Any] = {"blocks": len(means), "block_s": block_s, "per_hour": None, "interval": None}
    if len(means) < 4:
        return result
    x, y = means[:, 0] - means[:, 0].mean(), means[:, 1] - means[:, 1].mean()
    found = float(x @ y / (x @ x))
    residuals = y - found * x
    power = float(residuals @ residuals)
    r = max(0.0, float(residuals[1:] @ residuals[:-1]) / power) if power else 0.0
    inflation = (1 + r) / (1 - r)
    freedom = max(1.0, len(means) / inflation - 2)
    error = (inflation * power / (len(means) - 2) / (x @ x)) ** 0.5
    half = float(stats.t.ppf(0.975, freedom) * error)
    return result | {"per_hour": found, "interval": [found - half, found + half], "autocorrelation": r}
