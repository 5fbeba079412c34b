#!/usr/bin/env python
"""An hour of the router at half load, while its backends are killed and started again at random.

    python scripts/soak_router.py                    # an hour; about 0.7 GB of memory
    python scripts/soak_router.py --minutes 1        # a look

The router, three backends that answer and a pooling server are processes of their own. The load that saturates is
measured for a few seconds; half of it follows, at random moments, half of it streamed, half of the questions new. A
backend is killed (SIGKILL) only while another one accepts connections; the pooling server is killed at any time. Each
backend writes into a file what it received and what it sent, which tells of every error whether it could have been
avoided. The router's memory and its open descriptors are read every 5 s. Ctrl-C ends it early, with the results so
far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from bench_router import ROOT, TESTS, cpu_seconds, environment, resident_mib
from bench_statistics import RESULTS, write
from load_generator import run
from processes import ServerProcess, router_process  # found by bench_router
from soak.client import Load
from soak.ledger import Ledger
from soak.verdict import outcomes, slope

SAMPLE_S = 5.0
PATIENCE_S = 60.0
LEAST_BLOCKS = 20  # minutes, for a trend of the memory to be a fault
POOLING_SHARE = 0.15  # of the kills
DOWN_S = (0.2, 12.0)  # how long a killed server stays away
# Requests, half of them new: then the router remembers as many turns (65,536) and questions (10,000) as it ever will.
FULL = 140_000
Sample = tuple[float, int, float, float, int]
logger = logging.getLogger("soak")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the load (default: %(default)s)")
    parser.add_argument("--settle-minutes", type=float, help="left out of the slope; by default a sixth")
    parser.add_argument("--backends", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the load that saturates (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="requests a second, instead of measuring what saturates")
    parser.add_argument("--at-once", type=int, default=128, help="the load holds back above it (default: %(default)s)")
    parser.add_argument("--saturate-seconds", type=float, default=8.0)
    parser.add_argument("--idle-seconds", type=float, default=15.0, help="before the load, to count the descriptors")
    parser.add_argument("--kill-every", type=float, default=8.0, help="seconds, the mean (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "soak-router.log")
    parser.add_argument("--output", type=Path, default=RESULTS / "router-soak.json")
    options = parser.parse_args()
    if options.settle_minutes is None:
        options.settle_minutes = options.minutes / 6
    return options


def quiet_port(random: Random) -> int:
    """A free port that the system gives to no connection of its own accord: it must be free at every restart."""
    lowest = 32768
    with suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Victim:
    """A server that is killed and started again on its port.

    Args:
        name: for the log.
        port: its own.
        command: ``{port}`` stands for it.
        log: its output.
    """

    def __init__(self, name: str, port: int, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.port = port
        self.up = False
        self.kills: list[float] = []  # the loop's times
        self._command = [word.replace("{port}", str(self.port)) for word in command]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Until it accepts connections."""
        with self._log.open("a") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output, start_new_session=True)
        while True:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        self.up = True

    def kill(self) -> None:
        self.up = False
        self.end()
        self.kills.append(asyncio.get_running_loop().time())

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class Chaos:
    """Kills the servers and starts them again.

    Args:
        answering: one of them is always up.
        pooling: may be down at any time.
        every: seconds between two kills, the mean.
    """

    answering: list[Victim]
    pooling: Victim
    every: float
    random: Random
    returning: set[asyncio.Task[None]] = field(default_factory=set)

    async def rage(self, over: asyncio.Event) -> None:
        while not over.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), self.random.expovariate(1 / self.every))
                break
            up = [each for each in self.answering if each.up]
            candidates = up if len(up) > 1 else []
            if self.pooling.up and self.random.random() < POOLING_SHARE:
                candidates = [self.pooling]
            if not candidates:
                continue
            victim, down_s = self.random.choice(candidates), self.random.uniform(*DOWN_S)
            victim.kill()
            logger.debug("killed %s, back in %.1f s", victim.name, down_s)
            task = asyncio.create_task(self._back(victim, down_s, over))
            self.returning.add(task)
            task.add_done_callback(self.returning.discard)
        await asyncio.gather(*self.returning)

    @staticmethod
    async def _back(victim: Victim, down_s: float, over: asyncio.Event) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), down_s)
        await victim.start()
        logger.debug("%s is back", victim.name)


