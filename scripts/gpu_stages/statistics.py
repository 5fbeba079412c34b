"""Stage 2: what the token statistics cost beside TRL's kernel and the bare product; a profile where it is too much."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_stages.recording import Stage

VOCABULARY = 151_936
# The widths and lengths whose goals matter most come first.
WIDTHS, TOKENS = (4096, 1024, 5120, 2048), (8192, 32_768, 2048)
PROFILED = 3  # sizes at most, those that miss their goal by most
# Of the kernel alone: logits of a block, warps of a program. And the tiles: tokens, MiB.
BLOCKS, WARPS = (1024, 2048, 4096), (4, 8, 16)
TILES = ((4096, 256), (4096, 128), (4096, 64), (2048, 32), (4096, 32), (1024, 16), (8192, 512))


def sizes(stage: Stage) -> list[dict[str, Any]]:
    if stage.dry_run:
        return [{"dtype": "bfloat16", "tokens": 64, "width": 32, "vocabulary": 1024}]
    return [
        {"dtype": "bfloat16", "tokens": tokens, "width": width, "vocabulary": VOCABULARY}
        for tokens in TOKENS
        for width in WIDTHS
    ]


def measure(stage: Stage, size: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """One row beside the others, and its goals."""
    from bench_statistics import TARGETS, measured

    if stage.device == "cuda":
        import torch

        torch.cuda.empty_cache()  # the free memory decides whether the naive way runs
    rows.append(row := measured(stage.device, size, [], 1 if stage.dry_run else 7, memory=not stage.dry_run))
    stage.put("rows", rows)
    for where, name, limit, kind, applies in TARGETS:
        if where in ("cuda", "any") and applies(row) and name in row["ratios"]:
            stage.goal(f"{name}, N {size['tokens']}, D {size['width']}", row["ratios"][name], limit, kind)


def excess(row: dict[str, Any]) -> float:
    """How much of its time's goals a row misses; at most 0 where it meets them."""
    found = row["ratios"]
    beside_floor = found["time ours/floor"] - 1.10 if row["width"] >= 4096 else 0.0
    return max(found["time ours/trl"] - 1.03, beside_floor)


def profile(stage: Stage, size: dict[str, Any]) -> dict[str, Any]:
    """What each contender spends its time on."""
    from bench_statistics import contenders, tensors

    calls = contenders(*tensors(stage.device, **size))
    chosen = [name for name in ("ours", "trl", "floor_trl_tiles", "floor") if name in calls]
    return {name: kernels(calls[name], stage.work / "trace.json") for name in chosen}


