"""`shrink_generation_batch`: TRL's generation with fewer and fewer rows, and everything else as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from peft import LoraConfig

from entropy_rft.sampling import shrinking

pytestmark = pytest.mark.integration

LORA = {"trainer_options": {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}}


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_rows_that_have_ended_are_generated_no_more(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(shrinking, "SLICE_TOKENS", 2)
    trainer = make_trainer(
        shrink_generation_batch=True,
        generation_batch_size=64,
        per_device_train_batch_size=64,
        max_completion_length=40,
        temperature=3.0,  # a random model then says its end now and then
        max_steps=1,
        **options,
    )
    rows: list[int] = []
    ids: list[list[int]] = []
    embedding = trainer.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    generate = trainer._generate

    def recording(prompts: list) -> tuple:
        generated = generate(prompts)
        ids.extend(generated[1])
        hook.remove()
        return generated

    trainer._generate = recording
    trainer.train()
    assert rows[0] == 64
    assert rows[-1] < 64
    assert rows == sorted(rows, reverse=True)
    assert len(rows) == max(map(len, ids))  # a token each
    eos = trainer.processing_class.eos_token_id
    assert all(eos not in row[:-1] for row in ids)
    assert sum(row[-1] == eos for row in ids) >= 64 - rows[-1]
    assert "generate" not in vars(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    assert trainer.state.log_history[0]["completions/max_length"] == max(map(len, ids))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching: True"),
        ({"cache_implementation": "static"}, "cache_implementation: 'static'"),
        ({"generation_kwargs": {"min_new_tokens": 3}}, "generation_kwargs: {'min_new_tokens': 3}"),
    ],
)
def test_what_it_has_no_effect_with_is_named(make_trainer: Callable, fields: dict[str, Any], named: str) -> None:
    with pytest.warns(UserWarning, match=f"shrink_generation_batch has no effect with {named}"):
        trainer = make_trainer(shrink_generation_batch=True, **fields)
    assert not trainer._shrinks


def test_where_it_cannot_be_the_run_goes_on_without_it(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ZeRO-3, by which the tests of the launchers train the same recipes."""
    monkeypatch.setattr("entropy_rft.training.trl_hooks.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.warns(UserWarning, match="shrink_generation_batch has no effect with sharded weights"):
        trainer = make_trainer(shrink_generation_batch=True)
    assert not trainer._shrinks
