"""`asyncio.timeout`, also on Python 3.10: `async-timeout`, which aiohttp brings there, has the same one."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
