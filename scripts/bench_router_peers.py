#!/usr/bin/env python
"""The router beside LiteLLM by a load generator that others made (AIPerf), and by ours, in one run.

    python scripts/bench_router_peers.py --setup                     # LiteLLM and aiperf, each in its environment
    python scripts/bench_router_peers.py --aiperf PATH --litellm PATH
    python scripts/bench_router_peers.py --setup --vllm .venv-vllm/bin/python    # vLLM behind them instead of a stub

The same backend is asked directly, through the router and through LiteLLM, at fixed concurrency, by aiperf and by
`load_generator.py`; the contenders take turns in every round. The result is added to the file: the same command goes on
where an earlier one was interrupted, or ended by `--minutes`.

Behind the stub the router routes as in `bench_router.py`. Before vLLM it decides and passes the request on unchanged
(`mode: shadow`), so that all contenders ask vLLM for the same 32 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench_router
from bench_router import (
    CACHED,
    Contender,
    environment,
    install,
    install_litellm,
    litellm_process,
    measure,
    start_all,
)
from bench_statistics import RESULTS, write
from peers import AIPERF, run_aiperf
from processes import ServerProcess, router_process  # found by bench_router

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_PROBE
from entropy_rft.models.sources import model_source

GENERATORS = ("aiperf", "ours")
NEW = 8000  # questions of one measurement with new ones
ANSWER = {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True}  # of vLLM, whoever asks
_KEY = ("behind", "round", "mode", "concurrency", "generator", "contender")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", type=Path, metavar="EXECUTABLE")
    parser.add_argument("--litellm", type=Path, metavar="EXECUTABLE", help="LiteLLM's proxy")
    parser.add_argument("--setup", action="store_true", help="install the ones that are not given")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="of an environment with vLLM and this package")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--modes", nargs="+", choices=("plain", "streamed"), default=["streamed"])
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="then no further measurement begins")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose the cores")
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print the tables of an earlier run, measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS / "router-peers.json")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.show is not None:
        print(table(json.loads(options.show.read_text())))
        return 0
    aiperf = options.aiperf or (install("aiperf", f"aiperf=={AIPERF}") if options.setup else None)
    litellm = options.litellm or (install_litellm() if options.setup else None)
    if aiperf is None or litellm is None:
        sys.exit("give --aiperf EXECUTABLE and --litellm EXECUTABLE, or --setup, which installs them")
    result: dict[str, Any] = {"settings": {}, "environments": [], "measurements": []}
    if options.output.exists():
        result = json.loads(options.output.read_text())
    behind = "stub" if options.vllm is None else "vllm"
    result["settings"][behind] = {"seconds": options.seconds, "aiperf": AIPERF, "pinned": not options.no_pin}
    missing = [each for each in plan(options, behind) if each not in map(key, result["measurements"])]
    if not missing:
        print("everything was measured before: --rounds for more")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    since = time.monotonic()
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        directory = Path(temporary)
        start = before_vllm if options.vllm else before_stub
        contenders = {each.name: each for each in start(stack, directory, litellm, options)}
        result["environments"].append(environment(options.note, litellm))
        for number, each in enumerate(missing):
            if options.minutes is not None and time.monotonic() - since > 60 * options.minutes:
                print(f"{len(missing) - number} measurements are left: the same command goes on")
                break
            where = dict(zip(_KEY, each, strict=True))
            contender = contenders[where["contender"]]
            try:
                found = one(where, contender, aiperf, directory / str(number), options)
            except (OSError, RuntimeError) as error:
                sys.exit(f"{contender.name}: {error}; the end of its log:\n{contender.process.said()[-2000:]}")
            result["measurements"].append(where | found)
            write(options.output, result)
            print(f"{number + 1}/{len(missing)}", *each, brief(found), flush=True)
    result["results"] = combined(result["measurements"])
    write(options.output, result)
    print("\n" + table(result))
    return 1 if any(each["errors"] for each in result["measurements"]) else 0


# ---- what is measured


def plan(options: argparse.Namespace, behind: str) -> Iterator[tuple[Any, ...]]:
    """The keys of all measurements, in their order."""
    names = {
        "stub": ("stub", "router, cached", "router, new, pooling server", "litellm"),
        "vllm": ("vllm", "router, cached", "router, new", "litellm"),
    }
    turns = itertools.product(range(options.rounds), options.modes, options.concurrency, GENERATORS, names[behind])
    return ((behind, *each) for each in turns)


def key(measurement: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(measurement[name] for name in _KEY)


def one(
    where: dict[str, Any], contender: Contender, aiperf: Path, directory: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One measurement by one generator."""
    stream, concurrency = where["mode"] == "streamed", where["concurrency"]
    if where["generator"] == "ours":
        found = measure(contender, concurrency, stream, options.seconds)
        kept = {name: value for name, value in found.items() if not name.startswith(("first_byte", "cores"))}
        return kept | {f"first_token_{p}_ms": found[f"first_byte_{p}_ms"] for p in ("p50", "p99")}
    bodies = itertools.islice(contender.bodies(stream), NEW if contender.new_questions else CACHED)
    texts = [json.loads(body)["messages"][0]["content"] for body in bodies]
    warm_up = max(CACHED, 2 * concurrency)  # every cached question once
    return run_aiperf(
        aiperf,
        contender.url,
        texts,
        directory,
        tokenizer=model_source(DEFAULT_MODEL),
        concurrency=concurrency,
        seconds=options.seconds,
        stream=stream,
        warm_up=warm_up,
        extra=contender.extra,
    )


