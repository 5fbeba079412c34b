from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from entropy_rft import threads
from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.sampling import load_model_and_tokenizer
from entropy_rft.threads import CHOSEN_BY_USER, INTERVAL, FollowLoad, threads_beside


@pytest.mark.parametrize(
    ("others", "cores", "most", "expected"),
    [
        (0.0, 2, 2, 2),
        (0.3, 2, 2, 2),  # now and then something runs everywhere
        (0.67, 2, 2, 1),  # what one busy process gets beside two threads
        (1.0, 2, 2, 1),  # and beside one
        (2.0, 2, 2, 1),
        (0.0, 8, 4, 4),  # no more than torch took
        (1.0, 8, 8, 7),
        (7.9, 8, 8, 1),
        (0.0, 1, 1, 1),
    ],
)
def test_as_many_threads_as_cores_that_nobody_else_uses(others: float, cores: int, most: int, expected: int) -> None:
    assert threads_beside(others, cores, most) == expected


class Machine:
    """A clock and the processor time of two cores, moved by hand."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0

    def used(self, cores: list[int]) -> tuple[float, float]:
        assert cores == [0, 1]
        return self.busy, self.own

    def run(self, seconds: float, own: float, others: float) -> None:
        self.now += seconds
        self.own += seconds * own
        self.busy += seconds * (own + others)


def test_the_threads_follow_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, chosen = Machine(), []
    monkeypatch.setattr(FollowLoad, "set", staticmethod(chosen.append))
    follow = FollowLoad([0, 1], 2, machine.used, lambda: machine.now)
    machine.run(INTERVAL / 2, own=1, others=1)
    follow()
    assert chosen == []  # too early to tell
    machine.run(INTERVAL, own=1.34, others=0.66)
    follow()
    machine.run(INTERVAL, own=1, others=1)
    follow()
    machine.run(INTERVAL, own=1, others=0.1)
    follow()
    assert chosen == [1, 1, 2]


def test_the_real_clock_of_the_cores_counts_this_process() -> None:
    cores = threads.own_cores()
    busy, own = threads.processor_seconds(cores)
    while threads.processor_seconds(cores)[1] < own + 0.1:  # the kernel counts in hundredths
        sum(range(10_000))
    # Nothing is counted twice: this process's own time is a part of what its cores have spent.
    later_busy, later_own = threads.processor_seconds(cores)
    assert later_own - own >= 0.099  # a sum of hundredths
    assert later_busy - busy >= 0.8 * (later_own - own)


def hooks(model: torch.nn.Module) -> list:
    return list(model.get_input_embeddings()._forward_pre_hooks.values())


def test_only_a_command_follows_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_model_and_tokenizer(DEFAULT_MODEL, device="cpu")
    assert hooks(model) == []
    monkeypatch.setattr(threads, "_sharing", True)
    model, _ = load_model_and_tokenizer(DEFAULT_MODEL, device="cpu")
    (hook,) = hooks(model)
    assert isinstance(hook, FollowLoad)
    assert hook.most == torch.get_num_threads()


@pytest.mark.parametrize("name", CHOSEN_BY_USER)
def test_what_the_user_sets_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in CHOSEN_BY_USER:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr(threads, "_sharing", False)
    monkeypatch.setenv(name, "1")
    threads.share_cores()
    assert not threads._sharing
    assert "MKL_CBWR" not in os.environ


def test_a_command_sets_it_before_torch_is_there_and_a_run_then_repeats_with_any_number_of_threads() -> None:
    code = """
        import os, sys
        from entropy_rft.cli.main import main
        assert main(["report"]) == 2  # its mistake comes after the choice
        assert "torch" not in sys.modules or os.environ["MKL_CBWR"] == "AUTO,STRICT"
        import torch
        from entropy_rft.assets import DEFAULT_MODEL
        from entropy_rft.sampling import load_model_and_tokenizer
        model, _ = load_model_and_tokenizer(DEFAULT_MODEL, device="cpu")
        torch.manual_seed(0)
        ids = torch.randint(3, 380, (32, 100))
        def gradients(threads):
            torch.set_num_threads(threads)
            model.zero_grad()
            model(input_ids=ids).logits.logsumexp(-1).mean().backward()
            return [parameter.grad.clone() for parameter in model.parameters()]
        for one, two in zip(gradients(1), gradients(2), strict=True):
            assert torch.equal(one, two)
    """
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    environment.pop("MKL_CBWR", None)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
