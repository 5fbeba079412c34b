"""The pause that an HTTP server asks for, in a header."""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Seconds that the header ``Retry-After`` asks to wait; ``None`` where it is missing or cannot be parsed.

    Args:
        value: seconds, or a date as HTTP writes it.
        now: seconds since the epoch, subtracted from a date; a date in the past gives 0.
    """
    value = (value or "").strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
