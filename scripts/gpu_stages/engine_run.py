"""Run under `accelerate launch`: two steps with given completions; writes the engine, keep masks and weights."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gpu_stages.trainers import options, watched_trainer

from entropy_rft.training.launch import engine

STEPS = 2


def parameters(model: Any) -> dict[str, torch.Tensor]:
    """Whole float32 copies on the CPU, also where an engine has divided them."""
    gathered: Any = nullcontext()
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with gathered:
        return {
            name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().float().cpu().clone()
            for name, p in model.named_parameters()
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    fields = options(arguments.device, "float32", arguments.output.with_suffix(".run"), STEPS)
    # Adam would turn a gradient that is only rounding error into a full step.
    trainer = watched_trainer("clip_b", fields | {"optim": "sgd", "learning_rate": 0.05})
    trainer.train()
    accelerator = trainer.accelerator
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
    result = {
        "engine": engine(accelerator),
        "backend": backend,
        "device": str(accelerator.device),
        "wrapped_in": type(trainer.model_wrapped).__name__,
        "dropped": trainer.dropped(),
        "tokens": [int(batch.valid.sum()) for batch in trainer.seen],
        "logs": [log for log in trainer.state.log_history if "loss" in log],
    }
    torch.save({"result": result, "parameters": parameters(trainer.model)}, arguments.output)
    # The interpreter's normal exit does not close process groups and their users in order.
    wrapped = trainer.model_wrapped
    if hasattr(wrapped, "destroy"):
        wrapped.destroy()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
