"""Stage 1: is what runs on a GPU right? The kernel's tests, the identity with TRL, the rules through both paths."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from typing import Any

from gpu_stages.recording import ROOT, Stage, child_environment

TESTS = ROOT / "tests" / "unit" / "entropy" / "test_fused_triton.py"
# Of one statistic of one token, through Triton and through torch. Products that are rounded to bfloat16 may be rounded
# to different neighbours, which are 0.125 apart for a logit of 16 to 32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}


def start_tests(stage: Stage) -> tuple[subprocess.Popen[bytes], Any]:
    """pytest in a process of its own, while this one trains."""
    report = stage.work / "tests.xml"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(TESTS)]
    # On a dry run one test in Triton's interpreter: the others are the test suite's.
    words += ["-k", "no_token_and_ties" if stage.dry_run else "not in_the_interpreter"]
    interpreted = {"TRITON_INTERPRET": "1"} if stage.dry_run else {}
    return subprocess.Popen(words, cwd=ROOT, env=child_environment(**interpreted)), report


def record_tests(stage: Stage, process: subprocess.Popen[bytes], report: Any) -> None:
    code = process.wait()
    counts = {"passed": 0, "failed": [], "skipped": []}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('name')}"
        if (failure := case.find("failure")) is not None or (failure := case.find("error")) is not None:
            counts["failed"].append({"test": name, "message": (failure.get("message") or "")[:1000]})
        elif (skipped := case.find("skipped")) is not None:
            counts["skipped"].append({"test": name, "message": skipped.get("message")})
        else:
            counts["passed"] += 1
    stage.put("tests", counts)
    stage.check("the Triton path's tests pass", code == 0 and counts["passed"] > 0)
    stage.check("none of them is skipped", not counts["skipped"], [each["test"] for each in counts["skipped"]])


def identity(stage: Stage, precision: str) -> None:
    """With the rule off the trainer is TRL's, bit for bit. Two runs of TRL show whether TRL itself is reproducible
    here."""
    from gpu_stages.trainers import options, train_plain

    fields = options(stage.device, precision, stage.work / "identity", 2 if stage.dry_run else 3)
    theirs, again, ours = train_plain(False, fields), train_plain(False, fields), train_plain(True, fields)
    found = {"logs": theirs["logs"], "trl_repeats_itself": same(theirs, again), "ours_is_trls": same(theirs, ours)}
    found["largest_difference"] = largest_difference(theirs, ours)
    found["largest_difference_of_trl_to_itself"] = largest_difference(theirs, again)
    stage.put(f"identity, {precision}", found)
    stage.check(f"without a rule the trainer is TRL's, {precision}", all(found["ours_is_trls"].values()))


def same(one: dict[str, Any], other: dict[str, Any]) -> dict[str, bool]:
    import torch

    parameters = one["parameters"].keys() == other["parameters"].keys() and all(
        torch.equal(p, other["parameters"][name]) for name, p in one["parameters"].items()
    )
    return {name: one[name] == other[name] for name in ("logs", "completions")} | {"parameters": parameters}


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(float((p - other["parameters"][name]).abs().max()) for name, p in one["parameters"].items())


def largest(one: Any, other: Any, valid: Any) -> float:
    return float((one - other)[valid].abs().max())


def rule(stage: Stage, name: str, precision: str) -> None:
    """The same two steps through Triton and through torch."""
    import torch
    from gpu_stages.trainers import STATISTICS, options, watched_trainer

    from entropy_rft.entropy import fused

    runs = {}
    installed = fused._triton_is_installed
    for path in ("triton", "torch"):
        if path == "torch":
            fused._triton_is_installed = lambda: False
        try:
            trainer = watched_trainer(name, options(stage.device, precision, stage.work / "rule", 2))
            trainer.train()
        finally:
            fused._triton_is_installed = installed
        runs[path] = trainer
    logs = {path: [log for log in trainer.state.log_history if "loss" in log] for path, trainer in runs.items()}
    # Both begin with the same weights; after a step these may differ by rounding.
    ours, theirs = (trainer.seen[0] for trainer in runs.values())
    valid = ours.valid
    apart = {s: largest(getattr(ours.statistics, s), getattr(theirs.statistics, s), valid) for s in STATISTICS}
    agreement = float((ours.dropped == theirs.dropped)[valid].float().mean())
    losses = torch.tensor([[log["loss"], log["grad_norm"]] for log in logs["triton"]])
    finite = losses.isfinite().all() and all(
        getattr(batch.statistics, s)[batch.valid].isfinite().all() for batch in runs["triton"].seen for s in STATISTICS
    )
    found = {"largest_differences": apart, "decisions_that_agree": agreement, "dropped": int(ours.dropped.sum())}
    found |= {"tokens": int(valid.sum()), "losses": {path: [log["loss"] for log in logs[path]] for path in logs}}
    stage.put(f"{name}, {precision}", found)
    stage.check(f"{name} is finite, {precision}", bool(finite))
    stage.check(f"{name} drops tokens, {precision}", 0 < found["dropped"] < found["tokens"])
    stage.check(f"{name} is the torch path's, {precision}", max(apart.values()) <= TOLERANCE[precision], apart)
    if precision == "float32":
        stage.check(f"{name} decides as the torch path does, {precision}", agreement == 1.0, agreement)
    else:
        stage.goal(f"{name}: decisions that agree with the torch path's, {precision}", agreement, 0.98, "at least")


def main() -> int:
    stage = Stage()
    tests = start_tests(stage) if find_spec("triton") else None
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that products are reproducible
    precisions = ("float32", "bfloat16")
    rules = [(name, precision) for precision in precisions for name in ("clip_b", "clip_v")]
    for precision in precisions:
        stage.attempt(f"identity, {precision}", lambda p=precision: identity(stage, p))
    for name, precision in rules[::3] if stage.dry_run else rules:
        stage.attempt(f"{name}, {precision}", lambda n=name, p=precision: rule(stage, n, p))
    if tests is None:
        stage.check("triton is installed", stage.dry_run, "without it the torch path runs on the GPU too")
    else:
        stage.attempt("tests", lambda: record_tests(stage, *tests))
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
