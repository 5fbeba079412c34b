"""How the tests start two real processes on the CPU: torchrun for DDP, `accelerate launch` for DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from entropy_rft.entropy import RULES

HERE = Path(__file__).parent
ENGINES = ("ddp", "zero1", "zero2", "zero3")

# What two_ranks.py trains by; "masked" leaves rank 1 without a valid token.
CASES = (*RULES, "clip_b_pear", "clip_v_pear", "masked", "masked_pear", "refresh")
# For the engines between DDP, which shards nothing, and ZeRO-3, which shards everything.
FEW_CASES = ("clip_b", "clip_v_pear", "masked_pear")
# For LoRA beside all weights: the rules read the same statistics, and what differs is where the gradients go. The soak
# tests train by all cases.
LORA_CASES = (*FEW_CASES, "refresh")
STEPS = 4

# DeepSpeed builds a small C++ operator on its first run, about a minute on an idle machine.
TIMEOUT = 500


def launcher(engine: str, directory: Path, zero: Mapping[str, Any] | None = None) -> list[str]:
    """The command before a script, or before ``-m module``, that runs it in two processes of `engine`.

    `zero` adds fields to DeepSpeed's ``zero_optimization``, which then comes from a JSON file of its own.
    """
    if engine == "ddp":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    stage = int(engine.removeprefix("zero"))
    deepspeed: dict[str, Any] = {"zero3_init_flag": stage == 3}
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "num_machines": 1,
        "num_processes": 2,
        "machine_rank": 0,
        "deepspeed_config": deepspeed,
    }
    # What is "auto" the trainer fills in.
    common = {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    if zero is None:
        settings["mixed_precision"] = "no"
        deepspeed |= {"zero_stage": stage, "zero3_save_16bit_model": stage == 3, **common}
    else:  # accelerate has no field for each; beside a DeepSpeed file it takes no mixed_precision either
        sizes = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
        own = directory / f"{engine}.json"
        own.write_text(json.dumps({"zero_optimization": {"stage": stage, **zero}, **sizes, **common}))
        deepspeed["deepspeed_config_file"] = str(own)
    file = directory / f"{engine}.yaml"
    file.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*command, "--main_process_port", str(port)]


def launch(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end; a failure shows what the processes said."""
    # `use_cpu` in the training arguments is enough. ACCELERATE_USE_CPU=1 beside it would make accelerate silently
    # ignore DeepSpeed, and train by DDP.
    environment = os.environ | {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])]),
    }
    environment.pop("ACCELERATE_USE_CPU", None)
    process = subprocess.Popen(
        command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks then, by force after half a minute; killed, it would not
        output, errors = process.communicate(timeout=60)
        pytest.fail(f"still running after {TIMEOUT} s\n{output[-4000:]}\n{errors[-6000:]}")
    assert process.returncode == 0, f"{output[-4000:]}\n{errors[-6000:]}"
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def needs_deepspeed() -> None:
    """Skip the test where DeepSpeed is not installed; importing it here would set up its accelerator without need."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
