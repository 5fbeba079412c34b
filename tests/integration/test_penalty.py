"""KL-Cov's penalty in a real training: its gradient is that of the formula in float64, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from training_inputs import scripted_rollout, some_reward
from transformers import AutoModelForCausalLM

from entropy_rft import PEARReward
from entropy_rft.entropy.rules.whole_batch import per_token
from entropy_rft.training.micro_batch import PENALTY, loss_mask
from entropy_rft.training.trl_hooks import loss_weights

pytestmark = pytest.mark.integration

SHARE, BETA = 0.1, 5.0
RULE = {"entropy_clip": "kl_cov", "entropy_clip_share": SHARE, "entropy_clip_beta": BETA}
MAX_LENGTH = 12
LATER = {
    "num_iterations": 2,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_completion_length": MAX_LENGTH,
}


def completion(row: int) -> list[int]:
    return [4 + row, *range(20, 22 + row % 5), 30 + row, *([40] * (row % 3))]


def tool_output(row: int) -> list[int]:
    return [int(place % 4 != 1) for place in range(len(completion(row)))]


CASES: dict[str, dict[str, Any]] = {
    **{kind: {"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "vespo", "luspo")},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.2},
    "sequence level": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "luspo, sequence level": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "narrow clipping": {"epsilon": 1e-4, "delta": 1.0001},
    "reference": {"beta": 0.1, "use_bias_correction_kl": True},
    "some tokens, entropy bonus": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01},
    "temperature": {"temperature": 0.7, "loss_type": "bnpo"},
    "tools": {"env_mask": tool_output},
    "tools, per sequence": {"env_mask": tool_output, "loss_type": "grpo"},
    "truncated ones masked": {"mask_truncated_completions": True, "cut_off": 3},
    "two generations of two steps": {"num_iterations": 1, "steps_per_generation": 4},
    "off-policy mask": {"off_policy_mask_threshold": 0.5},
    "pear": {"reward_funcs": PEARReward(some_reward, score=4.5, floor=0.1)},
    "lora": {"lora": True},
    "refreshed": {"entropy_clip_refresh": True},
}


ADAPTERS = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def double_copy(model: Any) -> Any:
    """The model as it is, in float64, without what the trainer replaced in it (a deep copy would call the original)."""
    fresh = AutoModelForCausalLM.from_config(model.config)
    if hasattr(model, "peft_config"):
        fresh = get_peft_model(fresh, ADAPTERS)
    fresh.load_state_dict(model.state_dict())
    return fresh.double().eval()


def trained(make_trainer: Callable, wanted: int = 1, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A trainer after two updates; of update `wanted` the inputs, the weights before it, and the penalty's gradient."""
    cut_off = options.pop("cut_off", 1)

    def rows(row: int) -> list[int]:
        return [*completion(row), *([trainer.processing_class.eos_token_id] if row % cut_off else [])]

    extra: dict[str, Any] = {"rollout_func": scripted_rollout(rows, options.pop("env_mask", None))}
    if options.pop("lora", False):
        extra["peft_config"] = ADAPTERS
    trainer = make_trainer(**(LATER | RULE | options), trainer_options=extra)
    compute, seen = trainer._compute_loss, []

    def recording(model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = compute(model, inputs)
        if trainer.state.global_step == wanted:
            kept = {"inputs": inputs, "model": double_copy(trainer.model), "value": 0.0, "gradient": []}
            if PENALTY in inputs:
                parameters = [p for p in trainer.model.parameters() if p.requires_grad]
                added = loss - compute(model, {name: x for name, x in inputs.items() if name != PENALTY})
                kept["value"] = added.item()
                kept["gradient"] = torch.autograd.grad(added, parameters, retain_graph=True)
            seen.append(kept)
        return loss

    trainer._compute_loss = recording
    trainer.train()
    assert len(seen) == 2
    return trainer, seen


def log_probabilities(model: Any, inputs: dict[str, Any], temperature: float) -> Tensor:
    """``(B, T)`` from full logits."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)


def averaged(term: Tensor, inputs: dict[str, Any], args: Any) -> Tensor:
    """What a term of each token ``(B, T)`` adds to the loss of a micro-batch, in the words of TRL's documentation."""
    valid = loss_mask(inputs).double()
    sums, accumulation = (term * valid).sum(1), args.gradient_accumulation_steps
    if args.loss_type in ("grpo", "sapo"):  # the mean over completions of the mean over their tokens
        return (sums / valid.sum(1).clamp(min=1)).mean() / accumulation
    if args.loss_type == "bnpo":  # the mean over the micro-batch's tokens
        return sums.sum() / valid.sum() / accumulation
    if args.loss_type == "dr_grpo":  # the same with a constant number of tokens
        return sums.sum() / (len(sums) * args.max_completion_length) / accumulation
    if args.loss_type == "luspo":  # the mean over completions of the sum over their tokens
        return sums.mean() / accumulation
    assert args.loss_type in ("dapo", "cispo", "vespo")  # the mean over the tokens of the whole step
    return sums.sum() / (float(inputs["num_items_in_batch"]) * accumulation / args.steps_per_generation)


def chosen_by_definition(seen: list[dict[str, Any]], old: list[Tensor]) -> list[Tensor]:
    """The tokens of the largest covariance over all micro-batches, bool ``(B, T)`` each, in float64 numpy."""
    valid = [loss_mask(each["inputs"]).numpy() != 0 for each in seen]
    log_prob = np.concatenate([x.double().numpy()[v] for x, v in zip(old, valid, strict=True)])
    rewards = [per_token(each["inputs"]["advantages"], loss_mask(each["inputs"])) for each in seen]
    reward = np.concatenate([x.double().numpy()[v] for x, v in zip(rewards, valid, strict=True)])
    covariance = (log_prob - log_prob.mean()) * (reward - reward.mean())
    least = np.sort(covariance)[-max(1, int(SHARE * len(covariance)))]
    assert least > 0
    ends = np.cumsum([v.sum() for v in valid])[:-1]
    chosen = []
    for mask, part in zip(valid, np.split(covariance >= least, ends), strict=True):
        placed = np.zeros_like(mask)
        placed[mask] = part
        chosen.append(torch.from_numpy(placed))
    return chosen


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_its_value_and_gradient_are_those_of_the_formula(make_trainer: Callable, options: dict[str, Any]) -> None:
    trainer, seen = trained(make_trainer, **options)
    args, temperature = trainer.args, trainer.args.temperature
    models = [each["model"] for each in seen]
    now = [log_probabilities(m, each["inputs"], temperature) for m, each in zip(models, seen, strict=True)]
    old = [each["inputs"]["old_per_token_logps"] for each in seen]
    measured = [x.detach() for x in now] if args.entropy_clip_refresh else old
    chosen = chosen_by_definition(seen, measured)
    for model, each, log_prob, before, tokens in zip(models, seen, now, old, chosen, strict=True):
        term = torch.where(tokens, BETA * (log_prob - before.double()).abs(), 0.0)
        expected = averaged(term, each["inputs"], args)
        assert each["value"] == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)
        gradient = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
        largest = max(g.abs().max() for g in gradient)
        assert bool(tokens.any()) == bool(largest > 0)
        for ours, theirs in zip(each["gradient"], gradient, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * largest + 1e-7
    assert sum(tokens.any() for tokens in chosen) > 0
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    distances = torch.cat([(x - y).abs()[tokens] for x, y, tokens in zip(now, old, chosen, strict=True)])
    assert distances.min() > 1e-6  # a sign that rounding could turn would say nothing
    assert "entropy_clip/penalty" not in logs[0]
    assert logs[1]["entropy_clip/penalty"] == pytest.approx(distances.mean().item(), rel=1e-3)
    valid = sum(int(loss_mask(each["inputs"]).sum()) for each in seen)
    for entry in logs:
        assert entry["entropy_clip/dropped"] == 0
    # The first update of a generation has no penalty, and says so.
    assert [logs[i]["entropy_clip/penalised"] for i in (0, 1)] == [0, pytest.approx(len(distances) / valid)]


def test_the_first_update_of_a_generation_has_no_penalty(make_trainer: Callable) -> None:
    """There only rounding separates the policy from the one that sampled, and |x| has a full gradient at 1e-7."""
    _, seen = trained(make_trainer, wanted=0)
    assert all("old_per_token_logps" in each["inputs"] and PENALTY not in each["inputs"] for each in seen)


def test_a_step_over_two_generations_penalises_the_older_one(make_trainer: Callable) -> None:
    """Three micro-batches a step, two a generation: the fourth is the second update of its generation."""
    trainer = make_trainer(
        **LATER | RULE | {"num_iterations": 1, "gradient_accumulation_steps": 3, "steps_per_generation": 2},
        trainer_options={"rollout_func": scripted_rollout(completion)},
    )
    found = []
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Tensor:
        found.append(bool((inputs[PENALTY].weight != 0).any()) if PENALTY in inputs else None)
        return compute(model, inputs)

    trainer._compute_loss = recording
    trainer.train()
    assert found == [None, None, None, True, False, False]


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"use_adaptive_entropy": True, "entropy_target": 100.0}], ids=str)
def test_asking_for_the_weights_of_tokens_changes_nothing(make_trainer: Callable, options: dict[str, Any]) -> None:
    trainer, seen = trained(make_trainer, **options)
    before = dict(vars(trainer))
    metrics, random_state = copy.deepcopy(trainer._metrics), torch.get_rng_state()
    loss_weights(trainer, seen[0]["inputs"])
    assert vars(trainer).keys() == before.keys()
    assert all(vars(trainer)[name] is value for name, value in before.items())
    assert trainer._metrics == metrics
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_batch_without_a_chosen_token_trains_as_without_the_rule(make_trainer: Callable) -> None:
    """All rewards are equal, so no covariance is above 0; the entropy bonus moves the weights."""

    def same(completions: list, **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)

    ended = {}
    for rule in (RULE, {"entropy_clip": "none", "entropy_metrics": True}):
        trainer = make_trainer(same, **{**LATER, **rule, "entropy_coef": 0.1, "max_steps": 4})
        start = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        assert any(not torch.equal(a, b) for a, b in zip(start, trainer.model.parameters(), strict=True))
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        if rule is RULE:
            assert [entry.get("entropy_clip/penalty") for entry in logs] == [None, 0.0, None, 0.0]
        ended[rule["entropy_clip"]] = (
            list(trainer.model.parameters()),
            [(entry["loss"], entry["grad_norm"], entry["entropy"]) for entry in logs],
        )
    ours, theirs = ended["kl_cov"], ended["none"]
    assert ours[1] == theirs[1]
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({}, True),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, True),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "steps_per_generation": 1}, True),
        ({"num_iterations": 2}, False),
        ({"steps_per_generation": 2, "per_device_train_batch_size": 4}, False),
        ({"entropy_clip_beta": 0}, False),  # asked for
        ({"entropy_clip": "clip_b", "entropy_clip_share": None, "entropy_clip_beta": None}, False),
    ],
    ids=str,
)
def test_a_run_in_which_it_does_nothing_says_so_once(
    make_trainer: Callable, options: dict[str, Any], idle: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(**RULE | options)
    said = [str(w.message) for w in caught if "does nothing" in str(w.message)]
    assert len(said) == int(idle)
    assert all(line.startswith("kl_cov does nothing in this run") and "num_iterations to 2" in line for line in said)
    assert all("\n" not in line for line in said)
