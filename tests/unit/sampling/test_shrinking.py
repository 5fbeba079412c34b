from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from entropy_rft.sampling import shrinking
from entropy_rft.sampling.shrinking import generate_shrinking

PROMPTS = torch.tensor([[3, 3, 65, 66], [67, 68, 69, 70], [3, 71, 72, 73], [74, 75, 76, 77]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "SLICE_TOKENS", 3)


def config(eos: list[int] | None, limit: int = 20) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=eos, pad_token_id=0, disable_compile=True
    )


@pytest.fixture
def ends(random_model) -> list[int]:
    """One token that ends some of the rows, each at a place of its own, and not all of them."""
    free = random_model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config(None))[:, 4:]
    for token in free.unique().tolist():
        places = [row.tolist().index(token) for row in free if token in row]
        if 0 < len(places) < len(free) and max(places) > 3:
            return [token]
    raise AssertionError(f"no token of {free.tolist()} will do")


def test_rows_are_those_of_one_long_call(random_model, ends: list[int]) -> None:
    expected = random_model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config(ends))
    found = generate_shrinking(random_model, input_ids=PROMPTS, attention_mask=MASK, generation_config=config(ends))
    assert torch.equal(found, expected)


def test_ended_rows_are_computed_no_more(random_model, ends: list[int]) -> None:
    sizes: list[int] = []
    kept: list[list[int]] = []
    hook = random_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    generate_shrinking(
        random_model,
        input_ids=PROMPTS,
        attention_mask=MASK,
        generation_config=config(ends),
        on_shrink=lambda rows: kept.append(rows.tolist()),
    )
    hook.remove()
    assert sizes[0] == 4
    assert sizes[-1] < 4
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 20  # a token each: nothing is read a second time
    assert kept
    assert len(kept[-1]) == sizes[-1]


def test_it_stops_when_all_have_ended(random_model) -> None:
    every = list(range(random_model.config.vocab_size))
    found = generate_shrinking(random_model, input_ids=PROMPTS, attention_mask=MASK, generation_config=config(every))
    assert found.shape[1] - PROMPTS.shape[1] <= 3


def test_the_limit_is_no_multiple_of_a_slice(random_model) -> None:
    found = generate_shrinking(random_model, input_ids=PROMPTS, attention_mask=MASK, generation_config=config(None, 7))
    assert found.shape == (4, 11)


def test_transformers_has_nothing_to_warn_of(random_model, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import generic

    said: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append)
    generate_shrinking(random_model, input_ids=PROMPTS, attention_mask=MASK, generation_config=config(None))
    assert said == []
