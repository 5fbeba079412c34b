"""The rule sees the whole optimisation batch, and the statistics cost one pass at most."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rule_matrix import loose_fields

from entropy_rft.entropy import RULES, Rule, TokenStatistics, token_statistics
from entropy_rft.training.micro_batch import PENALTY, STATISTICS

pytestmark = pytest.mark.integration

# Drops about a third of the tokens of a random model, so that a wrong batch shows.
OFTEN = {"entropy_clip": "clip_b", "entropy_clip_mu_low": 0.5, "entropy_clip_mu_high": 0.5}


def record_losses(trainer: Any) -> list[dict[str, Any]]:
    """The inputs of every loss, as the trainer hands them to TRL."""
    seen: list[dict[str, Any]] = []
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append({name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()})
        return compute(model, inputs)

    trainer._compute_loss = recording
    return seen


def dropped_tokens(inputs: list[dict[str, Any]]) -> set[tuple]:
    """(completion, position) of each token that is dropped or gets a penalty."""
    found = set()
    for batch in inputs:
        if PENALTY in batch:
            for row, t in batch[PENALTY].weight.nonzero().tolist():
                mask = batch["completion_mask"][row].bool()
                found.add((tuple(batch["completion_ids"][row][mask].tolist()), t))
        for ids, mask, advantages in zip(
            batch["completion_ids"], batch["completion_mask"], batch["advantages"], strict=True
        ):
            completion = tuple(ids[mask.bool()].tolist())
            if (advantages != 0).any():
                found |= {(completion, int(t)) for t in ((advantages == 0) & mask.bool()).nonzero()}
    return found


def expected_drops(inputs: list[dict[str, Any]], clip: Rule, advantages: dict[tuple, float]) -> set[tuple]:
    """The same from the tensors of all micro-batches at once."""
    rows = [
        (tuple(ids[mask.bool()].tolist()), *(batch[name][i][mask.bool()] for name in STATISTICS))
        for batch in inputs
        for i, (ids, mask) in enumerate(zip(batch["completion_ids"], batch["completion_mask"], strict=True))
    ]
    joined = TokenStatistics(*(torch.cat([row[k] for row in rows]).unsqueeze(0) for k in (1, 2, 3)))
    flat = torch.cat([torch.full((len(row[0]),), advantages[row[0]]) for row in rows]).unsqueeze(0)
    keep = clip.keep_mask(joined, flat, torch.ones_like(flat))[0]
    where = [(row[0], t) for row in rows for t in range(len(row[0]))]
    return {place for place, kept in zip(where, keep, strict=True) if not kept}


@pytest.mark.parametrize("rule", RULES)
def test_accumulation_does_not_change_the_mask(make_trainer: Callable, rule: str) -> None:
    found = {}
    updates = 2 if RULES[rule].later_updates_only else 1
    for accumulation in (1, 4):
        trainer = make_trainer(
            **loose_fields(rule),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=updates,
        )
        inputs = record_losses(trainer)
        trainer.train()
        assert len(inputs) == accumulation * updates
        found[accumulation] = dropped_tokens(inputs)
    assert found[4] == found[1]
    assert len(found[1]) > 5


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2},  # two generations make one step
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4},  # one generation makes two steps
        {"gradient_accumulation_steps": 2, "num_iterations": 2},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 2},
    ],
    ids=str,
)
def test_the_batch_is_that_of_the_optimisation_step(make_trainer: Callable, options: dict[str, Any]) -> None:
    trainer = make_trainer(
        **OFTEN, **options, per_device_train_batch_size=4, entropy_clip_advantages="negative", max_steps=4
    )
    inputs = record_losses(trainer)
    trainer.train()
    every = options["gradient_accumulation_steps"]
    assert len(inputs) == 4 * every
    drops = 0
    for start in range(0, len(inputs), every):
        step = inputs[start : start + every]
        sign = {
            tuple(ids[mask.bool()].tolist()): float(row[row != 0][0]) if (row != 0).any() else 0.0
            for batch in step
            for ids, mask, row in zip(
                batch["completion_ids"], batch["completion_mask"], batch["advantages"], strict=True
            )
        }
        expected = expected_drops(step, trainer.entropy_clip, sign)
        assert dropped_tokens(step) == {place for place in expected if sign[place[0]] != 0}
        drops += len(expected)
    assert drops > 0


def wants_phases(completions: list, phase_entropies: Any = None, **kwargs: Any) -> list[float]:
    assert phase_entropies is not None
    return [h_think for h_think, _ in phase_entropies]


def str_without_addresses(value: Any) -> str:
    """A parameter's name, which must be the same in each process of the suite."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"entropy_clip": "none"}, 0),
        ({"entropy_clip": "none", "beta": 0.1}, 1),  # TRL's pass over the reference
        ({"entropy_clip": "clip_b"}, 1),
        ({"entropy_clip": "clip_v", "beta": 0.1}, 2),
        ({"entropy_clip": "none", "reward_funcs": wants_phases}, 1),
        ({"entropy_clip": "none", "entropy_metrics": True}, 1),
        ({"entropy_clip": "none", "num_iterations": 2, "max_steps": 2}, 1),  # TRL makes it
        ({"entropy_clip": "clip_b", "num_iterations": 2, "max_steps": 2}, 1),  # and no second one is made
        ({"entropy_clip": "clip_b", "num_iterations": 2, "max_steps": 2, "reward_funcs": wants_phases}, 1),
        # Two micro-batches a generation: TRL makes the pass in pieces of a micro-batch.
        ({"entropy_clip": "none", "per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 2}, 2),
        ({"entropy_clip": "clip_v", "per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 2}, 2),
    ],
    ids=str_without_addresses,
)
def test_number_of_backbone_passes_for_one_generation(
    make_trainer: Callable, options: dict[str, Any], passes: int
) -> None:
    trainer = make_trainer(**({"max_steps": 1} | options))
    counts = {"grad": 0, "no_grad": 0}

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("use_cache") is False:  # generation uses a cache
            counts["grad" if torch.is_grad_enabled() else "no_grad"] += 1

    backbones = [trainer.model.base_model]
    if trainer.ref_model is not None:
        backbones.append(trainer.ref_model.base_model)
    for backbone in backbones:
        backbone.register_forward_pre_hook(hook, with_kwargs=True)
    trainer.train()
    assert counts == {"grad": options.get("max_steps", 1), "no_grad": passes}


def test_statistics_are_those_of_full_logits_of_the_old_policy(make_trainer: Callable) -> None:
    trainer = make_trainer(**OFTEN, temperature=0.8, max_steps=1)
    inputs = record_losses(trainer)
    trainer.train()
    (batch,) = inputs
    # The policy of the step's start, loaded anew.
    from transformers import AutoModelForCausalLM

    old = AutoModelForCausalLM.from_pretrained(trainer.model.config._name_or_path, dtype=torch.float32)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        full = old(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1]
    reference = token_statistics(full.double(), batch["completion_ids"], temperature=0.8)
    mask = batch["completion_mask"].bool()
    for name, expected in zip(
        STATISTICS,
        (reference.log_prob, reference.entropy, reference.expected_discriminant),
        strict=True,
    ):
        assert torch.allclose(batch[name][mask].double(), expected[mask], rtol=2e-5, atol=2e-6), name
        assert (batch[name][~mask] == 0).all()
