"""Real launches of two processes on the CPU: accelerate's files, our own flag, DeepSpeed's launcher, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from launching import environment_of
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from warm import WarmRanks, warm_run

from entropy_rft.training.launch import Launch, exit_code, find_recipe
from entropy_rft.training.recipe import RecipeParser

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"
RECIPE = ROOT / "recipes" / "tiny" / "target_pear.yaml"
SHORT = ("--max_steps", "2", "--per_device_train_batch_size", "8", "--max_completion_length", "16")
SHORT += ("--save_strategy", "no", "--output_dir", "run")
# On a CPU; port 0 is a free one.
HERE = ("--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no")
PYTHON = (sys.executable, "-m")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's: `use_cpu` of the recipe is enough, and ACCELERATE_USE_CPU would mean DDP instead of DeepSpeed."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))


def launch(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=500)


def our_flag(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``entropy-rft train --accelerate_config FILE``. The process that launches is forked, since what it imports is not
    what is tested; those that it launches are new interpreters."""
    return warm_run(["train", "--accelerate_config", *words], cwd, environment, 500)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def check_run(result: subprocess.CompletedProcess[str], run: Path, engine: str) -> None:
    assert result.returncode == 0, result.stderr[-4000:]
    described = json.loads((run / "run.json").read_text())
    assert (described["processes"], described["engine"]) == (2, engine)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(entry["entropy_clip/entropy"] > 0 for entry in logged)
    assert (run / "model.safetensors").is_file()


def needs(engine: str) -> None:
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")


def two_ranks_refuse(message: str, cwd: Path, *flags: str | Path, **environment: str) -> None:
    """Two processes in that environment say it, each in one line, and write nothing."""
    code, output = WarmRanks(["train", *SHORT, *flags], cwd, environment, 2).finish(300)
    assert code == 2, output
    said = [line for line in output.splitlines() if line.startswith("entropy-rft: error:")]
    assert said, output
    assert all(message in line for line in said)
    assert not (cwd / "run").exists()


# Our own flag launches with ddp.yaml below, and with multi_node.yaml, which has the fields of zero3.yaml. The last test
# checks that each file makes the right environment.
@pytest.mark.parametrize(
    "engine",
    [pytest.param("ddp", marks=pytest.mark.soak), "zero2", pytest.param("zero3", marks=pytest.mark.soak)],
)
def test_accelerate_launch_with_the_shipped_file(engine: str, tmp_path: Path) -> None:
    needs(engine)
    result = launch(
        *(*PYTHON, "accelerate.commands.launch", "--config_file", CONFIGS / f"{engine}.yaml", *HERE),
        *("-m", "entropy_rft", "train", "--config", RECIPE, *SHORT),
        cwd=tmp_path,
    )
    check_run(result, tmp_path / "run", engine)


# With ddp it is what the test of the exit code below is started with, and with zero3 each of the two machines.
@pytest.mark.soak
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_our_own_flag_launches(engine: str, tmp_path: Path) -> None:
    needs(engine)
    check_run(our_flag(engine, *HERE, "--config", RECIPE, *SHORT, cwd=tmp_path), tmp_path / "run", engine)


# The files differ in the stage; ZeRO 2 itself is launched from accelerate's file above.
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_deepspeeds_own_launcher(stage: int, tmp_path: Path) -> None:
    """`deepspeed --module entropy_rft train`, its settings in the recipe's field."""
    pytest.importorskip("deepspeed")
    settings = ROOT / "recipes" / "deepspeed" / f"zero{stage}.json"
    result = launch(
        *(
            *PYTHON,
            "deepspeed.launcher.runner",
            "--num_gpus",
            "2",
            "--master_port",
            free_port(),
            "--module",
            "entropy_rft",
        ),
        *("train", "--config", RECIPE, "--deepspeed", settings, *SHORT),
        cwd=tmp_path,
    )
    check_run(result, tmp_path / "run", f"zero{stage}")


def test_two_machines_are_one_run(tmp_path: Path) -> None:
    """Both are this one, with a process each: what is shown is that the launchers find one another."""
    pytest.importorskip("deepspeed")
    port = free_port()

    def machine(rank: int) -> subprocess.CompletedProcess[str]:
        return our_flag(
            *("multi_node", "--main_process_ip", "127.0.0.1", "--main_process_port", port),
            *("--machine_rank", str(rank), "--num_processes", "2", "--mixed_precision", "no"),
            *("--config", RECIPE, *SHORT),
            cwd=tmp_path,
        )

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(machine, (0, 1))
    assert second.returncode == 0, second.stderr[-4000:]
    check_run(first, tmp_path / "run", "zero3")


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a user's mistake, which stands alone."""
    assert result.returncode == 2, result.stderr[-4000:]
    lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("[transformers]")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("entropy-rft: error: ")
    return lines[0]


