"""`asyncio.timeout`; on Python 3.10 the one of `async-timeout`, which aiohttp installs there."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
