"""A reward for the survival tests, and accidents on demand: SABOTAGE="what:step" names the one that happens.

A process that dies does so by SIGKILL, in the middle of what it was doing. SABOTAGE_RANK: only in that process.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

WHAT, _, STEP = os.environ.get("SABOTAGE", "nothing:0").rpartition(":")
if os.environ.get("RANK", "0") != os.environ.get("SABOTAGE_RANK", os.environ.get("RANK", "0")):
    WHAT = "nothing"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reward(completions: list, trainer_state: Any, **kwargs: Any) -> list[float]:
    """Ordinary, and different within every group."""
    if trainer_state.global_step + 1 == int(STEP):
        if WHAT == "reward":
            die()
        if WHAT == "raise":
            raise KeyError("no such answer")
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]


def _half_written(file: Any) -> None:
    path = Path(file)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    die()


def _ours(file: Any) -> bool:
    return f"checkpoint-{STEP}/" in str(file)


if WHAT == "optimizer.pt" or WHAT.startswith("rng_state"):
    save = torch.save

    def half_save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(value, file, *args, **kwargs)
        if _ours(file) and Path(file).name == WHAT:
            _half_written(file)

    torch.save = half_save
elif WHAT == "model.safetensors":
    import transformers.modeling_utils as modeling

    save_file = modeling.safe_save_file

    def half_save_file(tensors: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save_file(tensors, file, *args, **kwargs)
        if _ours(file):
            _half_written(file)

    modeling.safe_save_file = half_save_file
elif WHAT == "trainer_state.json":
    from transformers import TrainerState

    to_json = TrainerState.save_to_json

    def half_to_json(self: TrainerState, file: str) -> None:
        to_json(self, file)
        if _ours(file):
            _half_written(file)

    TrainerState.save_to_json = half_to_json
elif WHAT in ("before marker", "after marker"):
    from entropy_rft.training import checkpoints

    mark = checkpoints.mark_complete

    def mark_complete(checkpoint: Path) -> None:
        if _ours(f"{checkpoint}/") and WHAT == "before marker":
            die()
        mark(checkpoint)
        if _ours(f"{checkpoint}/"):
            die()

    checkpoints.mark_complete = mark_complete
elif WHAT == "blind":
    from entropy_rft.training import run

    run.checkpoint_to_resume = lambda requested, output_dir: None
elif WHAT == "nan":
    from entropy_rft import EntropyGRPOTrainer

    compute = EntropyGRPOTrainer._compute_loss

    def nan_loss(self: Any, model: Any, inputs: Any) -> Any:
        loss = compute(self, model, inputs)
        return loss * float("nan") if self.state.global_step + 1 == int(STEP) else loss

    EntropyGRPOTrainer._compute_loss = nan_loss
