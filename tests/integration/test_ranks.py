"""Two real processes hold half a batch each, and must act as one that holds all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from entropy_rft.entropy import EntropyClip, TokenStatistics

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
METRICS = (
    "entropy_clip/dropped",
    "entropy_clip/sigma",
    "entropy/thinking",
    "entropy/answer",
    "entropy/predicted_change",
    "pear/penalty",
    "completions/thinking_length",
    "completions/answer_length",
)


def launch(command: list[str], model_dir: Path, output: Path, case: str, rows: int) -> dict[str, Any]:
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    subprocess.run(
        [*command, str(HERE / "two_ranks.py"), str(model_dir), str(output), case, str(rows)],
        check=True,
        env=environment,
        timeout=300,
        capture_output=True,
    )
    return torch.load(output)


@pytest.mark.parametrize("case", ["clip_b", "clip_v", "masked"])
def test_two_processes_train_as_one(random_model_dir: Path, tmp_path: Path, case: str) -> None:
    one = launch([sys.executable], random_model_dir, tmp_path / "one.pt", case, rows=8)
    two = launch(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        random_model_dir,
        tmp_path / "two.pt",
        case,
        rows=4,
    )
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert two["dropped"] == one["dropped"]
    assert len(one["dropped"]) > 3
    for name, parameter in one["parameters"].items():
        assert torch.allclose(two["parameters"][name], parameter, rtol=0, atol=1e-6), name
    for theirs, ours in zip(one["logs"], two["logs"], strict=True):
        for metric in METRICS:
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), metric


def decide_on_a_rank(rank: int, port: int, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    statistics, advantages, mask = global_batch()
    part = slice(2 * rank, 2 * rank + 2)
    for number, clip in enumerate(CLIPS):
        keep = clip.keep_mask(statistics.map(lambda x: x[part]), advantages[part], mask[part], group=dist.group.WORLD)
        results[rank, number] = keep.tolist()
    dist.destroy_process_group()


CLIPS = (
    EntropyClip.two_sided("clip_b", 1.0),
    EntropyClip("clip_v", 0.5, 0.5, "all", 0.05),
    EntropyClip("clip_v", 0.5, None, "negative", 1e-4),
    EntropyClip("clip_v", 50.0, None, "negative", 0.5),  # nothing qualifies
)


def global_batch() -> tuple[TokenStatistics, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(6, 40, generator=generator) for _ in range(3)]
    # A tie across ranks for the most extreme token.
    for tensor in tensors[1:]:
        tensor[[0, 5], 7] = tensor[1, 3]
    mask = torch.ones(6, 40)
    mask[2:4] = 0  # rank 1 holds no valid token
    return TokenStatistics(-tensors[0].abs(), *tensors[1:]), torch.tensor([-1.0, 1, -1, 1, -1, -1]), mask


def test_the_rule_over_three_ranks_of_which_one_is_empty() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(decide_on_a_rank, args=(port, results), nprocs=3)
        found = dict(results)
    statistics, advantages, mask = global_batch()
    for number, clip in enumerate(CLIPS):
        expected = clip.keep_mask(statistics, advantages, mask)
        joined = torch.tensor([row for rank in range(3) for row in found[rank, number]])
        assert torch.equal(joined, expected), clip
    assert not clip_drops_nothing(CLIPS[0])
    assert not clip_drops_nothing(CLIPS[1])


def clip_drops_nothing(clip: EntropyClip) -> bool:
    return bool(clip.keep_mask(*global_batch()).all())
