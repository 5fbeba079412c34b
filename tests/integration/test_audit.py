"""The audit of a step: the change it reports is the real one, and the run is not changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from entropy_rft.entropy import token_statistics
from entropy_rft.training import trainer as trainer_module
from entropy_rft.training.micro_batch import micro_batch

pytestmark = pytest.mark.integration

AUDIT = ("entropy/measured_change", "entropy/audit_slope", "entropy/audit_correlation")
SIGNS, PHASES = ("positive", "negative", "zero"), ("thinking", "answer", "other")
OFTEN = {"entropy_clip": "clip_b", "entropy_clip_mu_low": 0.5, "entropy_clip_advantages": "all"}
CASES: dict[str, dict[str, Any]] = {
    "one pass": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "iterations": {"num_iterations": 2},
    "sequence level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "temperature": {"temperature": 0.7},
}


def entropy_by_hand(model: Any, batch: dict[str, Any], temperature: float) -> torch.Tensor:
    """From full logits; (B, T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1]
    return token_statistics(logits.double(), batch["completion_ids"], temperature).entropy


@pytest.mark.parametrize("case", CASES)
def test_the_reported_change_is_that_of_the_step(make_trainer: Callable, case: str) -> None:
    options = {"max_steps": 4, "learning_rate": 0.01, **OFTEN, **CASES[case]}
    trainer = make_trainer(entropy_audit_steps=2, **options)
    before: list[tuple[dict[str, Any], torch.Tensor]] = []
    found: list[tuple[float, float, float]] = []
    by_sign: list[dict[str, float]] = []
    compute = trainer._compute_loss
    temperature = trainer.args.temperature

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        before.append((inputs, entropy_by_hand(trainer.model, inputs, temperature)))
        return compute(model, inputs)

    class AfterTheStep(trainer_module.EntropyAudit):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            predicted, measured, signs = [], [], []
            for inputs, start in before:
                batch = micro_batch(inputs)
                change = entropy_by_hand(trainer.model, inputs, temperature) - start
                advantages = batch.advantages if batch.advantages.dim() == 2 else batch.advantages.unsqueeze(1)
                formula = -advantages * batch.statistics.centred_discriminant
                predicted.append(formula.expand(change.shape)[batch.valid].double())
                measured.append(change[batch.valid])
                signs.append(advantages.sign().expand(change.shape)[batch.valid])
            p, m, sign = torch.cat(predicted), torch.cat(measured), torch.cat(signs)
            parts = {name: (sign == value) for name, value in zip(SIGNS, (1, -1, 0), strict=True)}
            by_sign.append({
                f"entropy/{kind}_change/{name}": float(values[part].sum()) / len(values)
                for kind, values in (("predicted", p), ("measured", m)) for name, part in parts.items()
            })  # fmt: skip
            correlation = float(torch.corrcoef(torch.stack([p, m]))[0, 1])
            found.append((float(m.mean()), float((p * m).sum() / (p * p).sum()), correlation))
            before.clear()

    trainer._compute_loss = recording
    trainer.add_callback(AfterTheStep(1, lambda metrics: None, lambda: None))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == len(found) == 4
    for step, (entry, expected) in enumerate(zip(logs, found, strict=True), start=1):
        audited = {name for name in entry if name in AUDIT or "_change/" in name}
        if step % 2:
            assert not audited
        else:
            assert abs(expected[0]) > 1e-3  # or else equality says nothing
            for name, value in zip(AUDIT, expected, strict=True):
                assert entry[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (step, name)
            for name, value in by_sign[step - 1].items():
                assert entry[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (step, name)
            for kind in ("predicted", "measured"):
                whole = [sum(entry[f"entropy/{kind}_change/{part}"] for part in parts) for parts in (SIGNS, PHASES)]
                assert whole[0] == pytest.approx(whole[1], abs=1e-7)
            assert whole[0] == pytest.approx(entry["entropy/measured_change"], abs=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_run_is_the_same_bit_for_bit(make_trainer: Callable, dropout: float) -> None:
    def run(**options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2, per_device_train_batch_size=4, **options)
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = dropout  # its random numbers must not be used up by the audit
        trainer.train()
        logs = [
            {
                k: v
                for k, v in entry.items()
                if k not in AUDIT and "_change/" not in k and "time" not in k and "per_second" not in k
            }
            for entry in trainer.state.log_history
        ]
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, logs

    parameters, logs = run(**OFTEN)
    audited, audited_logs = run(**OFTEN, entropy_audit_steps=1)
    assert all(torch.equal(audited[name], p) for name, p in parameters.items())
    assert [{k: v for k, v in e.items() if k != "train_runtime"} for e in audited_logs] == [
        {k: v for k, v in e.items() if k != "train_runtime"} for e in logs
    ]


def test_off_by_default_and_one_pass_when_it_is_due(make_trainer: Callable) -> None:
    passes = {}
    for steps in (0, 2):
        trainer = make_trainer(entropy_clip="clip_b", entropy_audit_steps=steps, max_steps=4)
        count = [0]

        def hook(module: Any, args: Any, kwargs: dict[str, Any], count: list[int] = count) -> None:
            if kwargs.get("use_cache") is False and not torch.is_grad_enabled():  # generation uses a cache
                count[0] += 1

        trainer.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
        trainer.train()
        passes[steps] = count[0]
    assert passes == {0: 4, 2: 6}
    assert make_trainer()._audit is None


@pytest.mark.parametrize(
    ("value", "error", "message"), [(-1, ValueError, "at least 0"), (1.5, TypeError, "number of steps")]
)
def test_a_wrong_number_of_steps_is_named(
    make_trainer: Callable, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"entropy_audit_steps must be .*{message}.* got {value}"):
        make_trainer(entropy_audit_steps=value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"num_iterations": 2, "entropy_clip_refresh": True},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    ],
    ids=str,
)
def test_a_step_that_moves_nothing_measures_exactly_nothing(make_trainer: Callable, options: dict[str, Any]) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, init_lora_weights=False)
    trainer = make_trainer(
        entropy_audit_steps=1, max_steps=3, learning_rate=0.0, trainer_options={"peft_config": lora}, **options, **OFTEN
    )
    trainer.train()
    changes = [e["entropy/measured_change"] for e in trainer.state.log_history if "entropy/measured_change" in e]
    assert changes == [0.0, 0.0, 0.0]
