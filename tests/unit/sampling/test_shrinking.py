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


def test_a_model_with_layers_of_linear_attention() -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Lfm2ForCausalLM(
            Lfm2Config(
                vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, layer_types=["conv", "full_attention"], conv_L_cache=3, pad_token_id=0,
                initializer_range=0.5,
            )
        ).eval()  # fmt: skip
    free = model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config(None))[:, 4:]
    end = next(
        t for t in free.unique().tolist() if 0 < (free == t).any(1).sum() < 4 and (free == t).nonzero()[0, 1] < 9
    )
    expected = model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config([end]))
    kept: list[int] = []
    found = generate_shrinking(
        model, input_ids=PROMPTS, attention_mask=MASK, generation_config=config([end]),
        on_shrink=lambda rows: kept.append(len(rows)),
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert kept


def test_a_model_without_a_cache(random_model, ends: list[int]) -> None:
    settings = config(ends)
    settings.use_cache = False
    expected = random_model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=settings)
    found = generate_shrinking(random_model, input_ids=PROMPTS, attention_mask=MASK, generation_config=settings)
    assert torch.equal(found, expected)


def test_a_compiled_model_generates_as_the_model_inside_it(random_model, ends: list[int]) -> None:
    expected = random_model.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config(ends))
    compiled = torch.compile(random_model, backend="eager")
    with shrinking.shrinking_generation(compiled):
        found = compiled.generate(input_ids=PROMPTS, attention_mask=MASK, generation_config=config(ends))
    assert torch.equal(found, expected)
    assert "generate" not in vars(random_model)
