"""Servers as processes of their own: start one, wait until it answers, and end it in every case."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from warm import WarmCommand


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class ServerProcess:
    """A server in a process group of its own, its output in a file; killed at the end of `with`.

    Args:
        command: with ``{port}`` where its port belongs.
        log: file for stdout and stderr.
        ready: path that answers 200 once it can be used.
        environment: besides this process's own.
        script: a Python file that is run with `command` as its arguments, forked as a `WarmCommand`.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        ready: str = "/health",
        environment: Mapping[str, str] | None = None,
        script: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._ready = ready
        words = [word.replace("{port}", str(self.port)) for word in command]
        self.process: subprocess.Popen[bytes] | WarmCommand
        if script is not None:
            self.process = WarmCommand(words, Path.cwd(), environment, joined=True, script=script, output=log)
            return
        with log.open("w") as output:
            self.process = subprocess.Popen(
                words,
                env=os.environ | dict(environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """Its output so far, the end of it."""
        return self.log.read_text(errors="replace")[-6000:]

    def wait_until_ready(self, limit: float = 300.0) -> None:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said()
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(self.url + self._ready, timeout=5):
                return
            time.sleep(0.05)  # a server has no other signal that it is ready
        raise AssertionError(f"no answer from {self.url}{self._ready} in {limit} s\n{self.said()}")

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(30)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.kill()


def with_its_own_collector() -> dict[str, str]:
    """For a process whose memory or whose slowest answers are tested: without tests/startup/sitecustomize.py."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path and Path(path).name != "startup")}


def router_process(
    directory: Path,
    settings: Mapping[str, Any],
    *,
    ready: str = "/health",
    environment: Mapping[str, str] | None = None,
) -> ServerProcess:
    """``entropy-rft serve`` with these settings, not waited for."""
    config = directory / "router.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "entropy_rft", "serve", "--config", str(config), "--port", "{port}"]
    environment = with_its_own_collector() | dict(environment or {})
    return ServerProcess(command, directory / "router.log", ready=ready, environment=environment)
