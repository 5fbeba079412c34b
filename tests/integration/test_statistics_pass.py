"""The old-policy pass through TRL's own head machinery, for every kind of head.

TRL finds the head's weight and bias, gathers them once a pass where they are sharded (``full_tensor()`` of FSDP2's
DTensors, ``maybe_gather_lm_head_ctx`` of DeepSpeed ZeRO-3), reads soft cap and scale from the model's configuration and
casts; all of that happens in ``trl.trainer.utils.add_fused_lm_head`` before the kernel that the trainer exchanges is
called, so it is the same code with either kernel and is not simulated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_inputs import scripted_rollout

from entropy_rft.entropy import token_statistics
from entropy_rft.training import trl_hooks
from entropy_rft.training.micro_batch import STATISTICS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
]

VOCABULARY = 1500  # more than a tile
WIDTH = 16
LENGTHS = (12, 5, 9, 1, 7, 12, 3, 8)  # of the completions of a generation; the rest is padding
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


def build(family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SMALL | options))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    return model.to(dtype)


def lora() -> dict[str, Any]:
    from peft import LoraConfig

    # Random adapters: the usual zero would leave the model as it is.
    return {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)}


@dataclass
class Case:
    """A model, the options of the run, and how near to TRL's log-probabilities it has to be."""

    family: str = "Qwen3"
    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    trainer_options: Callable[[], dict[str, Any]] = dict
    near: float = 1e-6


