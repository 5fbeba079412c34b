"""Two real processes hold half a batch each, and must act as one that holds all of it, whatever engine joins them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launching import (
    ALONE,
    CASES,
    ENGINES,
    FEW_CASES,
    HERE,
    LORA_CASES,
    STEPS,
    ZERO3_CASES,
    ZERO3_LORA_CASES,
    launch,
    needs_deepspeed,
)
from rule_matrix import acted_on, loose_rules

from entropy_rft.entropy import RULES, EntropyClip, Rule, TokenStatistics
from entropy_rft.entropy.lens import COLUMNS, bucket_sums, lens_batch
from entropy_rft.entropy.rules.whole_batch import WholeBatch

pytestmark = pytest.mark.integration

METRICS = (
    "reward_std",
    "entropy/thinking",
    "entropy/answer",
    "entropy/predicted_change",
    "completions/thinking_length",
    "completions/answer_length",
)
OF_EACH_UPDATE = ("entropy/predicted_change",)
# Differences of like numbers, float32 each: some 1e-7 nats of rounding a token, of changes of some 1e-2.
AUDIT = ("entropy/measured_change", "entropy/audit_slope", "entropy/audit_correlation")

# Largest difference of a parameter between one process and two. Sums of float32 in another order, and no more:
# gradients are clipped to norm 1 and the learning rates of the steps sum to 0.125.
BOUND = 1e-6
# With PEAR the policy's entropies become rewards, and these advantages. Half the batch is another matrix product, so an
# entropy may differ by 1e-6 nats; the reward carries that, and the advantages divide it by the standard deviation of
# the group's rewards, which is above 0.1 here (asserted): advantages agree to 1e-5, and what the steps add up to, 0.125
# times that, comes on top. (Were all rewards of a group equal but for rounding, the advantages would be the rounding
# over TRL's 1e-4, and no such bound would hold.)
PEAR_BOUND = BOUND + 0.125 * 1e-5

ENGINE = {"ddp": ("DistributedDataParallel", 0)} | {f"zero{stage}": ("DeepSpeedEngine", stage) for stage in (1, 2, 3)}
Results = dict[str, dict[str, Any]]

TWO_UPDATES = ("refresh", *(name for name, rule in RULES.items() if rule.later_updates_only))


def cases_of(engine: str, lora: bool, soak: bool) -> tuple[str, ...]:
    if engine in ("zero1", "zero2"):
        return FEW_CASES
    if soak:
        return CASES
    if engine == "zero3":
        return ZERO3_LORA_CASES if lora else ZERO3_CASES
    return LORA_CASES if lora else CASES


@pytest.fixture(scope="module")
def soak(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--soak")


@pytest.fixture(scope="module")
def trained(
    random_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, soak: bool
) -> Callable[[str], dict[bool, Results]]:
    """``trained(engine)[lora]``: what two processes do, and one with the whole batch; each is launched once."""

    @functools.cache
    def run(engine: str) -> dict[bool, Results]:
        directory = tmp_path_factory.mktemp(engine)
        output = directory / "results.pt"
        words = [random_model_dir, output, *cases_of(engine, False, soak), "--lora", *cases_of(engine, True, soak)]
        launch(engine, words, directory, HERE / "two_ranks.py")
        return torch.load(output)

    return run


# DeepSpeed's optimizer is the same class for ZeRO 1 and 2.
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "engine", [pytest.param(engine, marks=[pytest.mark.soak] * (engine == "zero1")) for engine in ENGINES]
)
def test_two_processes_train_as_one(
    trained: Callable[[str], dict[bool, Results]], engine: str, lora: bool, soak: bool
) -> None:
    if engine != "ddp":
        needs_deepspeed()
    ones, twos = trained(ALONE)[lora], trained(engine)[lora]
    assert ones.keys() == set(cases_of(ALONE, lora, soak))
    assert twos.keys() == set(cases_of(engine, lora, soak))
    for case, two in twos.items():
        one = ones[case]
        assert (one["num_processes"], two["num_processes"]) == (1, 2), case
        assert two["engines"] == [[ENGINE[engine]]] * 2, case
        check_that_one_learned_something(case, one, lora)
        # A rank may have nothing at all to learn from.
        assert [tokens > 0 for tokens in two["valid"]] == [True, not case.startswith("masked")], case
        assert two["places"] == one["places"], case
        bound = PEAR_BOUND if case.endswith("pear") else BOUND
        for name, parameter in one["parameters"].items():
            assert torch.equal(two["before"][name], one["before"][name]), (case, name)
            difference = (two["parameters"][name] - parameter).abs().max().item()
            assert difference <= bound, (case, name, difference)
        for number, (theirs, ours) in enumerate(zip(one["logs"], two["logs"], strict=True)):
            # The second update of a generation, which is logged once.
            later = case in TWO_UPDATES and number % 2 == 1
            logged = {name for name in (*METRICS, "pear/penalty") if not later or name in OF_EACH_UPDATE}
            for metric in (*METRICS, *(["pear/penalty"] if case.endswith("pear") else [])):
                assert (metric in ours) == (metric in theirs) == (metric in logged), (case, metric)
                if metric in logged:
                    assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), (case, metric)
            of_the_rule = {metric for metric in ours if metric.startswith("entropy_clip/")}
            assert of_the_rule == {metric for metric in theirs if metric.startswith("entropy_clip/")}, case
            assert "entropy_clip/dropped" in of_the_rule
            assert len(of_the_rule) > 3, (case, "the rule's own")
            for metric in of_the_rule:
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6), (case, metric)
            for metric in AUDIT:
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-3, abs=1e-5), (case, metric)
        for theirs, ours in zip(one["lens"], two["lens"], strict=True):
            check_lens(case, theirs, ours)


def check_lens(case: str, one: tuple[dict[str, Any], ...], two: tuple[dict[str, Any], ...]) -> None:
    """Equal sums by bucket; only a token whose S* is an edge of a decile, but for rounding, may change its decile."""
    (sums, tokens), (ours, our_tokens) = one, two
    assert ours["step"] == sums["step"]
    assert ours["columns"] == sums["columns"] == [*COLUMNS, "measured"], case
    for partition in ("advantage_phase", "probability"):
        for bucket, row in sums[partition].items():
            assert ours[partition][bucket] == pytest.approx(row, rel=1e-3, abs=1e-4), (case, partition, bucket)
    assert ours["edges"] == pytest.approx(sums["edges"], rel=1e-4, abs=1e-6), case
    drops = case != "clip_cov" and not (case in RULES and RULES[case].later_updates_only)  # at every step
    assert sum(row[3] for row in sums["probability"].values()) > 0 or not drops
    changes, our_changes = ([token["change"] for token in each["tokens"]] for each in (tokens, our_tokens))
    assert len(changes) == 4, case
    assert our_changes == pytest.approx(changes, rel=1e-3, abs=1e-5), case


def check_that_one_learned_something(case: str, one: dict[str, Any], lora: bool) -> None:
    """Or else equality says nothing."""
    assert len(one["logs"]) == len(one["lens"]) == STEPS
    assert len(one["places"]) > 3, case
    steps = set(range(STEPS))
    if case == "clip_cov":  # its bounds are no multiples of the batch's spread: the untrained model has no candidate
        steps.remove(0)
    if case in RULES and RULES[case].later_updates_only:
        steps = set(range(1, STEPS, 2))
        assert all(one["logs"][step]["entropy_clip/penalty"] > 1000 * BOUND for step in steps), case
    assert {step for step, *_ in one["places"]} >= steps, case
    assert all(entry.get("reward_std", 1.0) > 0.1 for entry in one["logs"]), case
    kinds = ("lora_A", "lora_B") if lora else ("embed_tokens", "q_proj", "down_proj", "norm")
    for kind in kinds:
        for name, parameter in one["parameters"].items():
            if kind in name:
                assert (parameter - one["before"][name]).abs().max() > 100 * BOUND, (case, name)
    assert all(any(kind in name for name in one["parameters"]) for kind in kinds)
    assert not lora or all("lora_" in name for name in one["parameters"])


def decide_on_a_rank(rank: int, port: int, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    statistics, advantages, mask = global_batch()
    part = slice(2 * rank, 2 * rank + 2)
    for number, clip in enumerate(CLIPS):
        decision = clip.decide(statistics.map(lambda x: x[part]), advantages[part], mask[part], group=dist.group.WORLD)
        results[rank, number] = acted_on(decision).tolist()
    results[rank, "lens"] = lens_of(statistics.map(lambda x: x[part]), advantages[part], mask[part], dist.group.WORLD)
    dist.destroy_process_group()


def lens_of(
    statistics: TokenStatistics, advantages: torch.Tensor, mask: torch.Tensor, group: Any
) -> tuple[list[list[float]], list[float]]:
    batch = WholeBatch(statistics, advantages, mask, group)
    phases = (batch.advantages > 0).long()
    found = lens_batch(batch, phases, batch.statistics.entropy > 0.5)
    return bucket_sums(found.index, found.sums, group).tolist(), found.edges.tolist()


CLIPS = (
    *loose_rules(),
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
        expected = acted_on(clip.decide(statistics, advantages, mask))
        joined = torch.tensor([row for rank in range(3) for row in found[rank, number]])
        assert torch.equal(joined, expected), clip
    table, edges = lens_of(statistics, advantages, mask, None)
    assert sum(row[0] for row in table) == 3 * int(mask.sum())
    for rank in range(3):
        its_table, its_edges = found[rank, "lens"]
        assert its_edges == edges
        for its_row, row in zip(its_table, table, strict=True):
            assert its_row == pytest.approx(row, rel=1e-12, abs=1e-12)
    assert not any(does_nothing(clip) for clip in CLIPS[: len(RULES) + 2])


def does_nothing(clip: EntropyClip | Rule) -> bool:
    return not acted_on(clip.decide(*global_batch())).any()
