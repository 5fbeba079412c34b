"""The process for answers whose check may not end; see :mod:`entropy_rft.rewards.checking`.

It imports what a check needs and no more: no torch.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from pathlib import Path
from typing import IO, Any

_MEMORY = 2 << 30  # bytes beyond the imports: a number of that size is no answer


def check(reward: str, content: str, solution: str, delimiters: list[str] | None) -> tuple[float | None, dict]:
    """TRL's `reward` of one completion, and the columns that it logs for it."""
    from trl import rewards

    columns: dict[str, Any] = {}
    keywords = {} if delimiters is None else {"reasoning_delimiters": delimiters}
    (value,) = getattr(rewards, reward)(
        completions=[[{"role": "assistant", "content": content}]],
        solution=[solution],
        log_extra=lambda name, values: columns.update({name: values[0]}),
        **keywords,
    )
    return value, columns


def serve() -> None:
    """Answer the requests on standard input, one JSON a line, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes standard input
    replies = sys.stdout
    sys.stdout = sys.stderr
    check("accuracy_reward", r"\boxed{\frac{1}{2}}", r"$\frac{1}{2}$", None)  # makes the parser's tables
    _limit_memory()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        # The kernel ends this process when the time is up, also inside C code, which Python cannot interrupt.
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))
        try:
            value, columns = check(**request)
            reply: dict[str, Any] = {"value": value, "columns": columns}
        except Exception as error:  # MemoryError and RecursionError too
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, reply)


def _reply(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _limit_memory() -> None:
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: only the time limit applies
        return
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
