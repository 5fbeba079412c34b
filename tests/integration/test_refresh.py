"""Several updates from one generation: whose statistics the rule looks at, and how that is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from entropy_rft.entropy import EntropyClip, TokenStatistics, token_statistics
from entropy_rft.training.micro_batch import micro_batch

pytestmark = pytest.mark.integration

CLIP = EntropyClip.two_sided("clip_b", 0.5)
FIELDS = {
    "entropy_clip": "clip_b",
    "entropy_clip_mu_low": 0.5,
    "entropy_clip_mu_high": 0.5,
    "entropy_clip_advantages": "all",
}
SEVERAL: dict[str, dict[str, Any]] = {
    "iterations": {"num_iterations": 2},
    "iterations and accumulation": {
        "num_iterations": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    },
    "more steps per generation": {"steps_per_generation": 2, "per_device_train_batch_size": 4},
}


def by_hand(model: Any, batch: dict[str, Any]) -> TokenStatistics:
    """From full logits, ``(B, T)``."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1]
    return token_statistics(logits.double(), batch["completion_ids"])


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("refresh", [True, False])
def test_the_rule_looks_at_the_policy_it_says(make_trainer: Callable, case: str, refresh: bool) -> None:
    trainer = make_trainer(
        entropy_clip_refresh=refresh, max_steps=4, learning_rate=0.05, entropy_audit_steps=1, **FIELDS, **SEVERAL[case]
    )
    steps: list[tuple[int, list[dict[str, Any]], list[TokenStatistics]]] = []
    prepare = trainer._prepare_step

    def recording(batches: list) -> list[dict[str, Any]]:
        prepared = prepare(batches)
        steps.append((len(steps) % 2 + 1, prepared, [by_hand(trainer.model, inputs) for inputs in prepared]))
        return prepared

    trainer._prepare_step = recording
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == len(logs) == 4
    for (update, prepared, now), entry in zip(steps, logs, strict=True):
        masks = [inputs["completion_mask"].bool() for inputs in prepared]
        used = [micro_batch(inputs).statistics for inputs in prepared]
        apart = max(
            float((mine.centred_discriminant - theirs.centred_discriminant)[mask].abs().max())
            for mine, theirs, mask in zip(used, now, masks, strict=True)
        )
        if refresh or update == 1:
            assert apart < 1e-5
            keep = CLIP.keep_mask(
                TokenStatistics.cat([s.map(lambda x, m=m: x[m]) for s, m in zip(now, masks, strict=True)]).map(
                    lambda x: x.unsqueeze(0)
                ),
                torch.ones(1, sum(int(mask.sum()) for mask in masks)),
                torch.ones(1, sum(int(mask.sum()) for mask in masks)),
            )
            assert entry["entropy_clip/dropped"] == pytest.approx(float((~keep).double().mean()), abs=1e-9)
        else:
            assert apart > 1e-4
        assert entry["entropy_clip/update_of_generation"] == update
        assert entry[f"entropy/predicted_change_update_{update}"] == entry["entropy/predicted_change"]
        assert entry[f"entropy/measured_change_update_{update}"] == entry["entropy/measured_change"]
        assert f"entropy/predicted_change_update_{3 - update}" not in entry


def test_trls_own_old_log_probabilities_stay(make_trainer: Callable) -> None:
    seen: list[torch.Tensor] = []
    trainer = make_trainer(entropy_clip_refresh=True, max_steps=2, learning_rate=0.05, num_iterations=2, **FIELDS)
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs["old_per_token_logps"].clone())
        return compute(model, inputs)

    trainer._compute_loss = recording
    trainer.train()
    assert torch.equal(*seen)


def test_where_each_generation_has_one_update_nothing_is_added(make_trainer: Callable) -> None:
    def run(refresh: bool) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        trainer = make_trainer(entropy_clip_refresh=refresh, max_steps=3, **FIELDS)
        trainer.train()
        logs = [
            {k: v for k, v in e.items() if "time" not in k and "second" not in k} for e in trainer.state.log_history
        ]
        return [p.detach().clone() for p in trainer.model.parameters()], logs

    parameters, logs = run(False)
    again, again_logs = run(True)
    assert all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
    assert logs == again_logs
    assert not any("update" in name for entry in logs for name in entry)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_wrong_value_is_named(make_trainer: Callable, value: Any) -> None:
    with pytest.raises(TypeError, match=f"entropy_clip_refresh must be true or false, got {value!r}"):
        make_trainer(entropy_clip_refresh=value)
