#!/usr/bin/env python
"""How much of a conversation's prompts vLLM finds in its prefix cache, and whether the model follows, by placement.

    python scripts/measure_placement.py                       # tiny_reasoner
    python scripts/measure_placement.py --model modulo_reasoner --task modulo

A real vLLM server of the model (prefix cache on) and, for each placement of the instruction, a router before it. In the
conversations the client names each turn's difficulty, so that both placements get the same ones. All requests go one
after the other, and vLLM's own counters (`vllm:prefix_cache_queries`, `vllm:prefix_cache_hits`, in tokens) are read
around each of them. A case begins with an empty cache. Varied are:

- the difficulty: it changes from turn to turn, or is always normal;
- the history: a client sends earlier answers back whole, or without their thinking, as chat templates of reasoning
  models do it;
- the probe: its hidden state comes from another server, or from a request of the same one (the conversation without an
  instruction, one token), which fills the same cache.

Then each instruction is asked for on the same single questions, with the same temperature and budget: whether the
lengths differ shows whether the model follows it there. Needs vLLM (scripts/test_vllm.sh makes an environment with it).
Writes scripts/results/placement-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_statistics import RESULTS, environment, write

from entropy_rft.difficulty.strategies import NAMES, PLACEMENTS
from entropy_rft.models.sources import model_source
from entropy_rft.sampling import Completion, verdicts
from entropy_rft.tasks import load_task

CHANGING = ("easy", "hard", "normal", "easy", "normal", "hard")
DIFFICULTIES = {"changes": CHANGING, "always normal": ("normal",)}
HISTORIES = ("whole", "without thinking")
PROBES = ("elsewhere", "same server")
TEMPERATURE = 0.8  # the same for all three instructions, and no share of the budget: only the instruction differs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="tiny_reasoner", help="directory or embedded model (default: %(default)s)")
    add("--task", default="arithmetic", help="of the questions (default: %(default)s)")
    add("--conversations", type=int, default=4, help="in each case (default: %(default)s)")
    add("--turns", type=int, default=6, help="of a conversation (default: %(default)s)")
    add("--questions", type=int, default=48, help="to measure whether the model follows (default: %(default)s)")
    add("--max_tokens", type=int, default=200, help="of an answer (default: %(default)s)")
    add(
        "--block_size",
        type=int,
        default=32,
        help="of the prefix cache, in tokens; a CPU needs a multiple of 32, a GPU has 16 (default: %(default)s)",
    )
    add("--output", type=Path, help="(default: scripts/results/placement-MODEL.json)")
    add("--note", default="", help="stored in the result")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    task = load_task(options.task, split="test", limit=max(options.questions, options.conversations * options.turns))
    with TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        server = stack.enter_context(vllm_server(options, place))
        routers = {name: stack.enter_context(router(server, name, options, place)) for name in PLACEMENTS}
        cases = [
            case(options, task, server, routers[placement], changing, history, probe)
            | {"placement": placement, "difficulty": changing, "history": history, "probe": probe}
            for changing, history, probe, placement in product(DIFFICULTIES, HISTORIES, PROBES, PLACEMENTS)
        ]
        follows = [
            following(options, task, routers[placement], name) | {"placement": placement, "instruction": name}
            for placement, name in product(PLACEMENTS, NAMES)
        ]
    show(cases, follows)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "note")}
    output = options.output or RESULTS / f"placement-{Path(options.model).name}.json"
    about = {"environment": environment("cpu", options.note), "settings": settings}
    write(output, {**about, "cache": cases, "follows": follows})
    return 0


# ---- servers


@contextmanager
def process(command: Sequence[str], log: Path, url: str, ready: str, **variables: str) -> Iterator[str]:
    """A server in a process group of its own, until the block ends."""
    with log.open("w") as stream:
        running = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 900
        while True:
            if running.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").splitlines()
                causes = [line for line in lines if "Error" in line] or lines
                raise SystemExit("\n".join([f"{command[2]} did not start:", *causes[:5]]))
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url + ready, timeout=10):
                break
            time.sleep(0.5)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def vllm_server(options: argparse.Namespace, place: Path) -> Any:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_source(options.model)]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--enable-prefix-caching", "--block-size", str(options.block_size)]
    # The development mode has the request that empties the cache.
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    return process(command, place / "vllm.log", f"http://127.0.0.1:{port}", "/health", **variables)


def router(server: str, placement: str, options: argparse.Namespace, place: Path) -> Any:
    port = free_port()
    same = {name: {"temperature": TEMPERATURE, "max_tokens_fraction": 1.0} for name in NAMES}
    settings = {
        "port": port,
        "backends": [{"url": server, "max_outstanding": 64}],
        "placement": placement,
        "strategies": same,
        "max_tokens": options.max_tokens,
    }
    config = place / f"router-{placement}.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "entropy_rft", "serve", "--config", str(config)]
    return process(command, place / f"router-{placement}.log", f"http://127.0.0.1:{port}", "/ready")


def ask(url: str, messages: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "messages": list(messages), **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


# ---- the cache


def counters(server: str) -> tuple[int, int]:
    """Prompt tokens that were looked up in the cache so far, and those that were found."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=30) as response:
        text = response.read().decode()
    sums = []
    for name in ("queries", "hits"):
        found = re.findall(rf"^vllm:prefix_cache_{name}_total(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        sums.append(int(sum(map(float, found))))
    return sums[0], sums[1]


def counted(server: str, url: str, messages: Sequence[Mapping[str, Any]], **fields: Any) -> tuple[str, int, int]:
    """The answer, the tokens of its prompt, and how many of them were cached."""
    queries, hits = counters(server)
    answer = ask(url, messages, **fields)
    prompt = answer["usage"]["prompt_tokens"]
    deadline = time.monotonic() + 30
    while (now := counters(server))[0] < queries + prompt:  # the counters may come later than the answer
        if time.monotonic() > deadline:
            raise SystemExit(f"vLLM counted {now[0] - queries} looked-up tokens of a prompt of {prompt}")
        time.sleep(0.05)
    if now[0] != queries + prompt:
        raise SystemExit(f"vLLM counted {now[0] - queries} looked-up tokens of a prompt of {prompt}")
    return answer["choices"][0]["message"]["content"] or "", prompt, now[1] - hits


def case(
    options: argparse.Namespace, task: Any, server: str, url: str, changing: str, history: str, probe: str
) -> dict[str, Any]:
    urllib.request.urlopen(urllib.request.Request(f"{server}/reset_prefix_cache", method="POST"), timeout=60).close()
    rows = iter(task.dataset)
    totals = dict.fromkeys(("prompt", "cached", "later_prompt", "later_cached", "probe_computed"), 0)
    order = DIFFICULTIES[changing]
    for number in range(options.conversations):
        messages: list[dict[str, Any]] = []
        for turn in range(options.turns):
            messages.append(next(rows)["prompt"][-1])
            if probe == "same server":
                _, prompt, cached = counted(server, server, messages, max_tokens=1, temperature=0)
                totals["probe_computed"] += prompt - cached
            difficulty = order[(number + turn) % len(order)]
            text, prompt, cached = counted(server, url, messages, difficulty=difficulty, seed=100 * number + turn)
            totals["prompt"] += prompt
            totals["cached"] += cached
            if turn:
                totals["later_prompt"] += prompt
                totals["later_cached"] += cached
            kept = text if history == "whole" else text.partition("</think>")[2].strip() or text
            messages.append({"role": "assistant", "content": kept})
    requests = options.conversations * options.turns
    return {
        **totals,
        "cached_share": round(totals["cached"] / totals["prompt"], 4),
        "cached_share_after_first_turn": round(totals["later_cached"] / totals["later_prompt"], 4),
        "computed_per_turn": round((totals["prompt"] - totals["cached"] + totals["probe_computed"]) / requests, 1),
    }


# ---- whether the model follows


def following(options: argparse.Namespace, task: Any, url: str, name: str) -> dict[str, Any]:
    rows = [dict(row) for row in task.dataset][: options.questions]

    def one(index: int) -> dict[str, Any]:
        return ask(url, rows[index]["prompt"], difficulty=name, seed=index)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(len(rows))))
    tokens = [answer["usage"]["completion_tokens"] for answer in answers]
    texts = [answer["choices"][0]["message"]["content"] or "" for answer in answers]
    right = verdicts(task.reward_funcs[0], rows, [[Completion([1], [1], text, False)] for text in texts])
    known = [verdict for (verdict,) in right if verdict is not None]
    return {
        "questions": len(rows),
        "tokens": round(statistics.mean(tokens), 1),
        "tokens_standard_error": round(statistics.stdev(tokens) / len(tokens) ** 0.5, 1),
        "accuracy": round(sum(known) / len(known), 3),
    }


def show(cases: Sequence[Mapping[str, Any]], follows: Sequence[Mapping[str, Any]]) -> None:
    print("| difficulty | history | probe | placement | cached | after the first turn | computed a turn |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    for row in cases:
        shares = f"{100 * row['cached_share']:.1f} % | {100 * row['cached_share_after_first_turn']:.1f} %"
        names = " | ".join(row[name] for name in ("difficulty", "history", "probe", "placement"))
        print(f"| {names} | {shares} | {row['computed_per_turn']:.1f} |")
    print("\n| placement | instruction | tokens | right |\n| --- | --- | ---: | ---: |")
    for row in follows:
        length = f"{row['tokens']} ± {row['tokens_standard_error']}"
        print(f"| {row['placement']} | {row['instruction']} | {length} | {100 * row['accuracy']:.1f} % |")


if __name__ == "__main__":
    sys.exit(main())
