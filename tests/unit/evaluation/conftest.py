"""Evaluations and run directories made of invented numbers."""

from __future__ import annotations

import json
import math
import random

import pytest

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.evaluation import Evaluation, Scores


def build_scores(**overrides) -> dict:
    return {
        "questions": 40,
        "unscorable": 1,
        "avg_at_k": 0.625,
        "avg_interval": (0.55, 0.70),
        "pass_at_k": {1: 0.625, 2: 0.71, 4: 0.8, 8: 0.875},
        "tokens": 70.5,
        "thinking_tokens": 60.25,
        "answer_tokens": 9.25,
        "truncated": 0.02,
        "marker_missing": 0.05,
        "entropy": 0.31,
        "entropy_thinking": 0.35,
        "entropy_answer": 0.05,
        **overrides,
    }


@pytest.fixture
def make_evaluation():
    def make(**overrides) -> Evaluation:
        levels = {
            str(level): Scores(**build_scores(questions=10, avg_at_k=1 - level / 8, avg_interval=None))
            for level in (2, 4, 7)
        }
        return Evaluation(
            **{
                **build_scores(),
                "model": "runs/clip_b",
                "task": DEFAULT_TASK,
                "split": "test",
                "samples": 8,
                "settings": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 128, "seed": 0},
                "by_difficulty": levels,
                "seconds": 12.5,
                **overrides,
            }
        )

    return make


@pytest.fixture
def make_run(tmp_path, make_evaluation):
    """Write a run directory such as training leaves; `steps` of an entropy that decays by `decay`."""

    def make(name, *, steps=60, decay=0.02, recipe=None, evaluation=True, ours=True, seed=1):
        directory = tmp_path / name.replace("/", "_").replace("<", "_").replace(">", "_")
        directory.mkdir()
        noise = random.Random(seed)
        lines = []
        for step in range(1, steps + 1):
            entropy = 0.5 * math.exp(-decay * step) + noise.gauss(0, 0.02)
            line = {
                "step": step,
                "epoch": step / steps,
                "time": 2.0 * step,
                "loss": noise.gauss(0, 0.01),
                "reward": 0.5 + 0.3 * (1 - math.exp(-0.05 * step)) + noise.gauss(0, 0.04),
                "entropy": entropy,
                "completions/mean_length": 80 - 0.3 * step + noise.gauss(0, 3),
            }
            if ours:
                line |= {
                    "entropy/thinking": entropy * 1.1,
                    "entropy/answer": entropy * 0.2,
                    "entropy/predicted_change": noise.gauss(-1e-4, 2e-4),
                    "entropy_clip/dropped": 0.01,
                    "entropy_clip/dropped_negative": abs(noise.gauss(0.01, 0.003)),
                    "entropy_clip/dropped_positive": 0.0,
                    "completions/thinking_length": 70 - 0.3 * step + noise.gauss(0, 3),
                }
            lines.append(json.dumps(line))
            if step % 20 == 0:
                lines.append(json.dumps({"step": step, "epoch": step / steps, "time": 2.0 * step, "eval_reward": 0.6}))
        (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        description = {
            "name": name,
            "created": "2026-05-04T12:00:00+00:00",
            "seed": seed,
            "command": ["entropy-rft", "train", "--config", "recipes/tiny/clip_b.yaml"],
            "versions": {"torch": "2.13.0", "trl": "1.16.0"},
            "device": "cpu",
        }
        (directory / "run.json").write_text(json.dumps(description))
        settings = {"learning_rate": 3e-5, "entropy_clip": "clip_b", "seed": seed, **(recipe or {})}
        (directory / "recipe.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items()))
        if evaluation:
            make_evaluation().save(directory / "evaluation.json")
        return directory

    return make
