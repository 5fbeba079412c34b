#!/usr/bin/env python
"""Every check that needs a GPU, in one command of nine minutes, the most important first.

    python scripts/gather_wheels.py gather                        # before, where there is a package index
    python scripts/gather_wheels.py install                       # on the machine: what it lacks, from wheels/
    python scripts/gpu_day.py --output DIR                        # all stages
    python scripts/gpu_day.py --output DIR --start engines        # from this stage on; keeps earlier results
    python scripts/gpu_day.py --output DIR --dry-run              # every stage at a reduced size on the CPU

Stages, each with a time limit of its own:

    kernel      the Triton path's tests; the trainer without a rule is TRL's bit for bit, in float32 and bfloat16;
                Clip_B and Clip_V are finite and decide as through the torch path
    statistics  time and memory of the token statistics against TRL's kernel and the bare product; where a goal is
                missed, the profile that says why; the kernel's speed at other block and tile sizes
    step        a whole optimisation step of a random model of 0.5 B parameters, with and without the added pass
    engines     FSDP2, DDP and ZeRO-3 by their recipes, on one GPU with NCCL: two steps each, the same keep masks
    methods     GRPO, Clip_B and Clip_V side by side on the one GPU, until the entropy falls and the rules keep it
    router      hidden states on the GPU, and the router that takes its features from them

DIR gets one JSON file a stage (1-kernel.json, ...) and log.txt. A file is written when its stage begins, and again with
each result. A stage that fails, or is ended at its limit with all its processes, is recorded with the reason, and the
next one begins. A stage with no time left is recorded as not begun. The exit code is 0 when all stages are done.
Nothing here needs a network, and nothing changes the GPU's settings.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_stages.machine import environment, gpu  # noqa: E402
from gpu_stages.recording import ENGINES, child_environment, read, write  # noqa: E402

from entropy_rft.assets import DEFAULT_MODEL  # noqa: E402

LOG = "log.txt"
LEAST_SECONDS = 10  # a stage that would have less is not begun
SLOWER = 4  # times the limit of a stage on a dry run: two busy cores import and compile slowly
GRACE = 3.0  # seconds from SIGTERM to SIGKILL
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its limit in seconds, and its command (by default the module of that name)."""

    name: str
    limit: float
    command: tuple[str, ...] = ()

    def words(self, result: Path, work: Path, seconds: float, options: argparse.Namespace) -> list[str]:
        words = [*self.command] or [sys.executable, "-m", f"gpu_stages.{self.name}"]
        words += ["--result", str(result), "--work", str(work), "--seconds", f"{seconds:.0f}"]
        words += ["--model", options.model, "--engines", *options.engines]
        return [*words, *(["--dry-run"] if options.dry_run else [])]


STAGES = (
    Stage("kernel", 110),
    Stage("statistics", 100),
    Stage("step", 80),
    Stage("engines", 90),
    Stage("methods", 110),
    Stage("router", 45),
)


class Stopped(Exception):
    """The runner received a signal to stop."""