class Watch:
    """The router's memory and descriptors.

    Attributes:
        samples: seconds since the load began; requests sent; MiB that are resident; MiB that are the process's own,
            swapped out or not; descriptors. Resident memory also falls where the system takes back pages of libraries.
        slowest_s: the longest that GET /health took: whether the machine let the router run at all.
    """

    def __init__(self, router: ServerProcess) -> None:
        self.pid = router.pid
        self.port = router.port
        self.slowest_s = 0.0
        self.samples: list[Sample] = []

    async def health(self) -> None:
        """Ask for it once, over a connection of its own."""
        start = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)

    def own_mib(self) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return round(
            sum(int(kb) for kb in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", text, re.MULTILINE)) / 1024, 2
        )

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def idle(self, wanted: int, limit_s: float) -> int:
        """The fewest descriptors that are seen: at once where they are at most `wanted`, else within `limit_s`.

        A health check opens some for a moment, and idle connections are kept for some seconds.
        """
        end, fewest = time.monotonic() + limit_s, self.descriptors()
        while fewest > wanted and time.monotonic() < end:
            await asyncio.sleep(0.2)
            fewest = min(fewest, self.descriptors())
        return fewest

    async def keep(self, over: asyncio.Event, sent: Callable[[], int], report: Callable[[], None]) -> None:
        start, asking = time.monotonic(), None
        while not over.is_set():
            at = round(time.monotonic() - start, 1)
            self.samples.append((at, sent(), resident_mib(self.pid), self.own_mib(), self.descriptors()))
            if len(self.samples) % 2 == 1:
                report()
            if asking is None or asking.done():
                asking = asyncio.create_task(self.health())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), SAMPLE_S)
        if asking is not None:
            await asking


