"""What the trainer promises with each of TRL's ways to train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from rule_matrix import loose_fields
from training_inputs import prompts, scripted_rollout, some_reward
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward
from entropy_rft.entropy import RULES

pytestmark = pytest.mark.integration

OFTEN = {"entropy_clip": "clip_b", "entropy_clip_mu_low": 0.5, "entropy_clip_mu_high": 0.5}
OURS = {
    "entropy_clip/dropped",
    "entropy_clip/dropped_negative",
    "entropy_clip/dropped_positive",
    "entropy_clip/sigma",
    "entropy/thinking",
    "entropy/predicted_change",
    "completions/thinking_length",
    "completions/answer_length",
}


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": name} for name in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")),
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"top_entropy_quantile": 0.5},
        {"off_policy_mask_threshold": 0.5},
        {"entropy_coef": 0.01},
        {"scale_rewards": "batch"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"bf16": True},
        {"beta": 0.1},
        {"entropy_clip": "clip_v", "entropy_clip_max_fraction": 0.1},
        {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"pad_to_multiple_of": 8},
        {"trainer_options": {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}},
        {"trainer_options": {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}, "beta": 0.1},
    ],
    ids=str,
)
def test_trains_with_each_of_trls_options(make_trainer: Callable, options: dict[str, Any]) -> None:
    trainer = make_trainer(**(OFTEN | options))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert logs[0].keys() >= OURS
    # Lengths and phases belong to a generation, which a second iteration does not repeat.
    assert logs[1].keys() >= {name for name in OURS if "num_iterations" not in options or "clip" in name}
    assert all(torch.isfinite(torch.tensor([entry["loss"], entry["grad_norm"]])).all() for entry in logs)
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(after[name], p) for name, p in before.items())
    assert max(entry["entropy_clip/dropped"] for entry in logs) > 0


def test_masked_truncated_completions_are_outside(make_trainer: Callable) -> None:
    seen: list = []

    def reward(completions: list, phase_entropies: list, **kwargs: Any) -> list[float]:
        seen.extend(phase_entropies)
        return some_reward([*range(len(completions))])

    eos: list[int] = []
    trainer = make_trainer(
        reward,
        **OFTEN,
        max_steps=1,
        mask_truncated_completions=True,
        # Every other completion ends; the others are cut off.
        trainer_options={
            "rollout_func": scripted_rollout(lambda row: [4 + row, 5, 6, 7][: 2 + row % 3] + eos * (row % 2))
        },
    )
    eos.append(trainer.processing_class.eos_token_id)
    trainer.train()
    # The rewards see the entropies of every completion; the rule and the metrics those that TRL trains on.
    assert all(h_think > 0 for h_think, _ in seen)
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    ended = [2 + row % 3 + 1 for row in range(8) if row % 2]
    assert entry["completions/thinking_length"] == pytest.approx(sum(ended) / len(ended))
    assert entry["entropy_clip/sigma"] > 0


def loss_inputs(trainer: Any) -> dict[str, Any]:
    """The tensors of one on-policy loss."""
    trainer.model.train()
    examples = [prompts()[i // 4] for i in range(8)]
    return trainer._prepare_inputs(examples)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo", "sapo", "vespo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_dropped_tokens_have_no_gradient(make_trainer: Callable, loss_type: str, level: str) -> None:
    trainer = make_trainer(**OFTEN, loss_type=loss_type, importance_sampling_level=level)
    trainer.current_gradient_accumulation_steps = 1
    inputs = loss_inputs(trainer)
    dropped = (inputs["advantages"] == 0) if inputs["advantages"].dim() == 2 else inputs[key_of_dropped()]
    valid = inputs["completion_mask"].bool()
    assert (dropped & valid).any()
    gradient = log_prob_gradient(trainer, inputs)
    assert (gradient[dropped | ~valid] == 0).all()
    assert (gradient[~dropped & valid] != 0).any()


def key_of_dropped() -> str:
    from entropy_rft.training.micro_batch import DROPPED

    return DROPPED


def log_prob_gradient(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """d loss / d log π of each completion token, ``(B, T)``."""
    leaves = []
    method = GRPOTrainer._get_per_token_logps_and_entropies

    def with_leaf(self: Any, *args: Any, **kwargs: Any) -> Any:
        log_prob, entropy, aux = method(self, *args, **kwargs)
        leaves.append(log_prob.detach().requires_grad_())
        return leaves[-1], entropy.detach(), aux

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", with_leaf)
        trainer._compute_loss(trainer.model, inputs).backward()
    return leaves[0].grad


def test_the_denominator_counts_dropped_tokens(make_trainer: Callable) -> None:
    """Under both levels a kept token's gradient is what it would be had nothing been dropped."""
    for level in ("token", "sequence"):
        trainer = make_trainer(**OFTEN, loss_type="grpo", importance_sampling_level=level)
        trainer.current_gradient_accumulation_steps = 1
        inputs = loss_inputs(trainer)
        if level == "token":
            dropped = inputs["advantages"] == 0
            full = inputs["advantages"].abs().amax(1) * inputs["advantages"].sum(1).sign()
            untouched = inputs | {"advantages": full}
        else:
            dropped = inputs[key_of_dropped()]
            untouched = {name: x for name, x in inputs.items() if name != key_of_dropped()}
        clipped, unclipped = log_prob_gradient(trainer, inputs), log_prob_gradient(trainer, untouched)
        assert torch.allclose(clipped[~dropped], unclipped[~dropped], rtol=1e-6, atol=0)
        assert (unclipped[dropped & inputs["completion_mask"].bool()] != 0).any()


