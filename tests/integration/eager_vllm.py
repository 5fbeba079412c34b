"""`entropy-rft` with a vLLM engine that compiles nothing: that is vLLM's own matter, and takes a minute on a CPU."""

from __future__ import annotations

import functools

import vllm
from warm_vllm import fork_engines

from entropy_rft.cli.main import main

if __name__ == "__main__":
    vllm.LLM = functools.partial(vllm.LLM, enforce_eager=True)
    fork_engines()
    raise SystemExit(main())
