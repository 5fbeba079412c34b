"""How the tests start two real processes on the CPU, as torchrun does for DDP and `accelerate launch` for DeepSpeed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import WarmRanks

from entropy_rft.entropy import RULES

HERE = Path(__file__).parent
ENGINES = ("ddp", "zero1", "zero2", "zero3")
ALONE = "alone"  # one process

# What two_ranks.py trains by; "masked" leaves rank 1 without a valid token.
CASES = (*RULES, "clip_b_pear", "clip_v_pear", "masked", "masked_pear", "refresh")
# For the engines between DDP, which shards nothing, and ZeRO-3, which shards everything.
FEW_CASES = ("clip_b", "clip_v_pear", "masked_pear")
# For LoRA beside all weights: the rules read the same statistics, and what differs is where the gradients go.
LORA_CASES = (*FEW_CASES, "refresh")
# For ZeRO-3, where what differs from DDP is how the model's parts come together: a rule of each kind. The soak tests
# train by all cases, as for LoRA.
ZERO3_CASES = ("clip_v", "kl_cov", "target", "masked_pear", "refresh")
ZERO3_LORA_CASES = ("clip_v_pear", "masked_pear", "refresh")
STEPS = 4

# DeepSpeed builds a small C++ operator on its first run, about a minute on an idle machine.
TIMEOUT = 500


def environment_of(file: Path, *flags: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """What ``accelerate launch --config_file FILE FLAGS`` makes of them: its arguments, and what it adds to the
    environment of the processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    args = launch_command_parser().parse_args(["--config_file", str(file), *flags, "-m", "entropy_rft", "train"])
    args, defaults, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, environment = prepare_deepspeed_cmd_env(args)
        assert command is None  # torchrun on each machine, not pdsh
    else:
        environment = prepare_multi_gpu_env(args)
    return args, {name: value for name, value in environment.items() if os.environ.get(name) != value}


def engine_environment(engine: str, directory: Path, zero: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What `accelerate launch` adds to the environment of two processes of `engine`; nothing for DDP.

    `zero` adds fields to DeepSpeed's ``zero_optimization``, which then comes from a JSON file of its own.
    """
    if engine == "ddp":
        return {}
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
    return environment_of(file, "--main_process_port", "0")[1]


def launch(
    engine: str,
    arguments: Sequence[str | os.PathLike[str]],
    cwd: Path,
    script: Path | None = None,
    zero: Mapping[str, Any] | None = None,
) -> None:
    """Run ``entropy-rft ARGUMENTS``, or `script`, in two processes of `engine` (in one if that is "alone") to its end.

    The launchers themselves are what test_launching.py is about: here the processes are forked, with the environment
    that a launcher gives them. A failure shows what they said.
    """
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    environment = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": paths}
    with pytest.MonkeyPatch.context() as inherited:
        # `use_cpu` in the training arguments is enough. ACCELERATE_USE_CPU=1 beside it would make accelerate silently
        # ignore DeepSpeed, and train by DDP.
        inherited.delenv("ACCELERATE_USE_CPU", raising=False)
        if engine == ALONE:
            processes = WarmRanks(arguments, cwd, environment, 1, script)
        else:
            processes = WarmRanks(arguments, cwd, environment | engine_environment(engine, cwd, zero), 2, script)
    code, output = processes.finish(TIMEOUT)
    assert code == 0, output[-6000:]


def needs_deepspeed() -> None:
    """Skip the test where DeepSpeed is not installed; importing it here would set up its accelerator without need."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
