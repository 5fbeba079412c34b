"""Runs that are killed, starved or fed nonsense: they go on bit for bit, or end with one line that says why."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from launching import needs_deepspeed
from warm import WarmCommand, WarmRanks

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.training.checkpoints import flaw

pytestmark = pytest.mark.integration

Started = WarmCommand | subprocess.Popen[str]

HERE = Path(__file__).parent
STEPS = 8
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Everything that measures time, and what TRL counts from the start of the process.
IGNORED = ("step_time", "time", "num_tokens", "epoch")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, random_model_dir: Path) -> Path:
    file = tmp_path_factory.mktemp("survival") / "recipe.yaml"
    fields = {
        "model_name_or_path": str(random_model_dir),
        "task": DEFAULT_TASK,
        "task_limit": 12,  # several epochs, whose ends fall between the first step and the last
        "rewards": ["pear", "saboteur:reward"],
        "pear_floor": 0.1,
        "entropy_clip": "clip_b",
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    file.write_text(yaml.safe_dump(fields))
    return file


class Launcher:
    """Starts the command line in its own session, so that one signal reaches all of its processes."""

    def __init__(self, recipe: Path, processes: int, zero: int | None = None, look_every_s: float = 0.1) -> None:
        self.recipe, self.processes, self.zero, self.look_every_s = recipe, processes, zero, look_every_s

    def _command(self, run: Path, flags: Sequence[str | Path]) -> tuple[list[str | Path], dict[str, str]]:
        """The words after ``entropy-rft``, and what the environment needs."""
        words: list[str | Path] = ["train", "--config", self.recipe, "--output_dir", run, *flags]
        environment = {"PYTHONPATH": os.pathsep.join([str(HERE / "sabotage"), os.environ["PYTHONPATH"]])}
        if self.zero is None:
            environment["ACCELERATE_USE_CPU"] = "1"  # beside DeepSpeed it would mean DDP
        else:
            words += ["--deepspeed", HERE.parents[1] / "recipes" / "deepspeed" / f"zero{self.zero}.json"]
        return words, environment

    def start(self, run: Path, *flags: str | Path, **environment: str) -> Started:
        words, own = self._command(run, flags)
        if self.processes == 1:
            return WarmCommand(words, run.parent, own | environment, joined=True)
        return subprocess.Popen(
            [
                *(sys.executable, *TORCHRUN, "--monitor-interval", str(self.look_every_s)),
                *("-m", "entropy_rft", *map(str, words)),
            ],
            cwd=run.parent,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, run: Path, *flags: str | Path, warm: bool = False, **environment: str) -> tuple[int, str]:
        """The exit code and what was printed; `warm` leaves torchrun out, where it plays no part: how it ends the other
        processes, and its own exit code."""
        if warm and self.processes > 1:
            words, own = self._command(run, flags)
            return WarmRanks(words, run.parent, own | environment, self.processes).finish(300)
        process = self.start(run, *flags, **environment)
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            kill(process)
        return process.returncode, output


def kill(process: Started) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def launched() -> Iterator[list[Started]]:
    processes: list[Started] = []
    yield processes
    for process in processes:
        kill(process)


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in IGNORED} for line in lines]


def assert_same_run(run: Path, straight: Path, steps: int = STEPS) -> None:
    import torch
    from safetensors.torch import load_file

    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert metrics(run) == metrics(straight)
    expected = load_file(straight / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def complete(run: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in run.glob("checkpoint-*/complete.json"))


def intact(run: Path) -> list[int]:
    """The steps of the checkpoints that can be resumed from, right after a failure in the step after the last of them.

    Also asserts that no process outlived the failure by a minute.
    """
    assert all(flaw(run / f"checkpoint-{step}") is None for step in complete(run))
    assert time.time() - (run / f"checkpoint-{max(complete(run))}" / "complete.json").stat().st_mtime < 60
    return complete(run)


def wait_for(event: Callable[[], bool], process: Started, seconds: float = 240) -> bool:
    """Until it happens; False when the run ended without it."""
    end = time.monotonic() + seconds
    while not event():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.0005)
    return True


def happened(moment: str, run: Path, step: int, since: int) -> bool:
    """Whether a file that the moment is known by has been written `since` (ns); a moment is one of `step`."""
    files = {
        "start": [run / "run.json"],
        "line": [run / "metrics.jsonl"],
        "write": list((run / f"checkpoint-{step}").glob("*")),
        "complete": [run / f"checkpoint-{step}" / "complete.json"],
    }[moment]
    try:
        fresh = any(file.stat().st_mtime_ns > since for file in files)
        return fresh and (moment != "line" or len(files[0].read_text().splitlines()) >= step)
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def launcher(request: pytest.FixtureRequest, recipe: Path) -> Launcher:
    return Launcher(recipe, request.param)


@pytest.fixture(scope="module")
def straight(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("straight") / "run"
    code, output = launcher.finish(run, warm=True)
    assert code == 0, output
    assert complete(run) == list(range(1, STEPS + 1))
    return run


@pytest.mark.soak
def test_killed_ten_times_at_random(
    launcher: Launcher, straight: Path, tmp_path: Path, launched: list[Started]
) -> None:
    dice = random.Random(7)
    moments = ["start", "start", "line", "line", "write", "write", "write", "write", "complete", "complete"]
    dice.shuffle(moments)
    runs, kills = [tmp_path / "run"], 0
    for moment in itertools.cycle(moments):
        if kills == 10:
            break
        run = runs[-1]
        process = launcher.start(run, "--resume_from_checkpoint", "auto")
        launched.append(process)
        step = min(max(complete(run), default=0) + 1, STEPS)
        if wait_for(functools.partial(happened, moment, run, step, time.time_ns()), process):
            time.sleep(dice.choice([0, 0, dice.uniform(0, 0.03)]))
        kill(process)
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:  # it came to its end before: the rest happens to another run
            assert process.returncode == 0
            runs.append(tmp_path / f"run-{len(runs)}")
    for run in runs:
        code, output = launcher.finish(run, "--resume_from_checkpoint", "auto")
        assert code == 0, output
        assert_same_run(run, straight)
    assert not list(tmp_path.glob("run*.*"))


def test_killed_within_each_file_of_a_checkpoint(launcher: Launcher, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    accidents = ["reward:1", "model.safetensors:1", "optimizer.pt:2", "trainer_state.json:3", "before marker:4"]
    if launcher.processes > 1:
        accidents.append("rng_state_1.pth:5")
    accidents.append("after marker:6")
    for accident in accidents:
        what, _, step = accident.rpartition(":")
        code, output = launcher.finish(run, "--resume_from_checkpoint", "auto", warm=True, SABOTAGE=accident)
        assert code != 0, output
        assert (max(complete(run), default=0) == int(step)) == (what == "after marker"), accident
    # An incomplete one that is named is a mistake, and one line.
    partial = run / "checkpoint-6"
    file = partial / "optimizer.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    code, output = Launcher(launcher.recipe, 1).finish(run, "--resume_from_checkpoint", partial)
    assert code == 2, output
    assert f"is incomplete: optimizer.pt has 100 bytes instead of {len(whole)}" in output
    code, output = launcher.finish(run, "--resume_from_checkpoint", "auto", warm=True)
    assert code == 0, output
    assert "checkpoint-6 is incomplete (optimizer.pt has 100 bytes" in output
    assert not list(run.glob("incomplete-*"))
    assert_same_run(run, straight)


def test_killed_between_the_last_checkpoint_and_the_model(launcher: Launcher, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = launcher.finish(run, warm=True, SABOTAGE=f"after marker:{STEPS}")
    assert code != 0, output
    assert not (run / "model.safetensors").exists()
    code, output = launcher.finish(run, "--resume_from_checkpoint", "auto", warm=True)
    assert code == 0, output
    assert_same_run(run, straight)


def test_a_rank_of_two_that_dies(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # By default torchrun looks every 0.1 s and ends the other process, which may then not have noticed yet.
    code, output = Launcher(recipe, 2, look_every_s=5).finish(run, SABOTAGE="reward:3", SABOTAGE_RANK="1")
    assert code != 0, output
    (line,) = [line for line in output.splitlines() if "entropy-rft: error:" in line]
    assert "another process of this run died; rank 0 noticed in step 3" in line
    assert "the last complete checkpoint is checkpoint-2" in line
    assert intact(run) == [1, 2]


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if "entropy-rft: error:" in line]


def test_a_reward_that_raises(launcher: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = launcher.finish(run, warm=True, SABOTAGE="raise:3", SABOTAGE_RANK=str(launcher.processes - 1))
    assert code == 2, output
    line = next(line for line in errors(output) if "rewards:" in line)
    assert "rewards: reward raised KeyError in step 3: 'no such answer' (at " in line
    assert "saboteur.py:" in line
    assert "the last complete checkpoint is checkpoint-2" in line
    if launcher.processes == 1:
        assert "Traceback" not in output
    assert intact(run) == [1, 2]


def test_a_loss_that_is_nan(launcher: Launcher, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = launcher.finish(run, warm=True, SABOTAGE="nan:3")
    assert code == 1, output
    line = next(line for line in errors(output) if "NaN" in line)
    assert "step 3 made weights NaN or infinite: likely causes are a learning_rate that is too high (0.001)" in line
    assert "the last complete checkpoint is checkpoint-2" in line
    assert intact(run) == [1, 2]
    assert not (run / "checkpoint-3").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_a_loss_that_is_nan_under_deepspeed(recipe: Path, tmp_path: Path, stage: int) -> None:
    """Which leaves such an update out by itself, and would go on to the end without learning anything."""
    needs_deepspeed()
    run = tmp_path / "run"
    code, output = Launcher(recipe, 2, zero=stage).finish(run, warm=True, SABOTAGE="nan:3")
    assert code == 1, output
    line = next(line for line in errors(output) if "NaN" in line)
    assert "the gradients of step 3 are NaN or infinite: likely causes are" in line
    assert "the last complete checkpoint is checkpoint-2" in line
    assert intact(run) == [1, 2]


def test_processes_that_see_different_checkpoints(launcher: Launcher, straight: Path, tmp_path: Path) -> None:
    """As on machines that do not share output_dir."""
    if launcher.processes == 1:
        pytest.skip("one process sees what it sees")
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    code, output = launcher.finish(
        tmp_path / "run", "--resume_from_checkpoint", "auto", warm=True, SABOTAGE="blind:0", SABOTAGE_RANK="1"
    )
    assert code != 0, output
    assert f"the processes would resume from different steps (0, {STEPS}): output_dir" in errors(output)[0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kilobytes)``: a directory on a file system of its own, which root alone may mount."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        directory = tmp_path / "disk"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(directory)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a small file system cannot be mounted here")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        # Lazily: helpers of processes that have just ended may be there for a moment more.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_at_each_point_of_a_checkpoint(
    recipe: Path, straight: Path, launcher: Launcher, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    checkpoint = straight / "checkpoint-1"
    size = sum(-(-path.stat().st_size // 4096) * 4 for path in checkpoint.iterdir())
    disk = small_disk(2 * size + size // 2)
    run = disk / "run"
    code, output = launcher.finish(run, warm=True)
    assert code == 1, output
    line = next(line for line in errors(output) if "cannot write" in line)
    assert f"cannot write checkpoint-3 in {run}: No space left on device" in line
    assert "the last complete checkpoint is checkpoint-2: --resume_from_checkpoint auto" in line
    assert intact(run) == [1, 2]
    # The other process may have come too late to write its part; what is left of the checkpoint is then put aside.
    assert launcher.processes > 1 or not (run / "checkpoint-3").exists()
    # With room again it goes on; the limit frees it here.
    subprocess.run(["mount", "-o", f"remount,size={20 * size}k", str(disk)], check=True)
    code, output = launcher.finish(run, "--resume_from_checkpoint", "auto", "--save_total_limit", "2", warm=True)
    assert code == 0, output
    assert complete(run) == [STEPS - 1, STEPS]
    assert_same_run(run, straight)


def test_a_full_disk_under_the_metrics(recipe: Path, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(20)  # three files of a page each, and a few lines
    run = disk / "run"
    code, output = Launcher(recipe, 1).finish(run, "--save_strategy", "no", "--max_steps", "20")
    assert code == 1, output
    (line,) = errors(output)
    assert f"cannot write {run / 'metrics.jsonl'}: No space left on device" in line
    assert "Traceback" not in output


def test_sigterm_ends_the_run_with_one_line(recipe: Path, tmp_path: Path, launched: list[Started]) -> None:
    run = tmp_path / "run"
    process = Launcher(recipe, 1).start(run, "--max_steps", "1000", "--save_total_limit", "2")
    launched.append(process)
    assert wait_for(lambda: (run / "checkpoint-2" / "complete.json").is_file(), process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "entropy-rft: terminated" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert complete(run)
