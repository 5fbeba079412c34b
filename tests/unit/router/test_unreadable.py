"""A connection to a backend that ended while the loop was busy."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from entropy_rft.router.unreadable import ReportingHandler


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell before it is read")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("left", [b"", b"something"])
def test_an_end_is_seen_before_the_loop_reads_it(run: Callable[[Any], None], left: bytes) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _, handler = await loop.create_connection(lambda: ReportingHandler(loop), *listener.getsockname())
            backend, _ = listener.accept()
            assert handler.is_connected()
            backend.sendall(left)
            backend.close()  # and the loop does not run before the next line
            assert not handler.is_connected()
            handler.close()
            assert not handler.is_connected()

    run(main())
