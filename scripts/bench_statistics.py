#!/usr/bin/env python
"""Time and peak memory of the token statistics, side by side in one run.

    python scripts/bench_statistics.py                                  # the device that is there, its sizes
    python scripts/bench_statistics.py --device cpu --tokens 1024 --widths 256 1024

Contenders: `naive` (log-probability, entropy and E[S] from full logits), `trl` (TRL's chunked kernel, log-probability
and entropy only), `ours` (all three, products rounded to the inputs' dtype as TRL's are), `ours32` (all three, float32
products from 16-bit inputs), and the floor, the tiled matrix product alone, in our tiles and in TRL's: the faster of
the two is used. They take turns; the median and the range of the repeats are reported. On a CPU peak memory is the
growth of the process's resident memory, each contender in a process of its own; on CUDA it is the allocator's own peak.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
CONTENDERS = ("naive", "trl", "ours", "ours32", "floor", "floor_trl_tiles")
TRL_TOKENS, TRL_VOCABULARY = 4096, 32_768
# Mode, ratio, limit, "at most" or "at least", and the rows it applies to.
TARGETS: list[tuple[str, str, float, str, Callable[[dict[str, Any]], bool]]] = [
    ("cpu", "time ours/trl", 0.6, "at most", lambda row: True),
    ("cpu", "time ours/floor", 1.4, "at most", lambda row: True),
    ("cpu", "extra memory ours, MiB", 64, "at most", lambda row: True),
    ("cuda", "time ours/trl", 1.03, "at most", lambda row: True),
    ("cuda", "time ours/floor", 1.10, "at most", lambda row: row["width"] >= 4096),
    ("cuda", "memory ours/trl", 1.0, "at most", lambda row: True),
    ("any", "memory naive/ours", 20, "at least", lambda row: row["tokens"] >= 8192),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), help="of hidden and weight")
    parser.add_argument("--tokens", nargs="+", type=int, help="default: 1024 on a CPU; 2048 8192 32768 on CUDA")
    parser.add_argument("--widths", nargs="+", type=int, help="default: 256 512 1024 2048; 1024 2048 4096 5120 on CUDA")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--skip", nargs="*", default=[], choices=CONTENDERS)
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    parser.add_argument("--output", type=Path, help="default: scripts/results/statistics-DEVICE.json")
    parser.add_argument("--measure-memory", nargs=5, help=argparse.SUPPRESS)  # used by this script itself
    return parser.parse_args()


def environment(device: str, note: str) -> dict[str, Any]:
    """What a reader needs to judge a time: devices, versions, threads, how busy the machine was."""
    import torch

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version()}
    for name in ("torch", "triton", "trl", "transformers", "entropy_rft"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": list(os.getloadavg()),
        "versions": versions,
        "note": note,
    }


def tensors(device: str, dtype: str, tokens: int, width: int, vocabulary: int) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator(device).manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(tokens, width, generator=generator, device=device).to(kind)
    weight = torch.empty(vocabulary, width, dtype=kind, device=device)
    for rows in weight.split(8192):  # no second copy of the head
        rows.copy_(torch.randn(rows.shape, generator=generator, device=device) * (2.5 / width**0.5))
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator, device=device)
    return hidden, weight, ids


def contenders(hidden: Any, weight: Any, ids: Any) -> dict[str, Callable[[], Any]]:
    import torch
    from trl.kernels import ChunkedLogProbFunction

    from entropy_rft.entropy import fused, fused_token_statistics, token_statistics

    rounded = None if hidden.dtype == torch.float32 else hidden.dtype
    in_torch = (fused.TOKEN_TILE, fused.VOCABULARY_TILE)
    ours = (TRL_TOKENS, TRL_VOCABULARY) if hidden.is_cuda else in_torch

    def floor(token_tile: int, vocabulary_tile: int) -> None:
        columns = min(vocabulary_tile, weight.shape[0])
        buffer = hidden.new_empty(min(token_tile, hidden.shape[0]), columns)
        for rows in hidden.split(token_tile):
            for part in weight.split(columns):
                torch.mm(rows, part.t(), out=buffer[: rows.shape[0], : part.shape[0]])

    def trl() -> Any:
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, ids, 1.0, TRL_VOCABULARY, None, 1.0, ("log_probs", "entropy")
        )

    found: dict[str, Callable[[], Any]] = {
        "naive": lambda: token_statistics(hidden @ weight.T, ids),
        "trl": trl,
        "ours": lambda: fused_token_statistics(hidden, weight, ids, product_dtype=rounded),
        "floor": lambda: floor(*ours),
    }
    if rounded is not None:
        found["ours32"] = lambda: fused_token_statistics(hidden, weight, ids)
    if ours != (TRL_TOKENS, TRL_VOCABULARY):
        found["floor_trl_tiles"] = lambda: floor(TRL_TOKENS, TRL_VOCABULARY)
    return {name: torch.no_grad()(found[name]) for name in CONTENDERS if name in found}


def fits(name: str, device: str, tokens: int, vocabulary: int) -> bool:
    """Whether the naive way, about six float32 copies of the logits, fits into memory."""
    if name != "naive":
        return True
    if device == "cuda":
        import torch

        available = torch.cuda.mem_get_info()[0]
    else:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 6 * 4 * tokens * vocabulary < 0.9 * available


def measure_time(calls: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of `repeats` rounds in which every contender is timed, after one warm-up round."""
    import torch

    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name]["wall"].append(time.perf_counter() - wall)
                times[name]["cpu"].append(time.process_time() - cpu)
    return times


