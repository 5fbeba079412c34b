"""Server-sent events as a client reads them."""

from __future__ import annotations

import re


def events(stream: bytes) -> list[tuple[str, str]]:
    """Type and data of each event that a client dispatches, by the standard (whatwg, server-sent events)."""
    found, kind, data = [], "", []
    lines = re.split(r"\r\n|\n|\r", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    for line in lines[:-1]:  # the last has no end
        if not line:
            if data:
                found.append((kind or "message", "\n".join(data)))
            kind, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                kind = value
    return found
