#!/usr/bin/env python
"""What one engine costs beside a plain server and beside two engines, on a real vLLM; and limits on the thinking.

    python scripts/bench_one_engine.py start --model smollm2    # servers; they stay
    python scripts/bench_one_engine.py measure --seconds 240    # again and again: results are added
    python scripts/bench_one_engine.py stop
    python scripts/bench_one_engine.py thinking                 # starts and ends its own server

`measure` asks new questions of 64, 512 and 2,048 tokens, streamed, one at a time, and takes the time to the first
token of the answer. The deployments take turns in each round, so that the machine's other work meets all of them:

- plain: the server itself, without a probe's request;
- router: one engine, and the router before it (`features: {kind: vllm}`);
- middleware: one engine, the router inside it;
- middleware, no probe: the same server, asked with a difficulty, so that only the probe's request is missing;
- two engines: the router asks a pooling engine of the same model, then the engine that answers;
- local: the router computes the hidden state with transformers, then asks the engine.

Ratios are of the same round, against plain; reported are medians with a 95 % interval (bootstrap over rounds). `start`
also saves the memory of each deployment, as the sum over its processes. The probe of a model that has none is random:
it costs the same as a trained one. The servers use the device that vLLM finds; without a GPU that is the CPU.

`thinking` asks the test questions with limits on the thinking (`thinking_token_budget`) and, for comparison, with the
same limits on the whole answer (`max_tokens`): accuracy, tokens, and the share of answers that were cut off.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

from bench_statistics import RESULTS, environment, write

from entropy_rft.difficulty import DifficultyProbe
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.models.sources import model_source

STATE = Path(gettempdir()) / "one-engine-servers.json"
LENGTHS = (64, 512, 2048)
UNPROBED = "middleware, no probe"
DEPLOYMENTS = ("plain", "router", "middleware", UNPROBED, "two engines", "local")
REASONS = {"plain": None, UNPROBED: "client"}  # that the router gives; of the others "probe"
GOALS = (
    ("one engine (router) / plain, 512 tokens", 1.15),
    ("one engine (middleware) / plain, 512 tokens", 1.15),
    ("one engine (router) / two engines, 512 tokens", 0.6),
    ("one engine (middleware) / two engines, 512 tokens", 0.6),
    ("memory, one engine (router) / two engines", 0.55),
    ("memory, one engine (middleware) / two engines", 0.55),
)
# Threads of a server wait actively for some time after a request. The next deployment may be another server, which
# needs their cores.
_PAUSE_S = 1.0
LIMITS = (8, 16, 24, 32, 48, 64, 96, 128)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("start")
    start.add_argument("--model", default="smollm2", help="directory, smollm2 or embedded (default: %(default)s)")
    start.add_argument("--block_size", type=int, default=32, help="of the prefix cache (default: %(default)s)")
    start.add_argument("--dtype", default="float32")
    start.add_argument("--threads", type=int, default=1, help="of an engine on a CPU (default: %(default)s)")
    measure = verbs.add_parser("measure")
    measure.add_argument(
        "--seconds", type=float, default=240, help="then no further round begins (default: %(default)s)"
    )
    measure.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="of a prompt, in tokens")
    measure.add_argument("--output", type=Path, help="results are added (default: one-engine-MODEL.json)")
    measure.add_argument("--note", default="")
    stop = verbs.add_parser("stop")
    for verb in (start, measure, stop):
        verb.add_argument(
            "--state", type=Path, default=STATE, help="file that names the servers (default: %(default)s)"
        )
    thinking = verbs.add_parser("thinking")
    thinking.add_argument("--model", default="modulo_reasoner")
    thinking.add_argument("--task", default="modulo")
    thinking.add_argument("--questions", type=int, default=300)
    thinking.add_argument("--output", type=Path, default=RESULTS / "thinking-limits.json")
    thinking.add_argument("--note", default="")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    return {"start": start, "measure": measure, "stop": stop, "thinking": thinking}[options.verb](options)


# ---- the servers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A process group; it outlives this script unless it is stopped."""

    def __init__(self, name: str, command: Sequence[str], port: int, place: Path, ready: str, **variables: str) -> None:
        self.name, self.url, self.log = name, f"http://127.0.0.1:{port}", place / f"{name}.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.ready = ready

    def wait(self, limit_s: float = 900) -> None:
        deadline = time.monotonic() + limit_s
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").splitlines()
                raise SystemExit("\n".join([f"{self.name} did not start:", *lines[-15:]]))
            with suppress(OSError), urllib.request.urlopen(self.url + self.ready, timeout=10):
                return
            time.sleep(0.5)