def kernels(call: Callable[[], Any], file: Path) -> dict[str, Any]:
    """Of one call: every kernel's launches, time, registers and occupancy, and the time that no kernel ran."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    on_cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    call()
    with profiled(activities=activities) as found:
        call()
        if on_cuda:
            torch.cuda.synchronize()
    found.export_chrome_trace(str(file))
    # On a CPU (a dry run) operators stand for kernels.
    events = json.loads(file.read_text())["traceEvents"]
    events = [event for event in events if event.get("cat") == ("kernel" if on_cuda else "cpu_op")]
    by_name: dict[str, dict[str, Any]] = {}
    for event in events:
        entry = by_name.setdefault(event["name"], {"launches": 0, "microseconds": 0.0})
        entry["launches"] += 1
        entry["microseconds"] += event["dur"]
        shape = {name: event["args"].get(name) for name in ("grid", "block", "registers per thread")}
        shape["occupancy %"] = event["args"].get("est. achieved occupancy %")
        shape["shared memory"] = event["args"].get("shared memory")
        entry.setdefault("of the first launch", {name: value for name, value in shape.items() if value is not None})
    busy = sum(event["dur"] for event in events)
    span = max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events) if events else 0.0
    longest = sorted(by_name.items(), key=lambda item: -item[1]["microseconds"])
    return {"kernels": dict(longest[:12]), "launches": len(events), "busy_us": busy, "span_us": span}


def seconds_of(call: Callable[[], Any], repeats: int, calls: int = 1) -> float:
    """Of one call: the median of `repeats`, each of `calls` calls in a row, after one warm-up.

    A kernel that runs for less than its launch takes on the host (20 µs) is timed by several in a row.
    """
    import torch

    found = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn:
            found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def kernel_sweep(stage: Stage) -> None:
    """The kernel alone, on one tile of logits, beside what a copy within the device's memory moves.

    After the first call the maximum rises no more, as in a row's later tiles.
    """
    import torch

    from entropy_rft.entropy import fused, fused_triton

    rows, columns = (8, 2048) if stage.dry_run else (4096, 32_768)
    repeats, calls = (1, 1) if stage.dry_run else (5, 10)
    dtypes = (torch.bfloat16, torch.float32)
    found: list[dict[str, Any]] = []
    buffer = torch.randn(rows, columns, device=stage.device)
    copy = torch.empty_like(buffer)
    copied = 2 * buffer.nbytes / seconds_of(lambda: copy.copy_(buffer), repeats, calls) / 1e9
    ids = torch.randint(0, columns, (rows,), device=stage.device)
    for dtype in dtypes:
        tile = buffer.to(dtype)
        for block in BLOCKS[:1] if stage.dry_run else BLOCKS:
            for warps in WARPS[:1] if stage.dry_run else WARPS:
                sums = fused.RunningSums.start(rows, tile.device)

                def fold(tile=tile, block=block, warps=warps, sums=sums) -> None:
                    switches = {"HAS_BIAS": False, "HAS_SOFTCAP": False, "BLOCK": block, "num_warps": warps}
                    fused_triton._fold[(rows,)](
                        tile, tile.stride(0), tile, ids, *sums, 0, columns, 1.0, 1.0, 1.0, **switches
                    )

                seconds = seconds_of(fold, repeats, calls)
                entry = {"dtype": str(dtype), "block": block, "warps": warps, "microseconds": 1e6 * seconds}
                found.append(entry | {"GB/s": tile.nbytes / seconds / 1e9})
                stage.put("kernel alone", {"copy GB/s": copied, "tile": [rows, columns], "found": found})


@contextmanager
def tiles(tokens: int, mebibytes: int) -> Iterator[None]:
    from entropy_rft.entropy import fused_triton

    before = fused_triton.TOKEN_TILE, fused_triton.TILE_BYTES
    fused_triton.TOKEN_TILE, fused_triton.TILE_BYTES = tokens, mebibytes * 2**20
    try:
        yield
    finally:
        fused_triton.TOKEN_TILE, fused_triton.TILE_BYTES = before


def tile_sweep(stage: Stage) -> None:
    """The whole pass with other tiles: smaller ones stay in the cache until the kernel reads them."""
    from bench_statistics import tensors

    from entropy_rft.entropy.fused import Head
    from entropy_rft.entropy.fused_triton import running_sums

    size = sizes(stage)[0]
    hidden, weight, ids = tensors(stage.device, **size)
    found = []
    for tokens, mebibytes in TILES[:1] if stage.dry_run else TILES:
        for product in (hidden.dtype, None):
            head = Head(weight, None, 1.0, None, 1.0, product)
            with tiles(tokens, mebibytes):
                seconds = seconds_of(lambda head=head: running_sums(hidden, ids, head), 1 if stage.dry_run else 5)
            found.append({"tokens": tokens, "MiB": mebibytes, "product": str(product), "seconds": seconds})
            stage.put("tiles", {"size": size, "found": found})


def main() -> int:
    stage = Stage()
    if stage.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: the kernel runs on the CPU
    rows: list[dict[str, Any]] = []
    ordered = sizes(stage)
    by_worth = ordered[:4]
    for size in by_worth:
        stage.attempt(f"N {size['tokens']}, D {size['width']}", lambda size=size: measure(stage, size, rows))
    stage.attempt("kernel alone", lambda: kernel_sweep(stage))
    stage.attempt("tiles", lambda: tile_sweep(stage))
    for size in ordered[4:]:
        stage.attempt(f"N {size['tokens']}, D {size['width']}", lambda size=size: measure(stage, size, rows))
    missed = sorted((row for row in rows if excess(row) > 0 or stage.dry_run), key=excess, reverse=True)
    profiles: list[dict[str, Any]] = []
    for row in missed[:PROFILED]:
        size = {name: row[name] for name in ordered[0]}

        def add(size: dict[str, Any] = size) -> None:
            profiles.append({**size, "of one call": profile(stage, size)})
            stage.put("profiles of what misses its goal", profiles)

        stage.attempt(f"profile, N {size['tokens']}, D {size['width']}", add)
    stage.check("something was measured", bool(rows))
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
