"""vLLM's servers of the embedded model that several files of tests share: one that generates, and one that pools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import warm_vllm
from processes import ServerProcess

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.models.sources import model_source

SERVED = "tiny"
POOLING_KEY = "a-key-of-the-pooling-server"
POOLED_TOKENS = 512  # of the longest question
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
TAGS = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}  # so that the thinking can be limited
GENERATES = (
    *("--max-model-len", "2048"),
    # A strict tool that the request names is called by any model: vLLM lets it write nothing else.
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--reasoning-config", json.dumps(TAGS)),
    # Or else a schema allows white space without end, and this model writes it. vLLM knows no such setting for the tags
    # that it would ask for around a strict tool's call (`NO_TAGS`).
    *("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})),
)
NO_TAGS = {"VLLM_ENFORCE_STRICT_TOOL_CALLING": "0"}
POOLS = ("--runner", "pooling", "--max-model-len", str(POOLED_TOKENS))


def vllm_server(log: Path, *options: str, **environment: str) -> ServerProcess:
    """With the options of `recipes/router/`, in float32."""
    words = ["--model", model_source(DEFAULT_MODEL), "--served-model-name", SERVED, "--dtype", "float32"]
    words += ["--host", "127.0.0.1", "--port", "{port}", "--enforce-eager", *options]
    return ServerProcess(words, log, environment=ENVIRONMENT | environment, script=Path(warm_vllm.__file__))


@contextmanager
def both_servers(directory: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """The one that generates, and the one that pools and asks for `POOLING_KEY`."""
    stores = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"} | NO_TAGS
    with (
        vllm_server(directory / "generate.log", *GENERATES, **stores) as generating,
        vllm_server(directory / "pooling.log", *POOLS, VLLM_API_KEY=POOLING_KEY) as pooling,
    ):
        generating.wait_until_ready()
        pooling.wait_until_ready()
        yield generating, pooling