def vllm(name: str, model: str, place: Path, *flags: str, threads: int = 1, **variables: str) -> Server:
    """A server with 1 GiB for its cache.

    Args:
        threads: of its matrix products on a CPU. Engines that together have more threads than there are cores slow one
            another down, because threads that wait keep their cores busy.
    """
    # Unbound, because vLLM otherwise gives each server a thread on every core, whatever OMP_NUM_THREADS says.
    variables |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--served-model-name", "m", "--port", str(port), "--enforce-eager", *flags]
    return Server(name, command, port, place, "/health", **variables)


def router(name: str, settings: Mapping[str, Any], place: Path) -> Server:
    port = free_port()
    config = place / f"{name}.yaml"
    config.write_text(json.dumps({"port": port, **settings}))  # JSON is YAML
    command = [sys.executable, "-m", "entropy_rft", "serve", "--config", str(config)]
    return Server(name, command, port, place, "/ready")


def probe_of(model: str, source: str, place: Path) -> Path:
    """A probe of the last layer, whose instructions stand at the end: random, because only its cost is measured."""
    import torch

    width = json.loads((Path(source) / "config.json").read_text())["hidden_size"]
    states = torch.randn(96, width, generator=torch.Generator().manual_seed(0))
    probe = DifficultyProbe(base_model=model, placement="user_end")
    probe.fit(states, [NAMES[index % 3] for index in range(96)], epochs=2)
    probe.save_pretrained(place / "probe")
    return place / "probe"


def start(options: argparse.Namespace) -> int:
    place, source = Path(mkdtemp(prefix="one-engine-")), model_source(options.model)
    probe = probe_of(options.model, source, place)
    strategies = {
        name: {"instruction": "Answer directly.", "temperature": 0.0, "max_tokens_fraction": 1.0} for name in NAMES
    }
    common = {"strategies": strategies, "min_confidence": 0.0, "log_level": "warning"}
    flags = ["--dtype", options.dtype, "--max-model-len", "2304"]
    caching = ["--block-size", str(options.block_size), "--enable-prefix-caching"]
    deadline = {"deadline_ms": 120_000}
    (place / "middleware.yaml").write_text(json.dumps({**common, "features": deadline}))
    serve = partial(vllm, threads=options.threads)
    engine = serve("engine", source, place, *flags, *caching, ENTROPY_RFT_PROBE=str(probe))
    servers = {"engine": engine}
    engine.wait()  # one after the other: together they would need more memory for a moment
    servers["inside"] = serve(
        "inside",
        source,
        place,
        *flags,
        *caching,
        "--middleware",
        "entropy_rft.router.middleware.RouterMiddleware",
        ENTROPY_RFT_PROBE=str(probe),
        ENTROPY_RFT_CONFIG=str(place / "middleware.yaml"),
    )
    servers["inside"].wait()
    servers["pooling"] = serve("pooling", source, place, *flags, "--runner", "pooling", ENTROPY_RFT_PROBE="")
    servers["pooling"].wait()
    before = {**common, "probe": str(probe), "backends": [engine.url]}
    sources = {
        "router": {"kind": "vllm"},
        "two": {"kind": "vllm_pooling", "url": servers["pooling"].url},
        "local": {"kind": "local", "threads": 1},
    }
    for name, features in sources.items():
        servers[name] = router(name, {**before, "features": {**features, **deadline}}, place)
        servers[name].wait()
    asked = ("engine", "router", "inside", "inside", "two", "local")
    urls = dict(zip(DEPLOYMENTS, (servers[name].url for name in asked), strict=True))
    parts = {
        "plain": ["engine"],
        "router": ["engine", "router"],
        "middleware": ["inside"],
        "two engines": ["engine", "pooling", "two"],
        "local": ["engine", "local"],
    }
    state = {
        "model": options.model,
        "source": source,
        "settings": {
            "block_size": options.block_size,
            "dtype": options.dtype,
            "kv_cache_gib": 1,
            "threads": options.threads,
        },
        "urls": urls,
        "groups": {name: server.process.pid for name, server in servers.items()},
        "parts": parts,
        "place": str(place),
    }
    options.state.write_text(json.dumps(state, indent=1))
    print(f"started; {options.state}")
    return 0


def stop(options: argparse.Namespace) -> int:
    kill(json.loads(options.state.read_text())["groups"].values())
    return 0


def kill(groups: Iterable[int]) -> None:
    """End servers, each given by its process group."""
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def summed(group: int, of: Callable[[Any], float]) -> float:
    """Of the processes of a server, each a `psutil.Process`."""
    import psutil

    total = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                total += of(process)
    return total


