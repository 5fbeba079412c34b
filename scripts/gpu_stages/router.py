"""Stage 6: hidden states of questions on the GPU, and the router that takes its features from the GPU."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
import urllib.request
from contextlib import ExitStack
from typing import Any

from gpu_stages.recording import Stage

from entropy_rft.assets import DEFAULT_MODEL

CONCURRENCY = (1, 16, 64)
LENGTHS = (24, 128, 256)  # tokens of a question
SAME_STATES = 1e-3  # of a hidden state, between the GPU and the CPU, relative to its largest value


async def ask(source: Any, questions: list[list[int]], concurrency: int) -> tuple[list[Any], list[float]]:
    """States and seconds of `questions`, `concurrency` at a time."""
    turns = asyncio.Semaphore(concurrency)

    async def one(ids: list[int]) -> tuple[Any, float]:
        async with turns:
            start = time.perf_counter()
            state = await source.state(ids, lambda: True)
            return state, time.perf_counter() - start

    pairs = await asyncio.gather(*(one(ids) for ids in questions))
    return [state for state, _ in pairs], [seconds for _, seconds in pairs]


def questions(count: int, length: int, vocabulary: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(length)
    return torch.randint(4, vocabulary, (count, length), generator=generator).tolist()


async def measure_states(stage: Stage) -> None:
    """Local states at each length and concurrency, and the same from a model on the CPU."""
    import numpy as np

    from entropy_rft.router.local_states import LocalStates

    here, on_cpu = LocalStates(DEFAULT_MODEL, device=stage.device), LocalStates(DEFAULT_MODEL, device="cpu")
    await here.start()
    await on_cpu.start()
    vocabulary = 380
    largest = 0.0
    for length in LENGTHS[: 1 if stage.dry_run else None]:
        asked = questions(16, length, vocabulary)
        ours, theirs = [np.stack((await ask(source, asked, 16))[0]) for source in (here, on_cpu)]
        largest = max(largest, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    stage.put("largest difference to the CPU, relative", largest)
    stage.check("the states are the CPU's", largest <= SAME_STATES, largest)
    rows = []
    for length, concurrency in itertools.product(LENGTHS, CONCURRENCY):
        asked = questions(8 if stage.dry_run else 256, length, vocabulary)
        begun = time.perf_counter()
        _, seconds = await ask(here, asked, concurrency)
        rate = len(asked) / (time.perf_counter() - begun)
        p50, p99 = (1e3 * statistics.quantiles(seconds, n=100)[at] for at in (49, 98))
        rows.append({"tokens": length, "concurrency": concurrency, "questions/s": rate, "p50_ms": p50, "p99_ms": p99})
        stage.put("local states", rows)
    await here.close()
    await on_cpu.close()


def measure_router(stage: Stage) -> None:
    """The router as it is served, before a stub backend, with questions that it has not seen."""
    from bench_router import Contender, measure, stub_process
    from processes import router_process

    with ExitStack() as stack:
        stub = stack.enter_context(stub_process(stage.work / "stub.log"))
        stub.wait_until_ready(60)
        settings = {"probe": "embedded", "backends": [stub.url], "log_level": "warning"}
        settings["features"] = {"kind": "local", "deadline_ms": 10_000}
        router = stack.enter_context(router_process(stage.work, settings, ready="/ready"))
        router.wait_until_ready(max(5.0, stage.seconds_left - 5))
        request = urllib.request.Request(
            f"{router.url}/v1/chat/completions",
            b'{"model": "stub", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}',
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            headers = {
                name.lower(): value for name, value in answer.headers.items() if name.lower().startswith("x-entropy")
            }
        stage.put("headers of an answer", headers)
        stage.check("an answer names its difficulty", "x-entropy-rft-difficulty" in headers, headers)
        contender = Contender("router, new, local", router.url, router, new_questions=True)
        rows = []
        for concurrency in CONCURRENCY[: 1 if stage.dry_run else None]:
            rows.append(
                {"concurrency": concurrency, **measure(contender, concurrency, False, 0.4 if stage.dry_run else 2.0)}
            )
            stage.put("router", rows)
        stage.check("every request is answered", not any(row["errors"] for row in rows))


def main() -> int:
    stage = Stage()
    stage.attempt("local states", lambda: asyncio.run(measure_states(stage)))
    stage.attempt("router", lambda: measure_router(stage))
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
