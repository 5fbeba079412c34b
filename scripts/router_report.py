"""Summaries of the measurements of `bench_router.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any


def combined(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number; counts are summed, and each round is kept."""
    first_error = next((each["first_error"] for each in rounds if each["errors"]), None)
    numbers = [key for key in rounds[0] if key.endswith(("_ms", "per_second")) or key.startswith("cores")]
    middle = {
        key: statistics.median(values) if (values := [r[key] for r in rounds if r.get(key) is not None]) else None
        for key in numbers
    }
    counts = {key: sum(each[key] for each in rounds) for key in ("requests", "errors")}
    return {**counts, "first_error": first_error, **middle, "rounds": rounds}


def line(result: dict[str, Any]) -> str:
    where = f"{result['mode']:>8} c={result['concurrency']:<4}{result['contender']:<34}"
    if result["errors"]:
        return f"{where}{result['errors']} errors: {str(result['first_error'])[:120]!r}"
    shown = ("p50", "p99", "first_byte_p50", "cpu")
    times = "".join(f"{name} {result[f'{name}_ms']:>9.3f} ms  " for name in shown if result.get(f"{name}_ms"))
    return f"{where}{result['requests_per_second']:>9.1f} /s  {times}"


def added(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Latency above the stub's own at the same load, and ratios to LiteLLM."""
    found = {(r["mode"], r["concurrency"], r["contender"]): r for r in results if not r["errors"]}
    rows = []
    for (mode, concurrency, name), result in found.items():
        alone = found.get((mode, concurrency, "stub"))
        if name == "stub" or alone is None:
            continue
        row = {"contender": name, "mode": mode, "concurrency": concurrency}
        row |= {f"added_{p}_ms": round(result[f"{p}_ms"] - alone[f"{p}_ms"], 4) for p in ("p50", "p99")}
        litellm = found.get((mode, concurrency, "litellm"))
        if litellm is not None and name != "litellm":
            row["times_litellm_requests_per_second"] = round(
                result["requests_per_second"] / litellm["requests_per_second"], 2
            )
            row["share_of_litellm_p99"] = round(result["p99_ms"] / litellm["p99_ms"], 4)
        rows.append(row)
    return rows


def tail(results: list[dict[str, Any]], concurrency: int) -> float | None:
    """How many times its p50 a router's p99 is: the most of all contenders and modes at this concurrency."""
    measured = [
        each["p99_ms"] / each["p50_ms"]
        for each in results
        if each["contender"].startswith("router") and each["concurrency"] == concurrency and not each["errors"]
    ]
    return round(max(measured), 2) if measured else None


def targets(
    results: list[dict[str, Any]], rows: list[dict[str, Any]], memory: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The targets, and the measured values."""

    def value(concurrency: int, key: str) -> float | None:
        wanted = ("router, cached", "plain", concurrency)
        return next((r.get(key) for r in rows if (r["contender"], r["mode"], r["concurrency"]) == wanted), None)

    checks: list[tuple[str, float | None, Callable[[float], bool]]] = [
        ("added p50 at concurrency 1, cached, at most 1 ms", value(1, "added_p50_ms"), lambda v: v <= 1),
        (
            "at concurrency 64 at least 10 times LiteLLM's requests/s",
            value(64, "times_litellm_requests_per_second"),
            lambda v: v >= 10,
        ),
        (
            "at concurrency 64 at most a tenth of LiteLLM's p99",
            value(64, "share_of_litellm_p99"),
            lambda v: v <= 0.1,
        ),
        ("at concurrency 64 p99 at most 4 times p50", tail(results, 64), lambda v: v <= 4),
        ("at concurrency 256 p99 at most 4 times p50", tail(results, 256), lambda v: v <= 4),
        (
            "memory over the second half of the requests grows by at most 2 %",
            memory["second_half_growth"] if memory else None,
            lambda v: v <= 0.02,
        ),
    ]
    return [
        {"target": text, "value": found, "met": None if found is None else met(found)} for text, found, met in checks
    ]


def table(result: dict[str, Any]) -> str:
    """The results as the tables of README.md."""
    rows = [
        "| mode | concurrency | | requests/s | p50 ms | p99 ms | first byte p50 ms | CPU ms a request |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in result["results"]:
        if each["errors"]:
            numbers = [f"{each['errors']} errors", "", "", "", ""]
        else:
            keys = ("p50_ms", "p99_ms", "first_byte_p50_ms", "cpu_ms")
            numbers = [f"{each['requests_per_second']:,.0f}"]
            numbers += ["" if each.get(key) is None else f"{each[key]:,.2f}" for key in keys]
        rows.append(f"| {each['mode']} | {each['concurrency']} | {each['contender']} | {' | '.join(numbers)} |")
    rows += ["", "| target | found | |", "| --- | --- | --- |"]
    for target in result["targets"]:
        found = "not measured yet" if target["value"] is None else f"{target['value']:g}"
        rows.append(f"| {target['target']} | {found} | {({True: 'met', False: 'missed', None: ''})[target['met']]} |")
    memory = result.get("memory")
    if memory:
        points = ", ".join(
            f"{mib:.1f} after {count:,}" for count, mib in memory["mib"][:: max(1, len(memory["mib"]) // 6)]
        )
        rows += ["", f"Memory, MiB of requests: {points}; {memory['mib'][-1][1]:.1f} at the end."]
    return "\n".join(rows)
