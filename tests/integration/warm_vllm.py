"""vLLM's API server as the script of a `WarmCommand`: importing vLLM takes each of its three processes five seconds or
more. (The servers of test_vllm.py and the middleware's are started as users start them.)"""

from __future__ import annotations

import multiprocessing.context


def fork_engines() -> None:
    """Fork the engine and its worker too, as vLLM does beside a GPU; on a CPU it starts new interpreters."""
    # What `multiprocessing.get_context` looks its names up in.
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["fork"]


if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    fork_engines()
    main()
