#!/usr/bin/env python
"""What the router adds to a request, compared with LiteLLM's proxy before the same stub backend, in one run.

    python scripts/bench_router.py --setup             # LiteLLM in .venv-litellm, made when it is missing
    python scripts/bench_router.py --litellm PATH      # its executable
    python scripts/bench_router.py --quick             # no LiteLLM, half a second each

Closed-loop load at each concurrency, plain and streamed. The contenders take turns; the result is the median of the
rounds. Servers are processes of their own: the one under test has its own core, the load and the stubs share another
(with `--no-pin` the system chooses). The router is asked with cached questions (64 of them), with a new question each
time whose hidden state comes from a stub of a pooling server, and with a new one each time that the embedded model
reads in the router's own process. At the end one router answers `--memory-requests` of all kinds, and its memory is
read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from bench_statistics import RESULTS, write
from load_generator import load, questions, run
from router_report import added, combined, line, table, targets

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "integration"
sys.path[:0] = [str(TESTS), str(TESTS / "router")]

from processes import ServerProcess, router_process  # noqa: E402

LITELLM = "1.106.2"
CONCURRENCY = (1, 16, 64, 256)
MODES = ("plain", "streamed")
WORDS = 16  # of a streamed answer
CACHED = 64  # questions
PACKAGES = ("entropy_rft", "aiohttp", "httptools", "orjson", "starlette", "uvicorn", "uvloop")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, metavar="EXECUTABLE", help="LiteLLM's proxy")
    parser.add_argument("--setup", action="store_true", help=f"install LiteLLM {LITELLM} into .venv-litellm")
    parser.add_argument("--quick", action="store_true", help="a quick check, not a measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCY))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of the answers")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="contenders whose names contain one of these words")
    parser.add_argument("--memory-requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1, help="of the router; several are not pinned to cores")
    parser.add_argument("--tracing", action="store_true", help="beside it a router that makes spans and exports them")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose the cores")
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print the tables of an earlier run, measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS / "router-cpu.json")
    options = parser.parse_args(words)
    if options.quick:
        options.concurrency, options.seconds, options.rounds, options.memory_requests = [1, 16], 0.5, 1, 3_000
    return options


@dataclass
class Contender:
    """A server under test and what it is asked."""

    name: str
    url: str
    process: ServerProcess
    model: str = "stub"
    new_questions: bool = False
    beside: tuple[int, ...] = ()  # the processes of the stubs
    extra: dict[str, Any] | None = None  # fields of every request

    def bodies(self, stream: bool) -> Iterator[bytes]:
        different, first = CACHED, 0
        if self.new_questions:
            different, first = 10**9, next(_numbers) * 10_000_000  # no run repeats a question of another
        return questions(10**9, model=self.model, stream=stream, different=different, first=first, extra=self.extra)


_numbers = itertools.count(1)


def until(seconds: float, bodies: Iterator[bytes]) -> Iterator[bytes]:
    """`bodies` until the time is over."""
    end = time.perf_counter() + seconds
    return itertools.takewhile(lambda body: time.perf_counter() < end, bodies)


def measure(contender: Contender, concurrency: int, stream: bool, seconds: float) -> dict[str, Any]:
    url = contender.url + "/v1/chat/completions"
    ask = contender.bodies(stream)

    def phase(duration: float) -> Callable[[], Any]:
        return lambda: load(url, until(duration, ask), concurrency=concurrency, stream=stream)

    warm_up = run(phase(min(1.0, seconds / 4)))
    before, others_before = cpu_seconds(contender.process.pid), others(contender)
    measured = warm_up if warm_up.errors else run(phase(seconds))
    summary = measured.summary()
    # The server's own work, which does not depend on what else the machine does.
    used = cpu_seconds(contender.process.pid) - before
    if measured.totals:
        summary["cpu_ms"] = round(1e3 * used / len(measured.totals), 4)
        summary["cores"] = round(used / measured.seconds, 3)
        summary["cores_of_load_and_stubs"] = round((others(contender) - others_before) / measured.seconds, 3)
    return summary


def others(contender: Contender) -> float:
    """CPU seconds of the load, in this process, and of the stubs."""
    stubs = (pid for pid in contender.beside if pid != contender.process.pid)
    return sum(psutil.Process().cpu_times()[:2]) + sum(cpu_seconds(pid) for pid in stubs)


def measure_all(contenders: list[Contender], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the rounds, the contenders taking turns."""
    results = []
    for mode, concurrency in itertools.product(options.modes, options.concurrency):
        rounds: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender in contenders:
                measured = measure(contender, concurrency, mode == "streamed", options.seconds)
                rounds[contender.name].append(measured)
        for name, turns in rounds.items():
            result = {"contender": name, "mode": mode, "concurrency": concurrency} | combined(turns)
            results.append(result)
            print(line(result), flush=True)
    return results