# ---- the servers


def before_stub(stack: ExitStack, directory: Path, litellm: Path, options: argparse.Namespace) -> list[Contender]:
    words = ["--quick", "--no-pin"] if options.no_pin else ["--quick"]
    return start_all(stack, directory, litellm, bench_router.arguments(words))


def before_vllm(stack: ExitStack, directory: Path, litellm: Path, options: argparse.Namespace) -> list[Contender]:
    """vLLM with the embedded model and its probe; not pinned, because the model uses the cores that it gets."""
    command = [str(options.vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", model_source(DEFAULT_MODEL)]
    command += ["--served-model-name", "stub", "--host", "127.0.0.1", "--port", "{port}", "--enforce-eager"]
    command += ["--dtype", "float32", "--max-model-len", "2048"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    variables["ENTROPY_RFT_PROBE"] = str(DEFAULT_PROBE)
    engine = stack.enter_context(ServerProcess(command, directory / "vllm.log", environment=variables))
    engine.wait_until_ready(300)
    settings = {"probe": "embedded", "backends": [engine.url], "mode": "shadow", "log_level": "warning"}
    settings["features"] = {"kind": "vllm", "deadline_ms": 10_000}
    router = stack.enter_context(router_process(directory, settings, ready="/ready"))
    proxy = litellm_process(stack, directory, litellm, engine.url)
    contenders = [
        Contender("vllm", engine.url, engine, extra=ANSWER),
        Contender("router, cached", router.url, router, extra=ANSWER),
        Contender("router, new", router.url, router, new_questions=True, extra=ANSWER),
        Contender("litellm", proxy.url, proxy, extra=ANSWER),
    ]
    for contender in contenders:
        contender.process.wait_until_ready(180)
    return contenders


# ---- the report


def combined(measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median of each number over the rounds; and of the ratios to LiteLLM in the same round, with their range."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for each in measurements:
        where = tuple(each[name] for name in _KEY if name != "round")
        groups.setdefault(where, {})[each["round"]] = each
    results = []
    for where, rounds in groups.items():
        result = dict(zip((name for name in _KEY if name != "round"), where, strict=True))
        result["rounds"] = len(rounds)
        result["errors"] = sum(each["errors"] for each in rounds.values())
        for name in ("requests_per_second", "output_tokens", "cpu_ms", *_times(rounds.values())):
            numbers = [each[name] for each in rounds.values() if each.get(name) is not None]
            result[name] = statistics.median(numbers) if numbers else None
        others = groups.get((*where[:-1], "litellm"), {})
        if where[-1] != "litellm":
            for name in ("requests_per_second", "p50_ms", "p99_ms", "first_token_p50_ms"):
                result[f"{name}_to_litellm"] = _ratio(rounds, others, name)
        results.append(result)
    return results


def _times(rounds: Any) -> list[str]:
    return sorted({name for each in rounds for name in each if name.endswith("_ms") and name != "cpu_ms"})


def _ratio(rounds: dict[int, Any], others: dict[int, Any], name: str) -> dict[str, float] | None:
    pairs = [(rounds[n].get(name), others[n].get(name)) for n in rounds if n in others]
    ratios = [mine / theirs for mine, theirs in pairs if mine and theirs]
    if not ratios:
        return None
    found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {statistic: round(value, 3) for statistic, value in found.items()}


def brief(found: dict[str, Any]) -> str:
    shown = ("requests_per_second", "first_token_p50_ms", "p50_ms", "p99_ms", "between_tokens_p50_ms", "cpu_ms")
    return " ".join(f"{name}={found[name]}" for name in shown if found.get(name) is not None)


def table(result: dict[str, Any]) -> str:
    """The results as a table of the documentation."""
    rows = [
        "| behind | mode | at once | by | | requests/s | first token p50 ms | p50 ms | p99 ms | between tokens p50 ms "
        "| CPU ms a request | requests/s to LiteLLM's |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in result["results"]:
        numbers = [each["requests_per_second"], each.get("first_token_p50_ms"), each["p50_ms"], each["p99_ms"]]
        numbers += [each.get("between_tokens_p50_ms"), each["cpu_ms"]]
        cells = ["" if number is None else f"{number:,.2f}" for number in numbers]
        ratio = each.get("requests_per_second_to_litellm")
        cells.append("" if ratio is None else f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
        where = [each["behind"], each["mode"], str(each["concurrency"]), each["generator"], each["contender"]]
        errors = f" ({each['errors']} errors)" if each["errors"] else ""
        rows.append(f"| {' | '.join(where)}{errors} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