async def soak(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Everything; the result."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    ports = Random()  # two soaks at the same time have others
    files = [directory / f"{number}.ledger" for number in range(options.backends)]
    ledgers = [Ledger(file) for file in files]
    script = [sys.executable, str(ROOT / "scripts" / "soak" / "backend.py"), "--port", "{port}", "--ledger"]
    answering = [
        Victim(f"backend {number}", quiet_port(ports), [*script, str(file)], directory / f"{number}.log")
        for number, file in enumerate(files)
    ]
    stub = [sys.executable, str(TESTS / "router" / "stub.py"), "--port", "{port}", "--pooling", "128"]
    pooling = Victim("the pooling server", quiet_port(ports), stub, directory / "pooling.log")
    victims = [*answering, pooling]
    try:
        await asyncio.gather(*(each.start() for each in victims))
        settings = {
            "probe": "embedded",
            "backends": [each.url for each in answering],
            "features": {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 1000},
            "log_level": "warning",
        }
        with router_process(directory, settings, ready="/ready") as router:
            await asyncio.to_thread(router.wait_until_ready, 120)
            return await loaded(
                options, router, Chaos(answering, pooling, options.kill_every, Random(options.seed)), ledgers, over
            )
    finally:
        for each in victims:
            each.end()


async def loaded(
    options: argparse.Namespace, router: ServerProcess, chaos: Chaos, ledgers: list[Ledger], over: asyncio.Event
) -> dict[str, Any]:
    """The load on a router that is ready, and the verdict."""
    load, watch = Load(router.port, Random(options.seed + 1), options.at_once), Watch(router)
    shown = ("minutes", "backends", "share", "rate", "at_once", "kill_every", "seed")
    result: dict[str, Any] = {"settings": {name: getattr(options, name) for name in shown}}
    rate = options.rate
    used, since = cpu_seconds(router.pid), time.monotonic()
    saturating = await load.saturate(256, options.saturate_seconds)
    cores = (cpu_seconds(router.pid) - used) / (time.monotonic() - since)
    await load.settled(PATIENCE_S)
    rate = rate or options.share * saturating
    result["saturating_requests_per_second"] = round(saturating, 1)
    result["cores_of_the_router_then"] = round(cores, 2)
    result["requests_per_second"] = round(rate, 1)
    before = await watch.idle(0, options.idle_seconds)
    result["descriptors"] = {"idle_before": before}
    logger.info("%.0f requests/s saturate (%.2f cores); %.0f/s follow; %d descriptors", saturating, cores, rate, before)

    start, used = time.monotonic(), cpu_seconds(router.pid)

    def report() -> None:
        tally = load.tally
        seconds, _, mib, own, files = watch.samples[-1]
        kills = sum(len(each.kills) for each in (*chaos.answering, chaos.pooling))
        logger.info(
            "%6.0f s: %d sent, %d answered, %d failed, %d under way; %d kills; %.1f MiB (%.1f its own), %d descriptors",
            *(seconds, tally.sent, tally.answered, len(tally.failures), tally.open, kills, mib, own, files),
        )

    tasks = [load.keep(rate, over), chaos.rage(over), watch.keep(over, lambda: load.tally.sent, report)]
    await asyncio.gather(*tasks, ended(over, options.minutes * 60))
    seconds = time.monotonic() - start
    result["seconds"] = round(seconds, 1)
    result["cores_of_the_router"] = round((cpu_seconds(router.pid) - used) / seconds, 2)
    logger.info("the load has ended: waiting for the last answers and for idle connections to close")
    await load.settled(PATIENCE_S)
    result["descriptors"]["most"] = max(files for *_, files in watch.samples)
    result["descriptors"]["idle_after"] = await watch.idle(before, 120.0)
    result["slowest_health_answer_s"] = round(watch.slowest_s, 3)
    result["left_in_the_router"] = await asyncio.to_thread(left, router)
    result["kills"] = {each.name: len(each.kills) for each in (*chaos.answering, chaos.pooling)}
    result["outcomes"] = outcomes(load.tally, ledgers, [each.kills for each in chaos.answering])
    result["memory"] = memory(watch.samples, options.settle_minutes * 60)
    result["tracebacks_in_the_log"] = router.log.read_text(errors="replace").count("Traceback")
    return result


async def ended(over: asyncio.Event, seconds: float) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
    over.set()


def left(router: ServerProcess) -> dict[str, float]:
    """What the router still counts as under way."""
    import urllib.request

    text = urllib.request.urlopen(f"{router.url}/metrics", timeout=30).read().decode()
    names = ("in_flight", "backend_outstanding")
    return {n: sum(map(float, re.findall(rf"^entropy_rft_{n}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for n in names}


def memory(samples: list[Sample], settle_s: float) -> dict[str, Any]:
    """The slopes of the resident memory and of the process's own, MiB an hour, once the router's memories are full."""
    full = next((at for at, sent, *_ in samples if sent >= FULL), samples[-1][0])
    settle_s = max(settle_s, full)
    kept = [sample for sample in samples if sample[0] >= settle_s] or samples
    times = [sample[0] for sample in kept]
    block_s = min(60.0, max(SAMPLE_S, (times[-1] - times[0]) / 10))
    result: dict[str, Any] = {"left_out_s": settle_s}
    for column, name in ((2, "resident"), (3, "own")):
        trend = slope(times, [sample[column] for sample in kept], block_s)
        ends = {"first_mib": samples[0][column], "settled_mib": kept[0][column], "last_mib": samples[-1][column]}
        result[name] = ends | {"mib_per_hour": trend}
    return result | {"samples": samples}


def faults(result: dict[str, Any]) -> list[str]:
    """What the soak found wrong, in words."""
    found, wrong = result["outcomes"], []
    for name in ("lost", "without_any_outcome", "begun_twice", "answered_but_not_received_once"):
        if found[name]:
            wrong.append(f"{name.replace('_', ' ')}: {found[name]}")
    files = result["descriptors"]
    if files["idle_after"] > files["idle_before"]:
        wrong.append(f"descriptors: {files['idle_before']} before, {files['idle_after']} after")
    if any(result["left_in_the_router"].values()):
        wrong.append(f"the router still counts requests: {result['left_in_the_router']}")
    if result["tracebacks_in_the_log"]:
        wrong.append("the router's log has tracebacks")
    interval = result["memory"]["own"]["mib_per_hour"]["interval"]
    if interval and interval[0] > 0 and result["memory"]["own"]["mib_per_hour"]["blocks"] >= LEAST_BLOCKS:
        wrong.append(f"memory grows by {interval[0]:.2f} to {interval[1]:.2f} MiB an hour")
    return wrong


def said(result: dict[str, Any]) -> str:
    """The result for a reader."""
    short = {key: value for key, value in result.items() if key not in ("environment", "settings", "memory")}
    short["memory"] = {key: value for key, value in result["memory"].items() if key != "samples"}
    return json.dumps(short, indent=1)


def main() -> int:
    options = arguments()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    logger.setLevel(logging.DEBUG)
    screen, file = logging.StreamHandler(sys.stdout), logging.FileHandler(options.log, mode="w")
    screen.setLevel(logging.INFO)
    for handler in (screen, file):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    with TemporaryDirectory() as temporary:
        result = {"environment": environment(options.note, None)} | run(lambda: soak(options, Path(temporary)))
    wrong = result["wrong"] = faults(result)
    print(said(result))
    print("\n".join(f"wrong: {each}" for each in wrong) or "nothing is wrong")
    write(options.output, result)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