def cpu_seconds(pid: int) -> float:
    """What a process and those that it started have used so far."""
    first = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in (first, *first.children(recursive=True)))


def resident_mib(pid: int) -> float:
    if Path(f"/proc/{pid}/status").exists():
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found
        return round(int(found[1]) / 1024, 2)
    kilobytes = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return round(int(kilobytes) / 1024, 2)


def watch_memory(contender: Contender, requests: int) -> dict[str, Any]:
    """Memory while one router answers: half plain and cached, a quarter streamed, a quarter new questions.

    The share of new questions fills the cache of 10,000 within the first half.
    """
    url = contender.url + "/v1/chat/completions"
    points = [(0, resident_mib(contender.process.pid))]
    errors: list[str] = []
    step = max(1, requests // 20)
    done = 0
    while done < requests and not errors:
        first = next(_numbers) * 10_000_000
        for share, stream, different, start in ((2, False, CACHED, 0), (1, True, CACHED, 0), (1, False, 10**9, first)):
            bodies = questions(step * share // 4, stream=stream, different=different, first=start)
            measured = run(lambda bodies=bodies, stream=stream: load(url, bodies, concurrency=64, stream=stream))
            errors += measured.errors
            done += len(measured.totals)
        points.append((done, resident_mib(contender.process.pid)))
        print(f"{done:>8} requests: {points[-1][1]:.1f} MiB", flush=True)
    middle = next(mib for count, mib in points if count >= done / 2)
    left = urllib.request.urlopen(f"{contender.url}/metrics", timeout=30).read().decode()
    return {
        "requests": done,
        "errors": errors[:3],
        "mib": points,
        "second_half_growth": round(points[-1][1] / middle - 1, 4),
        "in_flight_at_the_end": sum(map(float, re.findall(r"^entropy_rft_in_flight (\S+)", left, re.MULTILINE))),
    }


def start_all(stack: ExitStack, directory: Path, litellm: Path | None, options: argparse.Namespace) -> list[Contender]:
    """Every server that is asked for, ready."""
    stub = stack.enter_context(stub_process(directory / "stub.log", "--events", str(WORDS)))
    pooling = stack.enter_context(stub_process(directory / "pooling.log", "--pooling", "128"))
    stub.wait_until_ready(60)
    pooling.wait_until_ready(60)
    settings = {"probe": "embedded", "backends": [stub.url], "workers": options.workers}
    settings["log_level"] = "warning" if options.workers == 1 else "info"
    pooled = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 10_000}

    def router(name: str, features: dict[str, Any], **more: Any) -> ServerProcess:
        place = directory / name
        place.mkdir()
        sink = {"OTEL_EXPORTER_OTLP_ENDPOINT": stub.url}  # it answers 200 to any POST below /v1/
        given = settings | {"features": features} | more
        return stack.enter_context(router_process(place, given, ready="/ready", environment=sink))

    contenders = [Contender("stub", stub.url, stub)]
    first = router("pooled", pooled)
    contenders.append(Contender("router, cached", first.url, first))
    contenders.append(Contender("router, new, pooling server", first.url, first, new_questions=True))
    if not options.quick:
        local = router("local", {"kind": "local", "deadline_ms": 10_000})
        contenders.append(Contender("router, new, local", local.url, local, new_questions=True))
    if options.tracing:
        traced = router("traced", pooled, tracing=True)
        contenders.append(Contender("router, cached, traced", traced.url, traced))
    if litellm is not None:
        contenders.append(Contender("litellm", "", litellm_process(stack, directory, litellm, stub.url)))
        contenders[-1].url = contenders[-1].process.url
    if options.only:
        contenders = [c for c in contenders if c.name == "stub" or any(word in c.name for word in options.only)]
    for contender in contenders:
        contender.process.wait_until_ready(180)
        if options.workers > 1 and contender.name.startswith("router"):
            while "the router listens" not in contender.process.said():  # /ready is answered by the first worker
                time.sleep(0.05)
        contender.beside = (stub.pid, pooling.pid)
    if not options.no_pin and options.workers == 1:
        pin({c.process.pid for c in contenders[1:]}, {stub.pid, pooling.pid, os.getpid()})
    return contenders


def stub_process(log: Path, *flags: str) -> ServerProcess:
    return ServerProcess([sys.executable, str(TESTS / "router" / "stub.py"), "--port", "{port}", *flags], log)


def litellm_process(stack: ExitStack, directory: Path, executable: Path, backend: str) -> ServerProcess:
    """One worker that forwards every request."""
    parameters = {"model": "openai/stub", "api_base": f"{backend}/v1", "api_key": "none"}
    config = directory / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "stub", "litellm_params": parameters}]}))
    command = [str(executable), "--config", str(config), "--host", "127.0.0.1", "--port", "{port}"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    environment["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # no keys: the router has none either
    process = ServerProcess(
        [*command, "--num_workers", "1"],
        directory / "litellm.log",
        ready="/health/liveliness",
        environment=environment,
    )
    return stack.enter_context(process)


def pin(under_test: set[int], others: set[int]) -> None:
    """The servers under test on one core, everything else on another, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    for processes, core in ((under_test, cores[1]), (others, cores[0])):
        for pid in processes:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})


def install(command: str, requirement: str) -> Path:
    """A tool's executable, in an environment of its own, which is made where it is missing.

    Of its own, because such tools pin versions that others do not want.
    """
    directory = ROOT / f".venv-{command}"
    executable = directory / "bin" / command
    if not executable.exists():
        print(f"installing {requirement} into {directory}")
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        pip = [str(directory / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, requirement], check=True)
    return executable


def install_litellm() -> Path:
    """LiteLLM's proxy."""
    return install("litellm", f"litellm[proxy]=={LITELLM}")


def environment(note: str, litellm: Path | None) -> dict[str, Any]:
    """What a reader needs to judge a time."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), cpu)
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    if litellm is not None:
        shown = subprocess.run([str(litellm), "--version"], capture_output=True, text=True).stdout
        found = re.search(r"\d+\.\d+\.\d+\S*", shown)
        versions["litellm"] = found[0] if found else "unknown"
    load_average = list(os.getloadavg())
    return {"cpu": cpu, "cores": os.cpu_count(), "load_average": load_average, "versions": versions, "note": note}


def main() -> int:
    options = arguments()
    if options.show is not None:
        print(table(json.loads(options.show.read_text())))
        return 0
    litellm = options.litellm or (install_litellm() if options.setup else None)
    if litellm is None:
        print("LiteLLM is left out: give --litellm EXECUTABLE or --setup")
    result: dict[str, Any] = {"environment": environment(options.note, litellm), "seconds": options.seconds}
    result["workers"] = options.workers
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        contenders = start_all(stack, Path(temporary), litellm, options)
        result["results"] = measure_all(contenders, options)
        result["added"] = added(result["results"])
        router = next((c for c in contenders if c.name == "router, cached"), None)
        memory = None
        if router is not None and options.memory_requests:
            memory = result["memory"] = watch_memory(router, options.memory_requests)
        result["targets"] = targets(result["results"], result["added"], memory)
    print("\n" + table(result))
    write(options.output, result)
    failed = any(each["errors"] for each in result["results"]) or bool(result.get("memory", {}).get("errors"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
