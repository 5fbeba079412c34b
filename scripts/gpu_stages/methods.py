"""Stage 5: GRPO, Clip_B and Clip_V side by side on the one GPU, long enough to see entropy fall and a rule keep it.

The recipes are those of recipes/tiny, for more steps. `--model` of gpu_day.py names another model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages.recording import ROOT, Stage, child_environment

METHODS = ("grpo", "clip_b", "clip_v")
MARGIN = 12.0  # seconds before the stage's end at which the trainings stop: a step may be in progress, then they save
STEPS = 200
# What is kept of each step.
METRICS = (
    "step",
    "time",
    "entropy",
    "entropy/thinking",
    "entropy/answer",
    "entropy/predicted_change",
    "entropy_clip/dropped",
    "entropy_clip/sigma",
    "reward",
    "reward_std",
    "completions/mean_length",
    "step_time",
    "loss",
    "grad_norm",
)


def start(stage: Stage, method: str) -> subprocess.Popen[bytes]:
    stop_at = time.time() + stage.seconds_left - MARGIN
    words = ["--config", str(ROOT / "recipes" / "tiny" / f"{method}.yaml"), "--model_name_or_path", stage.model]
    words += ["--output_dir", str(stage.work / method), "--save_strategy", "no", "--entropy_metrics", "true"]
    words += ["--max_steps", str(STEPS)]
    if stage.dry_run:
        words += ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_completion_length", "16"]
    else:
        words += ["--use_cpu", "false", "--bf16", "true"]
    with (stage.work / f"{method}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gpu_stages.method_run", "--stop-at", f"{stop_at:.1f}", *words],
            env=child_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def curve(directory: Path) -> list[dict[str, Any]]:
    """The steps that a training has logged so far."""
    file = directory / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be incomplete
    return [{name: entry[name] for name in METRICS if name in entry} for entry in entries]


def quarter_means(entropies: list[float]) -> tuple[float, float]:
    """Of the first and of the last quarter of the steps."""
    size = max(1, len(entropies) // 4)
    return statistics.mean(entropies[:size]), statistics.mean(entropies[-size:])


def judge(stage: Stage, curves: dict[str, list[dict[str, Any]]]) -> None:
    """Whether entropy falls without a rule, and whether the rules keep more of it."""
    means = {method: quarter_means([entry["entropy"] for entry in found]) for method, found in curves.items()}
    kept = {method: last / first for method, (first, last) in means.items()}
    rewards = {method: quarter_means([entry["reward"] for entry in found]) for method, found in curves.items()}
    stage.put("first and last quarter", {"entropy": means, "entropy kept": kept, "reward": rewards})
    stage.goal("grpo: share of the entropy that is left", kept["grpo"], 0.8)
    for method in list(curves)[1:]:
        stage.goal(f"{method}: entropy kept beside grpo's", kept[method] / kept["grpo"], 1.1, "at least")


def main() -> int:
    stage = Stage()
    methods = METHODS[:2] if stage.dry_run else METHODS
    processes = {method: start(stage, method) for method in methods}
    curves: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    while True:
        ended = all(process.poll() is not None for process in processes.values())
        for method in methods:
            if len(found := curve(stage.work / method)) > len(curves[method]):
                curves[method] = found
                stage.put(method, found)
        if ended:
            break
        time.sleep(0.5)
    for method, process in processes.items():
        said = (stage.work / f"{method}.log").read_text(errors="replace")[-1500:]
        stage.check(f"{method}: ends well", process.returncode == 0, None if process.returncode == 0 else said)
        stage.check(f"{method}: has trained", len(curves[method]) >= 2)
    if all(len(found) >= 2 for found in curves.values()):
        stage.attempt("comparison", lambda: judge(stage, curves))
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
