"""``entropy-rft …`` or a script in real processes that are forked from one which has imported torch and TRL already.

Each command has a process, a session, an environment, a working directory and an exit code of its own, as when a
shell starts it; only the seconds of imports are shared. The tests of the package, of the launchers and of
`scripts/demo.sh` start the command as users do, in a new interpreter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
# DeepSpeed is what each training imports, whatever its engine, where it is installed; vLLM, where it is.
_CONTEXT.set_forkserver_preload(
    [
        "entropy_rft.cli.main",
        "entropy_rft.training.run",
        "entropy_rft.evaluation",
        "entropy_rft.difficulty",
        "deepspeed",
        "vllm.entrypoints.launchers.api_server.entry",
        "vllm.v1.engine.core",
        "vllm.v1.worker.cpu_worker",
    ]
)


class WarmCommand:
    """Like `subprocess.Popen` of ``python -m entropy_rft ARGUMENTS``, with its output in files.

    Args:
        arguments: the verb and its flags.
        cwd: its working directory.
        environment: besides this process's own.
        joined: stderr goes where stdout goes.
        script: a Python file that is run with `arguments` in place of ``entropy_rft``.
        output: a file that stdout is appended to.
    """

    def __init__(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        joined: bool = False,
        script: Path | None = None,
        output: Path | None = None,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="warm-"))
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._output, self._errors = output or self._directory / "output", self._directory / "errors"
        files = (str(self._output), str(self._output if joined else self._errors))
        words = [os.fspath(word) for word in arguments]
        everything = os.environ | dict(environment or {})
        self._process = _CONTEXT.Process(target=_run, args=(words, str(cwd), everything, files, script))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def sentinel(self) -> int:
        """Ready to be read once it has ended."""
        return self._process.sentinel

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("entropy-rft", timeout or 0)
        return self._process.exitcode

    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self._errors.read_text(errors="replace") if self._errors.exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.output(), self.errors()


class WarmRanks:
    """A run of several processes, as torchrun starts them: the first that fails ends the others.

    Args:
        arguments, cwd, environment, script: as of `WarmCommand`, of each rank.
        ranks: how many.
    """

    def __init__(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        cwd: Path,
        environment: Mapping[str, str],
        ranks: int,
        script: Path | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        world |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        self.ranks = [
            WarmCommand(arguments, cwd, {**environment, **world, "RANK": rank, "LOCAL_RANK": rank}, True, script)
            for rank in map(str, range(ranks))
        ]

    def finish(self, timeout: float) -> tuple[int, str]:
        """The exit code of the first that failed, or 0, and what all have written."""
        running = {rank.sentinel: rank for rank in self.ranks}
        code = 0
        deadline = time.monotonic() + timeout
        try:
            while running:
                ended = wait(list(running), max(0.0, deadline - time.monotonic()))
                if not ended:
                    raise subprocess.TimeoutExpired("entropy-rft", timeout)
                for sentinel in ended:
                    status = running.pop(sentinel).wait()
                    if status != 0 and code == 0:
                        code = status
                        for rank in running.values():
                            rank.terminate()
        finally:
            for rank in running.values():
                rank.kill()
        return code, "".join(rank.output() for rank in self.ranks)


def warm_run(
    arguments: Sequence[str | os.PathLike[str]],
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
    script: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` of ``python -m entropy_rft ARGUMENTS``, or of `script`."""
    process = WarmCommand(arguments, cwd, environment, script=script)
    try:
        output, errors = process.communicate(timeout)
    finally:
        if process.poll() is None:
            process.kill()
    return subprocess.CompletedProcess(list(arguments), process.wait(), output, errors)


def _run(words: list[str], cwd: str, environment: dict[str, str], files: tuple[str, str], script: Path | None) -> None:
    os.setsid()
    gc.freeze()  # what is imported stays: each full collection, of which a training makes three, would walk through it
    for number in (signal.SIGINT, signal.SIGTERM):  # as a shell starts a command in the foreground
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for stream, file in zip((1, 2), files, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    # pytest has replaced those of the process that the server was started from.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [str(script or "entropy-rft"), *words]

    from entropy_rft.cli.main import main

    try:
        if script is None:
            code = main(words)
        else:
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
            code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code)