CASES = {
    "tied": Case(model={"tie_word_embeddings": True}),
    "untied": Case(model={"tie_word_embeddings": False}),
    "temperature": Case(options={"temperature": 0.7}),
    "Gemma2: soft cap": Case("Gemma2", {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "Cohere: logit scale": Case("Cohere", {"logit_scale": 0.4}),
    "Granite: logits scaling": Case("Granite", {"logits_scaling": 3.0}),
    "LoRA": Case(trainer_options=lora),
    "LoRA and a reference": Case(trainer_options=lora, options={"beta": 0.1}),
    "fp32 head of a bf16 model": Case(
        model={"tie_word_embeddings": False, "dtype": torch.bfloat16}, options={"cast_lm_head_to_fp32": True}
    ),
    "bf16 model": Case(model={"dtype": torch.bfloat16}, near=1e-5),
    "bf16 autocast": Case(options={"bf16": True}, near=1e-5),
    "bf16 autocast, LoRA": Case(options={"bf16": True}, trainer_options=lora, near=1e-5),
    "bf16 autocast, fp32 head": Case(
        model={"tie_word_embeddings": False}, options={"bf16": True, "cast_lm_head_to_fp32": True}
    ),
}
TRL_MAKES_THE_PASS = {
    "two iterations": {"num_iterations": 2},
    "two steps a generation": {"per_device_train_batch_size": 4, "steps_per_generation": 2},
}


def completion_ids(row: int) -> list[int]:
    generator = torch.Generator().manual_seed(row)
    return torch.randint(2, VOCABULARY, (LENGTHS[row % len(LENGTHS)],), generator=generator).tolist()


def trainer_of(make_trainer: Callable, case: Case, trainer_class: type | None = None, **options: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    from entropy_rft import EntropyGRPOTrainer

    model = build(case.family, **case.model)
    plain = trainer_class is GRPOTrainer
    return make_trainer(
        trainer_class=lambda **kwargs: (trainer_class or EntropyGRPOTrainer)(**(kwargs | {"model": model})),
        trainer_options={"rollout_func": scripted_rollout(completion_ids), **case.trainer_options()},
        **({"config_class": GRPOConfig} if plain else {"entropy_clip": "clip_v"}),
        **(case.options | options),
    )


@dataclass
class Generation:
    """What one generation handed on, what TRL's own head says of the same weights, and what the kernel was given."""

    output: dict[str, Any]
    trl_log_probs: Tensor
    full_logits: Tensor
    rows: list[int]

    @property
    def mask(self) -> Tensor:
        return self.output["completion_mask"].bool()


def record_generations(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    from trl import GRPOTrainer

    found: list[Generation] = []
    rows: list[int] = []
    statistics, generate = trl_hooks.fused_token_statistics, trainer._generate_and_score_completions

    def counted(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(hidden.shape[0])
        return statistics(hidden, *args, **kwargs)

    @torch.no_grad()
    def recording(inputs: Any) -> Any:
        rows.clear()
        output = generate(inputs)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        length = output["completion_ids"].shape[1]
        arguments = (trainer.model, ids, attention, length)
        batch = trainer.args.per_device_train_batch_size
        log_probs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(trainer, *arguments, batch_size=batch)
        with trainer.accelerator.autocast():
            full = [
                trainer.model(input_ids=i, attention_mask=a).logits[:, -length - 1 : -1]
                for i, a in zip(ids.split(batch), attention.split(batch), strict=True)
            ]
        found.append(Generation(dict(output), log_probs, torch.cat(full), list(rows)))
        return output

    monkeypatch.setattr(trl_hooks, "fused_token_statistics", counted)
    trainer._generate_and_score_completions = recording
    return found


def record_ratios(trainer: Any) -> list[Tensor]:
    """exp(new - old) of the valid tokens of every loss."""
    ratios: list[Tensor] = []
    compute, per_token = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
    new: list[Tensor] = []

    def scoring(*args: Any, **kwargs: Any) -> Any:
        result = per_token(*args, **kwargs)
        new.append(result[0].detach())
        return result

    def loss(model: Any, inputs: dict[str, Any]) -> Any:
        new.clear()
        value = compute(model, inputs)
        mask = inputs["completion_mask"].bool()
        ratios.append((new[0].double() - inputs["old_per_token_logps"].double())[mask].exp())
        return value

    trainer._get_per_token_logps_and_entropies, trainer._compute_loss = scoring, loss
    return ratios


@pytest.mark.parametrize("options", TRL_MAKES_THE_PASS.values(), ids=TRL_MAKES_THE_PASS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_log_probs_are_those_of_trls_own_head(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch, case: Case, options: dict[str, Any]
) -> None:
    trainer = trainer_of(make_trainer, case, **options, max_steps=2)
    generations, ratios = record_generations(trainer, monkeypatch), record_ratios(trainer)
    trainer.train()
    (generation,) = generations
    mask, output = generation.mask, generation.output
    assert mask.sum() == sum(LENGTHS)
    assert sum(generation.rows) == sum(LENGTHS)  # neither prompts nor padding
    assert len(generation.rows) == options.get("steps_per_generation", 1)
    ours = output["old_per_token_logps"]
    difference = (ours - generation.trl_log_probs)[mask].abs()
    assert difference.max() <= case.near
    assert len(ratios) == 2
    # The second loss follows an optimizer step, and then differs.
    assert (ratios[0] - 1).abs().max() <= 2 * case.near
    assert (ratios[1] - 1).abs().max() > 1e-4


# Under autocast the model's own forward rounds also the product of an fp32 head; the policy that TRL trains does not.
WITH_FULL_LOGITS = {name: case for name, case in CASES.items() if name != "bf16 autocast, fp32 head"}


@pytest.mark.parametrize("case", WITH_FULL_LOGITS.values(), ids=WITH_FULL_LOGITS)
def test_statistics_are_those_of_the_models_own_full_logits(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    trainer = trainer_of(make_trainer, case, num_iterations=2, max_steps=1)
    generations = record_generations(trainer, monkeypatch)
    trainer.train()
    (generation,) = generations
    output, mask = generation.output, generation.mask
    full = token_statistics(generation.full_logits.double(), output["completion_ids"], trainer.temperature)
    # A soft cap and a scale in bfloat16 round once more in the model's own forward; no case here combines them.
    for name, expected in zip(STATISTICS, (full.log_prob, full.entropy, full.expected_discriminant), strict=True):
        assert torch.allclose(output[name][mask].double(), expected[mask], rtol=2e-5, atol=2e-6), name
        assert (output[name][~mask] == 0).all(), name


class HeadProducts(TorchDispatchMode):
    """Counts the products with the LM head's weight; remembers the largest tensor with full logits in it."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.storage = weight.untyped_storage().data_ptr()
        self.multiplications = 0  # one for each (token, vocabulary entry)
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            if any(x.untyped_storage().data_ptr() == self.storage for x in tensors):
                self.multiplications += result.numel()
        for x in tree_leaves(result):  # (WIDTH, VOCABULARY) is the weight, transposed
            if isinstance(x, Tensor) and x.dim() >= 2 and x.shape[-1] == VOCABULARY and x.shape[-2] != WIDTH:
                self.largest = max(self.largest, x.numel())
        return result


@pytest.mark.parametrize("options", TRL_MAKES_THE_PASS.values(), ids=TRL_MAKES_THE_PASS)
def test_no_further_product_with_the_head(make_trainer: Callable, options: dict[str, Any]) -> None:
    from trl import GRPOTrainer

    products: dict[str, int] = {}
    largest: dict[str, int] = {}
    case = Case(model={"tie_word_embeddings": False})
    for name, trainer_class in (("trl", GRPOTrainer), ("ours", None)):
        trainer = trainer_of(make_trainer, case, trainer_class, **options, max_steps=1)
        generate = trainer._generate_and_score_completions

        def counting(inputs: Any, trainer: Any = trainer, generate: Any = generate, name: str = name) -> Any:
            with HeadProducts(trainer.model.lm_head.weight) as counter:
                output = generate(inputs)
            products[name], largest[name] = counter.multiplications, counter.largest
            return output

        trainer._generate_and_score_completions = counting
        trainer.train()
    assert products["ours"] == sum(LENGTHS) * VOCABULARY
    assert largest["ours"] == 0  # full logits of no token
    # Without Triton, TRL scores prompts and padding too.
    assert products["trl"] >= products["ours"]


def test_no_token_at_all(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every completion is truncated and masked: the pass still happens (other ranks may have tokens), over no row.
    trainer = trainer_of(
        make_trainer, Case(), num_iterations=2, max_steps=1, max_completion_length=1, mask_truncated_completions=True
    )
    generations = record_generations(trainer, monkeypatch)
    trainer.train()
    (generation,) = generations
    assert sum(generation.rows) == 0
    assert all(torch.isfinite(generation.output[name]).all() for name in STATISTICS)


@pytest.mark.parametrize(("masked", "given"), [(False, True), (True, False)])
def test_a_reward_that_does_not_name_the_entropies_gets_all_or_none(
    make_trainer: Callable, masked: bool, given: bool
) -> None:
    """Under mask_truncated_completions those of truncated completions are not computed; 0 would be a wrong value."""
    seen: list[bool] = []

    def reward(completions: list, **kwargs: Any) -> list[float]:
        seen.append("phase_entropies" in kwargs)
        return [float(index) for index in range(len(completions))]

    trainer = make_trainer(reward_funcs=reward, max_steps=1, entropy_clip="clip_b", mask_truncated_completions=masked)
    trainer.train()
    assert seen == [given]