def memory_mb(groups: Mapping[str, int]) -> dict[str, float]:
    """Resident memory of each server."""
    return {
        name: round(summed(group, lambda process: process.memory_info().rss) / 2**20, 1)
        for name, group in groups.items()
    }


def answer_of(url: str, body: Mapping[str, Any]) -> Any:
    """A server's whole answer to a chat completion."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def in_turn(names: Sequence[str], number: int) -> tuple[str, ...]:
    """The order of the contenders in a round: in each another one is the first."""
    shift = number % len(names)
    return (*names[shift:], *names[:shift])


def show_goals(goals: Iterable[Mapping[str, Any]]) -> None:
    for goal in goals:
        kind = next(name for name in ("at most", "at least") if name in goal)
        print(f"{'met' if goal['met'] else 'NOT met'}: {goal['goal']}: {goal['found']} ({kind} {goal[kind]})")


# ---- the time to the first token


class Questions:
    """New prompts of a length in tokens: no two share more than the chat template's beginning."""

    def __init__(self, source: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.random = random.Random(time.time_ns())

    def of(self, length: int) -> list[dict[str, str]]:
        words = [str(self.random.randrange(10)) for _ in range(length)]
        low, high = 1, length
        while low < high:  # the most words whose conversation has at most that many tokens
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._size(words[:middle]) <= length else (low, middle - 1)
        return self._messages(words[:low])

    def _size(self, words: Sequence[str]) -> int:
        text = self.tokenizer.apply_chat_template(self._messages(words), tokenize=False, add_generation_prompt=True)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _messages(words: Sequence[str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": " + ".join(words)}]


def first_token_s(url: str, messages: Sequence[Mapping[str, str]], reason: str | None) -> float:
    """Seconds from sending a request to the first event that holds a part of the answer.

    Args:
        reason: that the answer's header must give; ``client`` sends a difficulty.
    """
    fields = {"model": "m", "messages": messages, "max_tokens": 2, "temperature": 0, "stream": True}
    body = json.dumps(fields | ({"difficulty": "normal"} if reason == "client" else {})).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=280)
    try:
        connection.connect()
        begin = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200 or response.headers["x-entropy-rft-reason"] != reason:
            raise SystemExit(f"{url}: {response.status} {response.headers['x-entropy-rft-reason']} {response.read()!r}")
        first = None
        while line := response.readline():  # to the end: the engine must not work on this answer in the next request
            event = json.loads(line[6:]) if first is None and line.startswith(b"data: {") else None
            if event is not None and event["choices"][0]["delta"].get("role") is None:
                first = time.perf_counter() - begin
        if first is None:
            raise SystemExit(f"{url}: the answer has no token")
        return first
    finally:
        connection.close()


def measure(options: argparse.Namespace) -> int:
    state = json.loads(options.state.read_text())
    output = options.output or RESULTS / f"one-engine-{Path(state['model']).name}.json"
    result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"rounds": []}
    questions, urls = Questions(state["source"]), state["urls"]
    for name in DEPLOYMENTS:  # the first request of a deployment opens connections and loads code
        first_token_s(urls[name], questions.of(min(options.lengths)), REASONS.get(name, "probe"))
    begin, longest = time.monotonic(), 0.0
    number = 0
    while time.monotonic() - begin + longest < options.seconds:
        started = time.monotonic()
        for length in options.lengths:
            times = {}
            for name in in_turn(DEPLOYMENTS, number):
                times[name] = first_token_s(urls[name], questions.of(length), REASONS.get(name, "probe"))
                time.sleep(_PAUSE_S)
            result["rounds"].append({"tokens": length, "seconds": {n: round(times[n], 5) for n in DEPLOYMENTS}})
        number += 1
        longest = max(longest, time.monotonic() - started)
    memory = memory_mb(state["groups"])
    result["memory_mb"] = {
        name: round(sum(memory[part] for part in parts), 1) for name, parts in state["parts"].items()
    }
    result["memory_of_parts_mb"] = memory
    result["settings"] = {"model": state["model"], **state["settings"]}
    result["environment"] = environment("cpu", options.note)
    summarise(result)
    write(output, result)
    show(result)
    return 0


def interval(values: Sequence[float]) -> list[float]:
    """The median, and the 95 % interval of medians of resampled values."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return [round(statistics.median(values), 4), round(medians[49], 4), round(medians[1949], 4)]


def summarise(result: dict[str, Any]) -> None:
    """Add medians of seconds, ratios against plain and against two engines, and the goals."""
    rows = []
    for length in sorted({each["tokens"] for each in result["rounds"]}):
        rounds = [each["seconds"] for each in result["rounds"] if each["tokens"] == length]
        for name in DEPLOYMENTS:
            own = [each for each in rounds if name in each]  # older rounds lack one
            if not own:
                continue
            row: dict[str, Any] = {"tokens": length, "deployment": name, "rounds": len(own)}
            row["seconds"] = interval([each[name] for each in own])
            for other in ("plain", "two engines"):
                row[f"ratio to {other}"] = interval([each[name] / each[other] for each in own])
            if name == "middleware" and UNPROBED in rounds[0]:
                row[f"ratio to {UNPROBED}"] = interval([each[name] / each[UNPROBED] for each in own])
            rows.append(row)
    result["summary"] = rows
    at_512 = {row["deployment"]: row for row in rows if row["tokens"] == 512}
    memory = result["memory_mb"]
    found = [
        at_512[name][f"ratio to {other}"][0]
        for other in ("plain", "two engines")
        for name in ("router", "middleware")
        if at_512
    ]
    found += [round(memory[name] / memory["two engines"], 4) for name in ("router", "middleware")]
    if at_512:
        result["goals"] = [
            {"goal": text, "at most": limit, "found": value, "met": value <= limit}
            for (text, limit), value in zip(GOALS, found, strict=True)
        ]


def show(result: Mapping[str, Any]) -> None:
    print("| tokens | deployment | seconds | ratio to plain | ratio to two engines | rounds |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for row in result["summary"]:
        cells = [
            f"{m:.3f} ({a:.3f} to {b:.3f})"
            for m, a, b in (row["seconds"], row["ratio to plain"], row["ratio to two engines"])
        ]
        print(f"| {row['tokens']} | {row['deployment']} | {' | '.join(cells)} | {row['rounds']} |")
    for row in result["summary"]:
        if f"ratio to {UNPROBED}" in row:
            print(f"{row['tokens']} tokens: middleware / {UNPROBED}: {row[f'ratio to {UNPROBED}']}")
    print(result["memory_mb"])
    show_goals(result.get("goals", ()))


# ---- limits on the thinking


def thinking(options: argparse.Namespace) -> int:
    from entropy_rft.sampling import Completion, verdicts
    from entropy_rft.tasks import load_task

    task = load_task(options.task, split="test", limit=options.questions)
    rows = [dict(row) for row in task.dataset]
    place = Path(mkdtemp(prefix="thinking-"))
    tags = json.dumps({"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"})
    server = vllm("engine", model_source(options.model), place, "--dtype", "float32", "--reasoning-config", tags)
    try:
        server.wait()

        def asked(index: int, fields: Mapping[str, Any]) -> Any:
            body = {
                "model": "m",
                "messages": rows[index]["prompt"],
                "temperature": 0.6,
                "seed": index,
                "max_tokens": 512,
            }
            return answer_of(server.url, {**body, **fields})

        def case(name: str, limit: int | None) -> dict[str, Any]:
            fields = {} if limit is None else {name: limit}
            with ThreadPoolExecutor(32) as pool:
                answers = list(pool.map(lambda index: asked(index, fields), range(len(rows))))
            tokens = [answer["usage"]["completion_tokens"] for answer in answers]
            texts = [answer["choices"][0]["message"]["content"] or "" for answer in answers]
            right = verdicts(task.reward_funcs[0], rows, [[Completion([1], [1], text, False)] for text in texts])
            known = [float(verdict) for (verdict,) in right if verdict is not None]
            accuracy = sum(known) / len(known)
            return {
                "limit": name if limit is not None else "none",
                "tokens_of_limit": limit,
                "accuracy": round(accuracy, 4),
                "accuracy_standard_error": round((accuracy * (1 - accuracy) / len(known)) ** 0.5, 4),
                "mean_tokens": round(statistics.mean(tokens), 2),
                "cut_off": round(sum(a["choices"][0]["finish_reason"] == "length" for a in answers) / len(answers), 4),
            }

        cases = [case("none", None)]
        for name in ("thinking_token_budget", "max_tokens"):
            cases += [case(name, limit) for limit in LIMITS]
    finally:
        kill([server.process.pid])
    settings = {"model": options.model, "task": options.task, "questions": len(rows), "temperature": 0.6}
    write(options.output, {"environment": environment("cpu", options.note), "settings": settings, "cases": cases})
    print("| limit | tokens | accuracy | mean tokens | cut off |\n| --- | ---: | ---: | ---: | ---: |")
    for row in cases:
        accuracy = f"{row['accuracy']:.3f} ± {row['accuracy_standard_error']:.3f}"
        print(
            f"| {row['limit']} | {row['tokens_of_limit']} | {accuracy} | {row['mean_tokens']} | {row['cut_off']:.3f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
