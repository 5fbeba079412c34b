"""Stage 4: FSDP2, DDP and ZeRO-3 by their recipes, one process each, all at the same time on the one GPU.

Each engine runs twice. `masks`: two steps in float32 with completions that are given, so that all engines must drop
the same tokens and learn the same weights. `recipe`: `entropy-rft train` as a user starts it, with the recipe's
bfloat16 and with generation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_stages.recording import ROOT, Stage, child_environment

RECIPE = ROOT / "recipes" / "tiny" / "clip_b.yaml"
# Of a weight after two steps, between engines: sums of float32 in another order.
SAME_WEIGHTS = 1e-5
# DeepSpeed's operators are built only here: a build that is ended leaves a lock, and every later build would wait for
# it forever.
EXTENSIONS = Path(tempfile.gettempdir()) / "entropy_rft-gpu_day-extensions"
MARGIN = 6.0  # seconds before the stage's end at which a run is stopped


@dataclass
class Run:
    engine: str
    kind: str
    output: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f"{self.engine}, {self.kind}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


def start(stage: Stage, engine: str, kind: str) -> Run:
    directory = stage.work / f"{engine}-{kind}"
    directory.mkdir()
    one = ["--num_processes", "1", "--main_process_port", "0"]
    if kind == "masks":
        output = directory / "result.pt"
        recipe = ROOT / "recipes" / "accelerate" / f"{engine}.yaml"
        words = ["-m", "accelerate.commands.launch", "--config_file", str(recipe), *one, "--mixed_precision", "no"]
        words += ["-m", "gpu_stages.engine_run", "--device", stage.device, "--output", str(output)]
    else:
        output = directory / "run"
        words = ["-m", "entropy_rft", "train", "--accelerate_config", engine, *one]
        words += ["--mixed_precision", "no"] if stage.dry_run else ["--bf16", "true", "--use_cpu", "false"]
        words += ["--config", str(RECIPE), "--max_steps", "2", "--per_device_train_batch_size", "8"]
        words += ["--max_completion_length", "16" if stage.dry_run else "64", "--save_strategy", "no"]
        words += ["--output_dir", str(output)]
    log = directory / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=directory,
            env=child_environment(TORCH_EXTENSIONS_DIR=str(EXTENSIONS)),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Run(engine, kind, output, log, process)


def left_out(stage: Stage, engine: str) -> str | None:
    """Why an engine cannot run here."""
    if engine == "zero3" and find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if engine == "fsdp2" and stage.device == "cpu":
        return "FSDP needs a GPU"
    return None


def record(stage: Stage, run: Run, masks: dict[str, Any]) -> None:
    """Record the results of a run that has ended."""
    code = run.process.returncode
    stage.check(f"{run.name}: ends well", code == 0, None if code == 0 else {"exit code": code, "said": run.said()})
    if code != 0:
        return
    if run.kind == "masks":
        import torch

        found = torch.load(run.output, weights_only=False)
        masks[run.engine] = found
        result = found["result"]
        losses = [log["loss"] for log in result["logs"]]
        shown = {name: value for name, value in result.items() if name != "logs"}
        stage.put(run.name, shown | {"losses": losses})
        stage.check(f"{run.name}: tokens are dropped in both steps", len(losses) == 2 and all(result["dropped"]))
        if stage.device == "cuda":
            # DeepSpeed and torch name a backend for each device, cpu:gloo,cuda:nccl.
            stage.check(f"{run.name}: NCCL", "nccl" in str(result["backend"]), result["backend"])
    else:
        described = json.loads((run.output / "run.json").read_text())
        result = {name: described[name] for name in ("engine", "processes", "device")}
        lines = (run.output / "metrics.jsonl").read_text().splitlines()
        stage.put(run.name, result | {"metrics": [json.loads(line) for line in lines]})
        stage.check(f"{run.name}: two steps and a saved model", len(lines) == 2 and saved(run.output))
    stage.check(f"{run.name}: is the engine asked for", result["engine"] == run.engine, result["engine"])


def saved(directory: Path) -> bool:
    return (directory / "model.safetensors").is_file()


def compare(stage: Stage, masks: dict[str, Any]) -> None:
    """Each engine with the first that ran."""
    first, *others = masks
    for other in others:
        one, two = masks[first], masks[other]
        same = one["result"]["dropped"] == two["result"]["dropped"]
        stage.check(f"{other} keeps the tokens that {first} keeps", same)
        apart = max(float((p - two["parameters"][name]).abs().max()) for name, p in one["parameters"].items())
        stage.check(f"{other} learns the weights that {first} learns", apart <= SAME_WEIGHTS, apart)


def main() -> int:
    stage = Stage()
    for lock in EXTENSIONS.glob("**/lock"):
        lock.unlink()
    runs: list[Run] = []
    for engine in stage.engines:
        if reason := left_out(stage, engine):
            stage.put(engine, {"left out": reason})
            continue
        # On a dry run, which has no GPU and few cores, DDP alone is also trained by its recipe.
        kinds = ("masks",) if stage.dry_run and engine != "ddp" else ("masks", "recipe")
        runs += [start(stage, engine, kind) for kind in kinds]
    masks: dict[str, Any] = {}
    open_runs = list(runs)
    while open_runs and stage.seconds_left > MARGIN:
        for run in [run for run in open_runs if run.process.poll() is not None]:
            open_runs.remove(run)
            stage.attempt(run.name, lambda run=run: record(stage, run, masks))
        time.sleep(0.1)
    for run in open_runs:
        stage.check(f"{run.name}: ends in time", False, run.said())
    if masks:
        stage.attempt("comparison", lambda: compare(stage, masks))
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