def test_a_mistake_that_the_processes_find_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    recipe = {name: value for name, value in yaml.safe_load(RECIPE.read_text()).items() if name != "use_cpu"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("--config", "recipe.yaml", *SHORT, "--hub_token", "hf_secret")
    result = our_flag("ddp", *HERE, *words, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert "WORLD_SIZE is 2, but accelerate sees no GPU and would train 2 independent copies" in one_line(result)
    assert "hf_secret" not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()
    # As alone, a process's 4 completions would be no group of 8: that is not the mistake to name.
    flags = ("--config", "recipe.yaml", "--per_device_train_batch_size", "4")
    two_ranks_refuse("would train 2 independent copies; set use_cpu", tmp_path, *flags, CUDA_VISIBLE_DEVICES="")


def test_the_batch_is_the_worlds(tmp_path: Path) -> None:
    message = "(16) must be divisible by num_generations (3)"  # 2 processes x 8
    two_ranks_refuse(message, tmp_path, "--config", RECIPE, "--num_generations", "3")


def test_our_own_flag_launches_and_the_exit_code_of_the_processes_comes_back(tmp_path: Path) -> None:
    """One process ends in the second step."""
    (tmp_path / "ours.py").write_text(
        "import os\n\ndef reward(completions, trainer_state, **kwargs):\n"
        "    if os.environ['RANK'] == '1' and trainer_state.global_step == 1:\n        os._exit(7)\n"
        "    return [float(len(str(completion)) % 5) for completion in completions]\n"
    )
    words = ("--config", RECIPE, *SHORT, "--rewards", "ours:reward", "--hub_token", "hf_secret")
    result = our_flag("ddp", *HERE, *words, cwd=tmp_path)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (described["processes"], described["engine"]) == (2, "ddp")
    (logged,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged)["entropy_clip/entropy"] > 0
    assert result.returncode == 7, result.stderr[-4000:]
    # (A progress bar of the process may have left its line open.)
    assert result.stderr.endswith("entropy-rft: process 1 ended with exit code 7; its output is above\n")
    assert "hf_secret" not in result.stdout + result.stderr
    assert "ChildFailedError" not in result.stderr


@pytest.mark.parametrize(
    ("failures", "code", "said"),
    [
        # A process that dies takes the others with it; all are found at once.
        ({0: (1, 5), 1: (7, 5)}, 7, "process 1 ended with exit code 7"),
        ({0: (-9, 5), 1: (1, 5)}, 137, "process 0 was killed by SIGKILL"),
        ({0: (1, 4), 1: (-6, 5)}, 1, "process 0 ended with exit code 1"),
        ({0: (-15, 4), 1: (1, 5)}, 1, "process 1 ended with exit code 1"),
    ],
)
def test_the_process_that_failed_first_is_named(
    failures: dict[int, tuple[int, int]], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for rank, (status, timestamp) in failures.items():
        found[rank] = ProcessFailure(local_rank=rank, pid=rank, exitcode=status, error_file="none")
        found[rank].timestamp = timestamp
    assert exit_code(ChildFailedError("train", found)) == code
    assert said in capsys.readouterr().err


def test_fsdp_without_a_gpu_is_refused(tmp_path: Path) -> None:
    _, environment = environment_of(CONFIGS / "fsdp2.yaml", *HERE)
    message = "FSDP needs a GPU: accelerate falls back to DDP on a CPU"
    two_ranks_refuse(message, tmp_path, "--config", RECIPE, **environment)


def test_deepspeed_that_would_silently_be_ddp_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    _, environment = environment_of(CONFIGS / "zero2.yaml", *HERE)
    message = "ACCELERATE_USE_CPU is set, with which accelerate runs DDP instead of DeepSpeed"
    two_ranks_refuse(message, tmp_path, "--config", RECIPE, **environment, ACCELERATE_USE_CPU="1")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerate_config", "zero4"], "--accelerate_config 'zero4' is neither a file nor one of ddp, fsdp2"),
        (["--accelerate_config"], "--accelerate_config '' is neither"),
        (["--accelerate_config", "ddp", "--learning_rat", "1"], "did you mean --learning_rate?"),
        (["--accelerate_config", "ddp", "--num_proceses", "1"], "did you mean --num_processes?"),
        (["--accelerate_config", "ddp", "--num_processes", "many"], "invalid int value: 'many'"),
        (["--accelerate_config", "ddp", "--max_steps", "many"], "invalid int value: 'many'"),
        (["--accelerate_config", "ddp", "--config", "missing.yaml"], "recipe 'missing.yaml' cannot be read"),
        (["--accelerate_config", "ddp", "--cpu"], "--cpu makes accelerate start one process only"),
        (["--accelerate_config", "one.yaml"], "accelerate starts one process for distributed_type NO, but num_proce"),
        (["--accelerate_config", "bad.yaml"], "cannot be used: The config file at bad.yaml had unknown keys"),
        (["--num_processes", "2"], "--num_processes is for `accelerate launch`: give --accelerate_config too"),
    ],
)
def test_mistakes_before_anything_is_launched(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from accelerate.commands import launch as accelerate_launch

    from entropy_rft.cli.main import main

    def launched(args: object) -> None:
        raise AssertionError("launched")

    monkeypatch.setattr(accelerate_launch, "launch_command", launched)
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', num_processes: 2}")
    Path("bad.yaml").write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', processes: 2}")
    assert main(["train", *([] if "--config" in flags else ["--config", str(RECIPE)]), *flags]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("entropy-rft: error: ")
    assert message in line


def test_flags_go_to_whom_they_belong() -> None:
    argv = ["--config", "r.yaml", "--accelerate_config=ddp", "--num_processes", "2", "--rewards", "task", "pear"]
    argv += ["--gradient_accumulation_steps", "4", "--debug", "--mixed_precision=no", "--multi_gpu", "--bf16"]
    found = Launch.of(argv, RecipeParser().flags)
    assert found is not None
    assert found.config == CONFIGS / "ddp.yaml"
    assert found.launcher == ["--num_processes", "2", "--mixed_precision=no", "--multi_gpu"]
    # Both know --debug and --gradient_accumulation_steps: they are the recipe's.
    assert found.training == [
        *("--config", "r.yaml", "--rewards", "task", "pear"),
        *("--gradient_accumulation_steps", "4", "--debug", "--bf16"),
    ]
    assert Launch.of(["--config", "r.yaml"], RecipeParser().flags) is None


def test_a_wheel_finds_its_own_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There they lie within the package."""
    import entropy_rft.training.launch as module

    package = tmp_path / "site-packages" / "entropy_rft"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    monkeypatch.setattr(module, "__file__", str(package / "training" / "launch.py"))
    assert find_recipe("tiny/grpo.yaml") == package / "recipes" / "tiny" / "grpo.yaml"
    launched = Launch.of(["--accelerate_config", "zero3"], [])
    assert launched is not None
    assert launched.config == package / "recipes" / "accelerate" / "zero3.yaml"


CONFIG_FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda file: file.stem)
def test_accelerate_reads_its_files_and_makes_the_right_environment(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(file))  # refuses keys that it does not know
    assert file.name in file.read_text()
    flags = ["--main_process_port", "0"] if config.num_machines == 1 else []
    known = vars(launch_command_parser().parse_args(["entropy_rft"])).keys()
    # Keys that accelerate's parser does not know would be set and read by nobody.
    assert {key for block in (config.deepspeed_config, config.fsdp_config) for key in block} <= known
    args, environment = environment_of(file, *flags)
    assert args.mixed_precision == "bf16"
    kind = config.distributed_type.value
    assert (args.multi_gpu, args.use_deepspeed, args.use_fsdp) == tuple(
        kind == name for name in ("MULTI_GPU", "DEEPSPEED", "FSDP")
    )
    if kind == "DEEPSPEED":
        stage = "2" if file.stem == "zero2" else "3"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str(stage == "3").lower()
        assert environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
        assert environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
        if stage == "3":
            assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if kind == "FSDP":
        expected = {
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            "FSDP_ACTIVATION_CHECKPOINTING": "false",
        }
        assert environment.items() >= expected.items()
    if config.num_machines > 1:
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 0)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "127.0.0.1:29500")
    else:
        assert args.nproc_per_node == "8"