def status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def memory_here(name: str, dtype: str, tokens: int, width: int, vocabulary: int) -> float:
    """MiB by which one call raises this process's resident memory at its peak."""
    hidden, weight, ids = tensors("cpu", dtype, tokens, width, vocabulary)
    contenders(hidden[:4], weight[:1024], ids[:4] % 1024)[name]()  # the start of the libraries does not count
    with contextlib.suppress(OSError, AttributeError):  # where it is glibc: what was freed must not be reused
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_kib("VmRSS")
    contenders(hidden, weight, ids)[name]()
    return (status_kib("VmHWM") - before) / 1024


def measure_memory(
    calls: dict[str, Callable[[], Any]], device: str, dtype: str, tokens: int, width: int, vocabulary: int
) -> dict[str, float | None]:
    """Peak extra MiB of each contender; None where the system does not report it."""
    import torch

    peaks: dict[str, float | None] = {}
    for name, call in calls.items():
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        elif Path("/proc/self/clear_refs").exists():
            command = [
                sys.executable,
                __file__,
                "--measure-memory",
                name,
                dtype,
                *map(str, (tokens, width, vocabulary)),
            ]
            child = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            run = subprocess.run(command, env=child, capture_output=True, text=True)
            peaks[name] = float(run.stdout) if run.returncode == 0 else None
        else:
            peaks[name] = None
    return peaks


