"""One run of a study in a process of its own: ``python -m studies.methods.worker SPEC.json``.

It trains (resuming from the last complete checkpoint of an interrupted attempt), measures, and writes the result last.
Then it deletes the checkpoints and keeps the trained model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from entropy_rft.errors import UserMistake
from entropy_rft.run_files import CHECKPOINT, METRICS
from studies.methods.answers import marker_of, questions_of, sample_answers
from studies.methods.plan import Measurement, RunSpec
from studies.methods.results import RunResult

if TYPE_CHECKING:  # importing it takes seconds
    from entropy_rft.sampling import ThinkEndMarker

# Metrics that the figures and claims read, with their names in a result.
CURVES = {
    "reward": "reward",
    "rewards/reasoning_gym_reward/mean": "accuracy",  # a run has one of the two
    "rewards/reasoning_accuracy_reward/mean": "accuracy",
    "entropy": "entropy",
    "entropy/thinking": "entropy_thinking",
    "entropy/answer": "entropy_answer",
    "completions/thinking_length": "thinking",
    "completions/mean_length": "length",
    "entropy_clip/dropped": "dropped",
    "entropy_clip/target": "target",
    "entropy_clip/at_bound": "at_bound",
    "entropy_coef": "entropy_coef",
    "clip_ratio/high_mean": "clipped_high",
    "clip_ratio/low_mean": "clipped_low",
    "pear/penalty": "penalty",
    "pear/prefers_shorter": "prefers_shorter",
}
_DIGITS = 5
SCORED_AT_ONCE = 64  # completions; more are slower on one core


def run(spec: RunSpec, model: str, directory: Path, device: str) -> RunResult:
    """Train and measure.

    Args:
        spec: what to do.
        model: the directory or name of the model that the run starts from.
        directory: of the run: checkpoints, metrics, the trained model.
        device: "cpu" or "cuda".
    """
    import torch

    from entropy_rft.sampling import load_model_and_tokenizer
    from entropy_rft.training.run_directory import installed_versions

    training_seconds = 0.0
    curves: dict[str, dict[str, list[float]]] = {}
    if spec.steps:
        train(spec, model, directory, device)
        curves = read_curves(directory / METRICS)
        training_seconds = _seconds(directory / METRICS)
    trained = time.monotonic()
    asked = spec.measurement
    task = questions_of(spec.fields, asked)
    loaded, tokenizer = load_model_and_tokenizer(directory if spec.steps else model, device=device)
    marker = marker_of(spec.fields, tokenizer)
    questions, digest = measure(loaded, tokenizer, task, asked, marker)
    also = {
        f"{temperature:g}": measure(
            loaded, tokenizer, task, replace(asked, temperature=temperature), marker, entropies=False
        )[0]
        for temperature in asked.also_at
    }
    ended = time.monotonic()
    about = {
        "seconds": round(training_seconds + ended - trained, 1),
        "measuring_seconds": round(ended - trained, 1),
        "completions": spec.completions,
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": installed_versions(),
    }
    return RunResult(spec.to_dict(), spec.digest, curves, questions, asked.samples, digest, about, also)


def train(spec: RunSpec, model: str, directory: Path, device: str) -> None:
    """By a recipe, as ``entropy-rft train`` does it."""
    from transformers import PrinterCallback

    from entropy_rft.training.recipe import RecipeParser
    from entropy_rft.training.run import TrainingRun

    fields: dict[str, Any] = {
        **spec.fields,
        "model_name_or_path": model,
        "output_dir": str(directory),
        "run_name": spec.name,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "max_steps": spec.steps,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "resume_from_checkpoint": "auto",
        "save_total_limit": 1,
    }
    recipe_file = directory.with_name(f"{directory.name}.yaml")  # not with_suffix: a name may hold a dot
    recipe_file.parent.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(yaml.safe_dump(fields, sort_keys=True, allow_unicode=True), encoding="utf-8")
    recipe = RecipeParser().parse(["--config", str(recipe_file)])
    prepared = TrainingRun(recipe, command=sys.argv)
    prepared.trainer.remove_callback(PrinterCallback)
    prepared.train()


def read_curves(metrics: Path) -> dict[str, dict[str, list[float]]]:
    """What was logged of `CURVES`; a metric is not there at every step (several iterations share a generation)."""
    curves: dict[str, dict[str, list[float]]] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry: Mapping[str, Any] = json.loads(line)
        for metric, name in CURVES.items():
            value = entry.get(metric)
            if isinstance(value, int | float) and value == value:
                curve = curves.setdefault(name, {"steps": [], "values": []})
                curve["steps"].append(entry["step"])
                curve["values"].append(_rounded(value))
    return curves


def _seconds(metrics: Path) -> float:
    """Of the training, over all its attempts: a resumed run continues the log."""
    last = metrics.read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["time"])


def measure(
    model: Any, tokenizer: Any, task: Any, asked: Measurement, marker: ThinkEndMarker, entropies: bool = True
) -> tuple[dict[str, list[Any]], str]:
    """The columns of :class:`~studies.methods.results.RunResult`, and the digest of the questions.

    The entropies are those of the distribution that was sampled from, as in training. Without `entropies`, whose
    scoring takes a third of a measurement, their columns are not there.
    """
    from entropy_rft.sampling import right_and_scored
    from entropy_rft.sampling.identity import digest
    from entropy_rft.sampling.records import phases_of, record_completions

    answers = sample_answers(model, tokenizer, task, marker, **asked.sampling())
    flat = answers.flat
    counts = [right_and_scored(group) for group in answers.right]
    columns: dict[str, list[Any]] = {
        "difficulty": [row.get("difficulty", 0) for row in answers.rows],
        "correct": [known for known, _ in counts],
        "scored": [scored for _, scored in counts],
    }
    phases = [phases_of(completion, marker) for completion in flat]
    each: dict[str, list[float]] = {
        "tokens": [len(completion.token_ids) for completion in flat],
        "thinking": [int(thinking.sum()) for thinking, _ in phases],
        "answer": [int(answer.sum()) for _, answer in phases],
        "truncated": [int(completion.truncated) for completion in flat],
        "marker_missing": [int(bool(thinking.all())) for thinking, _ in phases],
    }
    if entropies:
        records = record_completions(
            model, flat, marker, min(asked.batch_size, SCORED_AT_ONCE), False, asked.temperature
        )
        each |= {
            "entropy": [record.entropy for record in records],
            "entropy_thinking": [record.entropy_thinking for record in records],
            "entropy_answer": [record.entropy_answer for record in records],
        }
    k = asked.samples
    for name, values in each.items():
        columns[name] = [_rounded(sum(values[start : start + k])) for start in range(0, len(values), k)]
    return columns, digest(answers.rows)


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it, for whatever reason that ended: two must never work on one
    run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(prog="studies.methods.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path, help="JSON with spec, model, directory, result, device and parent")
    job = json.loads(parser.parse_args().job.read_text(encoding="utf-8"))
    directory = Path(job["directory"])
    _end_with(job["parent"])
    spec = RunSpec.from_dict(job["spec"])
    try:
        result = run(spec, job["model"], directory, job["device"])
    except UserMistake as error:  # of the plan: the last line of the log is what the study shows
        print(error, file=sys.stderr)
        return 2
    result.save(Path(job["result"]))
    for checkpoint in directory.glob(f"*{CHECKPOINT}*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