def arguments(argv: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> argparse.Namespace:
    names = [stage.name for stage in stages]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory for the results; made when it is missing")
    parser.add_argument("--start", choices=names, default=names[0], help="begin here (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, help="no other stages than these")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default: %(default)s)")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="that the stage methods trains (default: %(default)s)")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="of the stage engines (default: all)"
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at a reduced size")
    options = parser.parse_args(argv)
    if not options.dry_run and gpu() is None:
        parser.error("nvidia-smi finds no GPU; --dry-run runs every stage on the CPU")
    return options


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def end_children(grace: float = GRACE) -> None:
    """End every process that a stage has started: by SIGTERM, and what is left by SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in (left := children()):
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, left = psutil.wait_procs(left, timeout=grace)
        if not left and not children():
            return


def adopt_orphans() -> None:
    """On Linux, processes whose parent has ended become children of this one, so that `children` finds them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def last_words(log: Path, start: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()[-60:]


def run_stage(stage: Stage, number: int, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run one stage to its end or to its limit; returns what its file says."""
    path = options.output / f"{number}-{stage.name}.json"
    log = options.output / LOG
    document: dict[str, Any] = {
        "stage": stage.name,
        "status": "running",
        "reason": None,
        "seconds": None,
        "limit": seconds,
        "dry_run": options.dry_run,
        "model": options.model,
        "environment": options.environment,
    }
    write(path, document)
    print(f"== {number} {stage.name}, at most {seconds:.0f} s", flush=True)
    work = Path(tempfile.mkdtemp(prefix=f"gpu_day-{stage.name}-"))
    begun = time.monotonic()
    outcome: tuple[str, str | None] = ("interrupted", "the run was stopped by a signal")
    with log.open("ab") as output:
        output.write(f"== {number} {stage.name}\n".encode())
        output.flush()
        start = log.stat().st_size
        try:
            process = subprocess.Popen(
                stage.words(path, work, seconds, options),
                cwd=ROOT,
                env=child_environment(**({"CUDA_VISIBLE_DEVICES": ""} if options.dry_run else {})),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
                outcome = ("done", None) if code == 0 else ("failed", _cause(code, last_words(log, start)))
            except subprocess.TimeoutExpired:
                outcome = ("timed out", f"not done after {seconds:.0f} s: ended with all its processes")
        finally:
            end_children()
            shutil.rmtree(work, ignore_errors=True)
            # The stage has written its results into the file meanwhile.
            status, reason = outcome
            taken = round(time.monotonic() - begun, 1)
            document = document | read(path) | {"status": status, "reason": reason, "seconds": taken}
            if status != "done":
                document["log_tail"] = last_words(log, start)
            write(path, document)
    return document


def _cause(code: int, said: list[str]) -> str:
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"{how}: {last}" if last else how


def skip(stage: Stage, number: int, reason: str, options: argparse.Namespace) -> dict[str, Any]:
    document = {"stage": stage.name, "status": "not begun", "reason": reason, "environment": options.environment}
    write(options.output / f"{number}-{stage.name}.json", document)
    return document


def summary(documents: Sequence[dict[str, Any]]) -> str:
    lines = []
    for document in documents:
        seconds = "" if document.get("seconds") is None else f" in {document['seconds']:.0f} s"
        reason = f": {document['reason']}" if document["reason"] else ""
        lines.append(f"{document['stage']:<11} {document['status']}{seconds}{reason}")
        for name, check in document.get("checks", {}).items():
            if not check["holds"]:
                lines.append(f"    does not hold: {name}")
        for name, goal in document.get("goals", {}).items():
            lines.append(f"    {'met   ' if goal['met'] else 'missed'} {name}: {goal['value']:.4g}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    options = arguments(argv, stages)
    begun = time.monotonic()
    options.output = options.output.resolve()  # the stages run in the checkout
    options.output.mkdir(parents=True, exist_ok=True)
    options.environment = environment(options.dry_run)
    adopt_orphans()

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for kind in ("missing", "outside_the_range"):
        if found := options.environment[kind]:
            print(f"{kind.replace('_', ' ')}: {', '.join(found)}")
    documents: list[dict[str, Any]] = []
    first = [stage.name for stage in stages].index(options.start)
    try:
        for index, stage in enumerate(stages):
            if index < first or (options.only and stage.name not in options.only):
                continue
            left = 60 * options.minutes - (time.monotonic() - begun)
            if left < LEAST_SECONDS:
                reason = f"{max(left, 0):.0f} s of {options.minutes:g} minutes were left"
                documents.append(skip(stage, index + 1, reason, options))
            else:
                limit = stage.limit * (SLOWER if options.dry_run else 1)
                documents.append(run_stage(stage, index + 1, min(limit, left), options))
            print(summary(documents[-1:]), flush=True)
    except Stopped:
        print("gpu_day: stopped by a signal; what was measured is in the files", file=sys.stderr)
        return 143
    print(f"\n{summary(documents)}\nresults: {options.output}, after {time.monotonic() - begun:.0f} s", flush=True)
    return 0 if all(document["status"] == "done" for document in documents) else 1


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
