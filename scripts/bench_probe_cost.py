#!/usr/bin/env python
"""What a probe in a vLLM server costs the requests that do not ask it: decode throughput, and memory.

    python scripts/bench_probe_cost.py --model smollm2            # with an environment that has vLLM and this package
    python scripts/bench_probe_cost.py --model modulo_reasoner --seconds 300

Two servers with the probe and two without, started in turns. In each round every server answers the same requests at
once, and continues each to the same length. The ratio of their throughputs, and of the CPU time for a token, is of the
same round and of the same place in the order of starts; its median has a 95 % interval (bootstrap over the ratios). The
ratio of the two servers without a probe is reported beside it: the difference that two starts of the same server have.

Memory is what only a server's own processes use (USS), summed over them, after the rounds, as the mean of the two; and
the size of the probe's file of tensors. The probe is random: it costs the same as a trained one.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench_one_engine import answer_of, in_turn, interval, kill, probe_of, show_goals, summed, vllm
from bench_statistics import RESULTS, environment, write

from entropy_rft.models.sources import model_source

SERVERS = ("without 1", "with 1", "with 2", "without 2")
GOALS = (("decode throughput, with / without", 0.99, "at least"), ("memory of the probe, MB", 10.0, "at most"))
_PAUSE_S = 0.3  # an engine ends what it has begun before the next one is asked; it has one thread


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="directory, smollm2 or embedded (default: %(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=240, help="then no further round begins (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="default: probe-cost-MODEL.json")
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    place, source = Path(mkdtemp(prefix="probe-cost-")), model_source(options.model)
    probe = probe_of(options.model, source, place)
    flags = ["--dtype", options.dtype, "--max-model-len", "2304"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    servers = {}
    try:
        for name in SERVERS:  # one after the other: together they would need more memory for a moment
            directory = str(probe) if name.startswith("with ") else ""
            servers[name] = vllm(name.replace(" ", "-"), source, place, *flags, ENTROPY_RFT_PROBE=directory)
            servers[name].wait()
        urls = {name: server.url for name, server in servers.items()}
        for url in urls.values():
            throughput(url, options.requests, options.tokens)
        rounds = measured(urls, {name: server.process.pid for name, server in servers.items()}, options)
        memory = {name: round(summed(server.process.pid, unique) / 2**20, 1) for name, server in servers.items()}
    finally:
        kill(server.process.pid for server in servers.values())
    result: dict[str, Any] = {"environment": environment("cpu", options.note), "rounds": rounds, "memory_mb": memory}
    result["settings"] = {name: getattr(options, name) for name in ("model", "dtype", "requests", "tokens")}
    result |= summary(rounds, memory, (probe / "probe.safetensors").stat().st_size / 2**20)
    write(options.output or RESULTS / f"probe-cost-{Path(options.model).name}.json", result)
    show(result)
    return 0


def measured(urls: dict[str, str], groups: dict[str, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second of each server, and the CPU time of its processes for each token (µs), round by round.

    The servers take turns, and in each round another one is the first.
    """
    rounds: list[dict[str, Any]] = []
    begin, longest = time.monotonic(), 0.0
    while time.monotonic() - begin + longest < options.seconds:
        started = time.monotonic()
        found: dict[str, dict[str, float]] = {"tokens_per_second": {}, "cpu_us": {}}
        for name in in_turn(SERVERS, len(rounds)):
            before = summed(groups[name], cpu_seconds)
            speed = throughput(urls[name], options.requests, options.tokens)
            used = summed(groups[name], cpu_seconds) - before
            found["tokens_per_second"][name] = round(speed, 2)
            found["cpu_us"][name] = round(1e6 * used / (options.requests * options.tokens), 2)
        rounds.append(found)
        longest = max(longest, time.monotonic() - started)
        print(f"round {len(rounds)}: {found}", flush=True)
    return rounds


def cpu_seconds(process: Any) -> float:
    return sum(process.cpu_times()[:2])


def unique(process: Any) -> float:
    """Bytes that no other process uses."""
    return process.memory_full_info().uss


def throughput(url: str, requests: int, tokens: int) -> float:
    """Tokens per second of `requests` answers at once, from the first request to the last answer."""

    def ask(number: int) -> int:
        messages = [{"role": "user", "content": f"Question {number}: how many are {number} and {number + 7}?"}]
        body = {"model": "m", "messages": messages, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        return int(answer_of(url, body)["usage"]["completion_tokens"])

    with ThreadPoolExecutor(requests) as pool:
        begin = time.perf_counter()
        made = sum(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - begin
    if made != requests * tokens:
        raise SystemExit(f"{url}: {made} tokens, not {requests * tokens}")
    time.sleep(_PAUSE_S)
    return made / seconds


def summary(rounds: list[dict[str, Any]], memory: dict[str, float], probe: float) -> dict[str, Any]:
    """Ratios with their intervals, the memory's difference, and the goals."""

    def with_to_without(what: str) -> list[float]:
        return interval([each[what][f"with {n}"] / each[what][f"without {n}"] for each in rounds for n in (1, 2)])

    def of_two_starts(what: str) -> list[float]:
        return interval([each[what]["without 2"] / each[what]["without 1"] for each in rounds])

    means = {word: statistics.mean(memory[f"{word} {n}"] for n in (1, 2)) for word in ("with", "without")}
    found = {
        "throughput_with_to_without": with_to_without("tokens_per_second"),
        "throughput_of_two_starts_without": of_two_starts("tokens_per_second"),
        "cpu_with_to_without": with_to_without("cpu_us"),
        "cpu_of_two_starts_without": of_two_starts("cpu_us"),
        "memory_added_mb": round(means["with"] - means["without"], 1),
        "memory_of_two_starts_mb": round(abs(memory["without 2"] - memory["without 1"]), 1),
        "probe_file_mb": round(probe, 3),
    }
    values = (found["throughput_with_to_without"][0], found["memory_added_mb"])
    goals = [
        {"goal": text, kind: limit, "found": value, "met": value >= limit if kind == "at least" else value <= limit}
        for (text, limit, kind), value in zip(GOALS, values, strict=True)
    ]
    return {"summary": found, "goals": goals}


def show(result: dict[str, Any]) -> None:
    for name, value in result["summary"].items():
        print(f"{name}: {value}")
    show_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(main())
