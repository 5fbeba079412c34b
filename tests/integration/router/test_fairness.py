"""What kept some answers waiting: full garbage collections, and connections that were accepted one by one."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop
from processes import ServerProcess, with_its_own_collector
from running import PATIENCE
from stub import Stub
from wire import connected, exchange, request

from entropy_rft.router.app import create_app
from entropy_rft.router.serve import RouterServer
from entropy_rft.router.settings import load_settings

pytestmark = pytest.mark.integration

CLIENTS = 128
# Runs the command line, and says at its end how many objects a full collection looks at, and how many it leaves out.
COUNTED = """
import gc, sys
from entropy_rft.cli.main import main
status = main(sys.argv[1:])
print("collected", len(gc.get_objects()), "left out", gc.get_freeze_count(), flush=True)
sys.exit(status)
"""


def test_a_full_collection_leaves_out_what_was_loaded(stub: Stub, tmp_path: Path) -> None:
    """With torch loaded for the probe; so it takes less than a millisecond, where it took 100 of them."""
    config = tmp_path / "router.yaml"
    pooling = {"kind": "vllm_pooling", "url": stub.url}
    config.write_text(json.dumps({"backends": [stub.url], "probe": "embedded", "features": pooling}))
    command = [sys.executable, "-c", COUNTED, "serve", "--config", str(config), "--port", "{port}"]
    with ServerProcess(command, tmp_path / "router.log", environment=with_its_own_collector()) as router:
        router.wait_until_ready(PATIENCE)
        for _ in range(20):
            assert exchange(router.port, request()).status == 200
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()
        (line,) = (line for line in router.said().splitlines() if line.startswith("collected"))
    collected, left_out = int(line.split()[1]), int(line.split()[4])
    assert left_out > 100_000
    assert collected < 20_000


def test_clients_that_connect_together_are_accepted_in_a_few_iterations(stub: Stub) -> None:
    """The loop is held while they connect. libuv alone would take an iteration for each of them."""
    settings = load_settings(None, {"backends": [stub.url], "drain_s": 1})
    server = RouterServer(create_app(settings))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS)
    port = listener.getsockname()[1]
    connections = server.server_state.connections
    held, connect = threading.Event(), threading.Event()

    async def iterations() -> int:
        """Of the loop, from the moment at which all clients have connected until all are accepted."""
        loop = asyncio.get_running_loop()
        while not server.started:
            await asyncio.sleep(0.005)
        connect.set()
        assert held.wait(PATIENCE)
        assert len(connections) == 0
        count, deadline = 0, loop.time() + PATIENCE
        while len(connections) < CLIENTS:
            await asyncio.sleep(0)  # one iteration
            count += 1
            assert loop.time() < deadline
        return count

    async def main() -> int:
        serving = asyncio.create_task(server.serve([listener]))
        try:
            return await iterations()
        finally:
            server.should_exit = True
            await serving

    with ExitStack() as stack:

        def clients() -> None:
            assert connect.wait(PATIENCE)
            for _ in range(CLIENTS):
                stack.enter_context(connected(port))
            held.set()

        thread = threading.Thread(target=clients)
        thread.start()
        count = uvloop.run(main())
        thread.join(PATIENCE)
    assert count <= CLIENTS // 4
