#!/usr/bin/env python
"""How much a busy machine slows down a training step on a CPU: the command's own choice of threads and fixed numbers.

    python scripts/bench_threads.py
    python scripts/bench_threads.py --config recipes/tiny/clip_b.yaml --steps 12 --rounds 3

Every row is `entropy-rft train` in a process of its own, once on an idle machine and once beside a process that always
computes (`while True: pass`); rounds alternate the rows. A time is the median over the steps after the first, then over
the rounds. Needs an otherwise idle machine. Writes scripts/results/threads-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_statistics import RESULTS, environment, write

from entropy_rft.run_files import METRICS
from entropy_rft.threads import CHOSEN_BY_USER, own_cores

ROOT = Path(__file__).resolve().parents[1]
OURS = "the command's own choice"
GOALS = {"quiet": 1.10, "busy": 2.0}
"""Ours quiet over all cores quiet, and ours busy over ours quiet; at most."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default=str(ROOT / "recipes" / "tiny" / "grpo.yaml"))
    add("--steps", type=int, default=8, help="of a run; the first is not counted")
    add("--rounds", type=int, default=2)
    add("--output", type=Path, default=RESULTS / "threads-cpu.json")
    add("--note", default="", help="stored in the result")
    return parser.parse_args()


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """One process that never waits, while the block runs."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds_a_step(config: str, steps: int, threads: int | None, busy: bool) -> float:
    """The median over the steps after the first of one run."""
    own = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    with TemporaryDirectory() as directory, busy_process(busy):
        run = Path(directory) / "run"
        flags = {"config": config, "max_steps": steps, "output_dir": run, "save_strategy": "no", "disable_tqdm": "true"}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "entropy_rft", "train", *words], env=own, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    return statistics.median([line["step_time"] for line in lines if "step_time" in line][1:])


def main() -> int:
    options = arguments()
    cores = len(own_cores())
    rows: dict[str, int | None] = {OURS: None, f"{cores} threads": cores, "1 thread": 1}
    found: dict[str, dict[str, list[float]]] = {name: {"quiet": [], "busy": []} for name in rows}
    for number in range(options.rounds):
        for name, threads in rows.items():
            for state, times in found[name].items():
                times.append(seconds_a_step(options.config, options.steps, threads, state == "busy"))
                print(f"round {number + 1}, {name}, {state}: {times[-1]:.2f} s a step", file=sys.stderr, flush=True)
    median = {name: {state: statistics.median(times) for state, times in own.items()} for name, own in found.items()}
    ratios = {
        "quiet": median[OURS]["quiet"] / median[f"{cores} threads"]["quiet"],
        "busy": median[OURS]["busy"] / median[OURS]["quiet"],
    }
    print(f"| {'threads':26} | quiet, s a step | busy, s a step | busy/quiet |\n| --- | --- | --- | --- |")
    for name, own in median.items():
        print(f"| {name:26} | {own['quiet']:.2f} | {own['busy']:.2f} | {own['busy'] / own['quiet']:.2f} |")
    print(f"ours quiet / all cores quiet: {ratios['quiet']:.2f} (goal: at most {GOALS['quiet']})")
    print(f"ours busy / ours quiet: {ratios['busy']:.2f} (goal: at most {GOALS['busy']})")
    result = {"config": Path(options.config).name, "steps": options.steps, "goals": GOALS}
    machine = environment("cpu", options.note)
    write(options.output, {**result, "environment": machine, "seconds": found, "median": median, "ratios": ratios})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