def largest_differences(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Between ours and the others: a contender that computes something else would make the times worthless."""
    ours = calls["ours"]()
    found: dict[str, float] = {}
    if "trl" in calls:
        log_prob, entropy, *_ = calls["trl"]()
        found["trl log_prob"] = float((ours.log_prob - log_prob).abs().max())
        found["trl entropy"] = float((ours.entropy - entropy).abs().max())
    if "naive" in calls:
        naive = calls["naive"]()
        for name in ("log_prob", "entropy", "expected_discriminant"):
            found[f"naive {name}"] = float((getattr(ours, name) - getattr(naive, name)).abs().max())
    return found


def ratios(row: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for clock in ("wall", "cpu"):
        seconds = {name: statistics.median(times[clock]) for name, times in row["seconds"].items()}
        floors = [seconds[name] for name in ("floor", "floor_trl_tiles") if name in seconds]
        kind = "time" if clock == "wall" else "CPU time"
        for name in ("ours", "ours32"):
            if name in seconds and "trl" in seconds:
                found[f"{kind} {name}/trl"] = seconds[name] / seconds["trl"]
            if name in seconds and floors:
                found[f"{kind} {name}/floor"] = seconds[name] / min(floors)
        if "trl" in seconds and floors:  # a lower bound for every implementation
            found[f"{kind} floor/trl"] = min(floors) / seconds["trl"]
        if "naive" in seconds:
            found[f"{kind} naive/ours"] = seconds["naive"] / seconds["ours"]
    memory = row["extra_memory_mib"]
    if memory.get("ours"):
        found["extra memory ours, MiB"] = memory["ours"]
        for one, name in (("trl", "memory ours/trl"), ("naive", "memory naive/ours")):
            if memory.get(one):
                found[name] = memory["ours"] / memory[one] if one == "trl" else memory[one] / memory["ours"]
    return found


def judge(row: dict[str, Any], device: str) -> dict[str, bool]:
    return {
        f"{name} {kind} {limit}": row["ratios"][name] <= limit if kind == "at most" else row["ratios"][name] >= limit
        for where, name, limit, kind, applies in TARGETS
        if where in (device, "any") and applies(row) and name in row["ratios"]
    }


def measured(
    device: str, sizes: dict[str, Any], skip: Sequence[str], repeats: int, memory: bool = True
) -> dict[str, Any]:
    """One row of the result: times, memory, their ratios, and whether the goals are met.

    Memory on a CPU takes a process for each contender; without `memory` it is left out.
    """
    calls = {
        name: call
        for name, call in contenders(*tensors(device, **sizes)).items()
        if name not in skip and fits(name, device, sizes["tokens"], sizes["vocabulary"])
    }
    row: dict[str, Any] = {**sizes, "seconds": measure_time(calls, device, repeats)}
    row["extra_memory_mib"] = measure_memory(calls, device, **sizes) if memory else {}
    row["largest_differences"] = largest_differences(calls)
    row["ratios"] = ratios(row)
    row["targets"] = judge(row, device)
    return row


def show(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{row['dtype']}, N = {row['tokens']:,}, V = {row['vocabulary']:,}, D = {row['width']:,}"
    table = Table("contender", "median s", "range s", "CPU s", "extra MiB", title=title)
    for name, times in row["seconds"].items():
        wall, memory = times["wall"], row["extra_memory_mib"].get(name)
        table.add_row(
            name,
            f"{statistics.median(wall):.4f}",
            f"{min(wall):.4f} to {max(wall):.4f}",
            f"{statistics.median(times['cpu']):.4f}",
            "-" if memory is None else f"{memory:,.0f}",
        )
    console = Console()
    console.print(table)
    for name, value in row["ratios"].items():
        console.print(f"  {name}: {value:.3f}")
    for name, met in row["targets"].items():
        console.print(f"  target {name}: {'met' if met else '[bold]missed[/bold]'}")


def write(path: Path, result: dict[str, Any]) -> None:
    from entropy_rft.atomic import write_text
    from entropy_rft.files import json_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json_text(result, indent=1) + "\n")
    print(f"written to {path}")


def main() -> int:
    options = arguments()
    if options.measure_memory:
        name, dtype, *sizes = options.measure_memory
        print(memory_here(name, dtype, *map(int, sizes)))
        return 0
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = device == "cuda"
    result: dict[str, Any] = {"benchmark": "statistics", **environment(device, options.note), "rows": []}
    output = options.output or RESULTS / f"statistics-{device}.json"
    for dtype in options.dtypes or (["bfloat16"] if on_cuda else ["float32"]):
        for width in options.widths or ([1024, 2048, 4096, 5120] if on_cuda else [256, 512, 1024, 2048]):
            for tokens in options.tokens or ([2048, 8192, 32_768] if on_cuda else [1024]):
                sizes = {"dtype": dtype, "tokens": tokens, "width": width, "vocabulary": options.vocabulary}
                row = measured(device, sizes, options.skip, options.repeats)
                show(row)
                result["rows"].append(row)
                write(output, result)  # after every row: an interrupted run keeps what it measured
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
