from __future__ import annotations

import errno
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from entropy_rft.training import failures
from entropy_rft.training.failures import FiniteWeights, NothingLeft, StepsLeft, TrainingFailed, explained


def a_reward(**kwargs: Any) -> list[float]:
    return deeper()


def deeper() -> list[float]:
    raise KeyError("answer")


class CallableReward:
    def __call__(self, **kwargs: Any) -> list[float]:
        return deeper()


def trainer(output_dir: Path, rewards: tuple = (a_reward,), step: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(output_dir), should_save=True, learning_rate=1e-3, max_grad_norm=1.0),
        state=SimpleNamespace(global_step=step),
        reward_funcs=list(rewards),
        reward_func_names=[f"reward {number}" for number in range(len(rewards))],
    )


def failure(trainer: SimpleNamespace, error: Any) -> TrainingFailed:
    def run() -> None:
        if isinstance(error, Exception):
            raise error
        error()

    with pytest.raises(TrainingFailed) as raised, explained(trainer):
        run()
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("reward", [a_reward, CallableReward(), functools.partial(a_reward, x=1)])
def test_a_reward_is_found_by_its_code(reward: Any, tmp_path: Path) -> None:
    raised = failure(trainer(tmp_path, (len, reward)), reward)
    assert raised.exit_code == 2
    assert "rewards: reward 1 raised KeyError in step 3: 'answer' (at " in str(raised)
    assert f"{Path(__file__).name}:" in str(raised)


def test_what_is_not_known_passes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), explained(trainer(tmp_path, (len,))):
        deeper()
    # A lost connection is another process's death only where there are other processes.
    with pytest.raises(RuntimeError, match="closed"), explained(trainer(tmp_path)):
        raise RuntimeError("Connection closed by peer")


def test_a_lost_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(failures.dist, "get_rank", lambda: 0)
    raised = failure(trainer(tmp_path), RuntimeError("[gloo/pair.cc:542] Connection closed by peer [127.0.0.1]:1\nx"))
    assert "another process of this run died; rank 0 noticed in step 3" in str(raised)
    assert raised.exit_code == 1


def test_a_full_disk(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))
    assert f"cannot write {tmp_path}/metrics.jsonl: No space left on device" in str(failure(trainer(tmp_path), full))
    other = RuntimeError("something about it")
    other.__context__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert f"cannot write {tmp_path}: Disk quota exceeded" in str(failure(trainer(tmp_path), other))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_checkpoint_that_cannot_be_written(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    raised = failure(trainer(tmp_path), error)
    assert f"cannot write checkpoint-2 in {tmp_path}: No space left on device (there is no complete" in str(raised)
    assert not checkpoint.exists()


class Weights(torch.nn.Module):
    def __init__(self, value: float, dtype: torch.dtype, trained: bool) -> None:
        super().__init__()
        self.good = torch.nn.Parameter(torch.full((300, 300), torch.finfo(dtype).max, dtype=dtype))
        self.other = torch.nn.Parameter(torch.tensor([1.0, value], dtype=dtype), requires_grad=trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.0])
def test_weights_that_are_not_finite_end_the_run(value: float, dtype: torch.dtype) -> None:
    args = SimpleNamespace(learning_rate=1e-3, max_grad_norm=0.0, fp16=False)
    state = SimpleNamespace(global_step=4)
    FiniteWeights().on_optimizer_step(args, state, None, model=Weights(value, dtype, trained=False))
    if value == 3.0:
        FiniteWeights().on_optimizer_step(args, state, None, model=Weights(value, dtype, trained=True))
    else:
        with pytest.raises(TrainingFailed, match="step 5 made weights NaN or infinite"):
            FiniteWeights().on_optimizer_step(args, state, None, model=Weights(value, dtype, trained=True))


def test_a_skipped_update_ends_the_run_except_where_the_loss_is_scaled() -> None:
    state = SimpleNamespace(global_step=4)
    options = {"model": Weights(3.0, torch.float32, trained=True), "optimizer": SimpleNamespace(step_was_skipped=True)}
    for fp16 in (True, False):
        args = SimpleNamespace(learning_rate=1e-3, max_grad_norm=0.0, fp16=fp16)
        if fp16:
            FiniteWeights().on_optimizer_step(args, state, None, **options)
        else:
            with pytest.raises(TrainingFailed, match="the gradients of step 5 are NaN or infinite"):
                FiniteWeights().on_optimizer_step(args, state, None, **options)


def test_no_step_is_made_after_the_last() -> None:
    check = StepsLeft()
    check.on_train_begin(None, SimpleNamespace(max_steps=4, global_step=3), None)
    with pytest.raises(NothingLeft):
        check.on_train_begin(None, SimpleNamespace(max_steps=4, global_step=4), None)