class TestRewards:
    def test_a_column_that_two_rewards_log_is_in_the_table_once(self, make_trainer: Callable) -> None:
        """PEAR around a reward and that reward beside it: TRL's table needs columns of one length."""

        def logs(score: float) -> Callable[..., list[float]]:
            def reward(completions: list, log_extra: Callable, **kwargs: Any) -> list[float]:
                log_extra("answer_read", [f"{score}"] * len(completions))
                return [score * index for index in range(len(completions))]

            reward.__name__ = f"reward_{score}"
            return reward

        trainer = make_trainer(reward_funcs=[logs(1.0), logs(2.0)], max_steps=1, log_completions=True)
        trainer.train()
        assert list(trainer._logs["extra"]["answer_read"]) == ["1.0"] * 8

    def test_phase_and_token_entropies_are_those_of_the_old_policy(self, make_trainer: Callable) -> None:
        seen: dict[str, list] = {"ids": [], "phases": [], "tokens": []}

        def reward(
            completions: list, completion_ids: list, phase_entropies: list, token_entropies: list, **kwargs: Any
        ) -> list[float]:
            seen["ids"] += completion_ids
            seen["phases"] += phase_entropies
            seen["tokens"] += token_entropies
            return some_reward(completions)

        def also(completions: list, **kwargs: Any) -> list[float]:
            assert kwargs["phase_entropies"] == seen["phases"][-len(completions) :]
            return [0.0] * len(completions)

        tokenizer_ids: dict[str, int] = {}
        rows = {0: [5, 6, 7], 1: [], 2: [8, 9, 10], 3: [5, 5]}

        def completion(row: int) -> list[int]:
            end, eos = tokenizer_ids["end"], tokenizer_ids["eos"]
            # Phases of every kind: both, empty thinking, no marker, empty answer.
            return {
                0: [*rows[0], end, 11, 12, eos],
                1: [end, 4, eos],
                2: rows[2],
                3: [*rows[3], end],
            }[row % 4]

        trainer = make_trainer(
            [reward, also],
            entropy_clip="none",
            max_steps=1,
            trainer_options={"rollout_func": scripted_rollout(completion)},
        )
        tokenizer = trainer.processing_class
        tokenizer_ids.update(end=tokenizer.convert_tokens_to_ids("</think>"), eos=tokenizer.eos_token_id)
        trainer.train()
        assert len(seen["ids"]) == 8
        for row, (ids, pair, entropies) in enumerate(zip(seen["ids"], seen["phases"], seen["tokens"], strict=True)):
            assert entropies.dtype == torch.float32
            assert entropies.device.type == "cpu"
            assert entropies.shape == (len(ids),)
            h_think, h_answer = pair
            think = {0: slice(0, 3), 1: slice(0, 0), 2: slice(0, 3), 3: slice(0, 2)}[row % 4]
            answer = {0: slice(4, 7), 1: slice(1, 3), 2: slice(3, 3), 3: slice(3, 3)}[row % 4]
            for phase, mean in ((think, h_think), (answer, h_answer)):
                assert isinstance(mean, float)
                expected = float(entropies[phase].mean()) if entropies[phase].numel() else 0.0
                assert mean == pytest.approx(expected, rel=1e-5, abs=1e-7)

    def test_pear_trains_and_logs(self, make_trainer: Callable) -> None:
        trainer = make_trainer(PEARReward(some_reward, floor=0.1), entropy_clip="clip_b")
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(entry["pear/penalty"] > 0 for entry in logs)
        assert all("rewards/pear_reward/mean" in entry for entry in logs)

    def test_pear_without_our_trainer_says_what_is_missing(self, make_trainer: Callable) -> None:
        trainer = make_trainer(PEARReward(some_reward), GRPOTrainer, GRPOConfig)
        with pytest.raises(ValueError, match="EntropyGRPOTrainer"):
            trainer.train()

    def test_unscorable_examples_stay_out(self, make_trainer: Callable) -> None:
        dataset = Dataset.from_dict(
            {
                "prompt": [[{"role": "user", "content": f"{i}?"}] for i in range(8)],
                "solution": ["2", "not a number"] * 4,
            }
        )
        trainer = make_trainer(
            [PEARReward(accuracy_reward), lambda completions, **_: [None] * len(completions)],
            dataset=dataset,
            entropy_clip="none",
            max_steps=1,
        )
        trainer.train()
        # Random completions are wrong or unscorable: 0 or nothing, and no advantage either way.
        assert set(trainer._logs["advantages"]) == {0.0}
        rewards = list(trainer._logs["rewards"]["pear_reward"])
        assert {str(reward) for reward in rewards} <= {"0.0", "nan"}
        assert len(rewards) == 8

    def test_tool_output_has_no_phase_entropy(self, make_trainer: Callable) -> None:
        seen: list = []

        def reward(completions: list, phase_entropies: list, token_entropies: list, **kwargs: Any) -> list[float]:
            seen.extend(zip(phase_entropies, token_entropies, strict=True))
            return some_reward([*range(len(completions))])

        trainer = make_trainer(
            reward,
            **OFTEN,
            max_steps=1,
            trainer_options={
                "rollout_func": scripted_rollout(lambda row: [4 + row, 5, 6, 7], lambda row: [1, 0, 0, 1])
            },
        )
        trainer.train()
        for (h_think, h_answer), entropies in seen:
            assert h_think == pytest.approx(float(entropies[[0, 3]].mean()), rel=1e-5)
            assert h_answer == 0
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert entry["completions/thinking_length"] == 2

    def test_a_marker_that_the_tokenizer_lacks_is_named(self, make_trainer: Callable, random_model_dir: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        raw = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<eos>": 2, "What": 3}, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        arguments = {"config_class": EntropyGRPOConfig, "trainer_options": {}}
        original = EntropyGRPOTrainer.__init__

        def with_tokenizer(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **(kwargs | {"processing_class": tokenizer}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EntropyGRPOTrainer, "__init__", with_tokenizer)
            with pytest.raises(ValueError, match=r"think_end_token '</think>' is not in the vocabulary"):
                make_trainer(PEARReward(some_reward), **arguments)
            make_trainer(some_reward, **arguments)  # without such a reward the metrics count all as thinking


class TestEvaluation:
    def test_same_metrics_and_nothing_clipped(self, make_trainer: Callable) -> None:
        options = {**OFTEN, "per_device_eval_batch_size": 8}
        clipped = make_trainer(
            PEARReward(some_reward, floor=0.1), **options, trainer_options={"eval_dataset": prompts(4)}
        )
        metrics = clipped.evaluate()
        assert metrics.keys() >= {f"eval_{name}" for name in (*OURS, "pear/penalty")}
        assert metrics["eval_entropy_clip/dropped"] > 0
        plain = make_trainer(
            PEARReward(some_reward, floor=0.1),
            **(options | {"entropy_clip": "none"}),
            trainer_options={"eval_dataset": prompts(4)},
        )
        assert plain.evaluate()["eval_loss"] == metrics["eval_loss"]

    def test_evaluation_between_steps_does_not_disturb_training(self, make_trainer: Callable, tmp_path: Path) -> None:
        trainer = make_trainer(
            **OFTEN,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=8,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=4,
            trainer_options={"eval_dataset": prompts(4)},
        )
        trainer.train()
        assert len([entry for entry in trainer.state.log_history if "eval_entropy_clip/sigma" in entry]) == 2
        assert not trainer._prepared


@pytest.mark.parametrize("rule", RULES)
def test_resume_continues_identically(make_trainer: Callable, tmp_path: Path, rule: str) -> None:
    near = {"entropy_clip_target": "1.02x"} if rule == "target" else {}  # its share then moves between its bounds
    options = {
        **loose_fields(rule),
        **near,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
    }
    straight = make_trainer(PEARReward(some_reward, floor=0.1), **options, output_dir=str(tmp_path / "a"))
    straight.train()
    first = make_trainer(
        PEARReward(some_reward, floor=0.1), **(options | {"max_steps": 2}), output_dir=str(tmp_path / "b")
    )
    first.train()
    second = make_trainer(PEARReward(some_reward, floor=0.1), **options, output_dir=str(tmp_path / "b"))
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for (name, expected), actual in zip(straight.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(actual, expected), name
    ignored = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "num_tokens"}
    histories = [
        [
            {name: value for name, value in entry.items() if name not in ignored}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        for trainer in (straight, second)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 4
    if near:
        assert len({entry["entropy_clip/share"] for entry in histories[0]}) > 2


def test_metrics_weigh_tokens_not_micro_batches(make_trainer: Callable) -> None:
    """Two micro-batches of very different length: the metric is the mean over all their tokens."""
    entropies: list[torch.Tensor] = []

    def reward(completions: list, token_entropies: list, **kwargs: Any) -> list[float]:
        entropies.extend(token_entropies)
        return some_reward([*range(len(completions))])

    trainer = make_trainer(
        reward,
        **OFTEN,
        max_steps=1,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        trainer_options={"rollout_func": scripted_rollout(lambda row: [4 + row] * (1 if row < 4 else 11))},
    )
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["entropy/thinking"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-5)
    assert entry["completions/thinking_length"] == 6


def test_a_plain_grpo_config_is_taken(make_trainer: Callable) -> None:
    trainer = make_trainer(config_class=GRPOConfig)
    assert trainer.args.entropy_clip == "none"
    trainer.train()
    logged = trainer.state.log_history[0]
    assert "loss" in logged
    assert not any(name.startswith("entropy_clip/") for name in logged)


def test_a_trl_outside_the_tested_range_gives_one_warning(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl, "__version__", "1.99.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer()
    ours = [str(w.message) for w in caught if "entropy_rft" in str(w.message)]
    assert ours == [
        "trl 1.99.0 is outside the range that entropy_rft is tested with (>=1.15,<1.17); "
        "expect errors or silent differences"
    ]
