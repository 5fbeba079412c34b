"""The shapes that the signatures of `entropy_rft.entropy` state, checked against what the functions take and return."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped
from rule_matrix import loose_rules
from torch import Tensor

import entropy_rft.entropy as entropy
from entropy_rft.entropy import RULES, EntropyClip, Rule, TokenStatistics

B, T, V, D = 3, 7, 11, 5


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyped(inspect.unwrap(function), typechecker=beartype)  # without torch.no_grad, which has no hints


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (B, T), generator=generator)
    logits = torch.randn(B, T, V, generator=generator)
    return {
        "logits": logits,
        "ids": ids,
        "hidden": torch.randn(B, T, D, generator=generator),
        "weight": torch.randn(V, D, generator=generator),
        "statistics": entropy.token_statistics(logits, ids),
        "advantages": torch.randn(B, generator=generator),
        "mask": torch.ones(B, T, dtype=torch.long),
    }


def test_every_tensor_of_the_public_functions_has_a_shape() -> None:
    functions = {name: value for name in entropy.__all__ if inspect.isfunction(value := getattr(entropy, name))}
    functions |= {f"{kind.__name__}.decide": kind.decide for kind in (EntropyClip, Rule, *RULES.values())}
    assert len(functions) > 7
    for name, function in functions.items():
        hints = typing.get_type_hints(inspect.unwrap(function))
        assert hints, name
        for argument, hint in hints.items():
            parts = [hint, *typing.get_args(hint), *(p for a in typing.get_args(hint) for p in typing.get_args(a))]
            assert Tensor not in parts, f"{name}: {argument}"


def test_what_they_take_and_return_has_it(batch: dict[str, Any]) -> None:
    statistics, advantages, mask = batch["statistics"], batch["advantages"], batch["mask"]
    checked(entropy.token_statistics)(batch["logits"], batch["ids"])
    checked(entropy.token_statistics)(batch["logits"][0, 0], batch["ids"][0, 0])
    checked(entropy.fused_token_statistics)(batch["hidden"], batch["weight"], batch["ids"], bias=torch.zeros(V))
    thinking, answer = checked(entropy.phase_masks)(batch["ids"], mask, [4])
    for each in (advantages, advantages.unsqueeze(1).expand(B, T)):
        change = checked(entropy.predicted_entropy_change)(statistics, each, mask)
        for rule in (*loose_rules(), EntropyClip.clip_b()):
            decision = checked(type(rule).decide)(rule, statistics, each, mask)
            checked(type(rule).keep_mask)(rule, statistics, each, mask)
            assert isinstance(decision.keep, typing.get_type_hints(entropy.Decision)["keep"])
        checked(entropy.split_entropy_change)(change, each, mask, {"thinking": thinking, "answer": answer})
    sums = checked(entropy.change_sums)(change, change, mask)
    checked(entropy.fit_changes)(sums)
    for hint in typing.get_type_hints(TokenStatistics).values():
        assert issubclass(hint, AbstractArray)
        assert isinstance(statistics.entropy, hint)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("token_statistics", lambda b: (b["logits"], b["ids"][:, 1:])),
        ("fused_token_statistics", lambda b: (b["hidden"], b["weight"][:, 1:], b["ids"])),
        ("phase_masks", lambda b: (b["ids"], b["mask"][:, 1:], [4])),
        ("predicted_entropy_change", lambda b: (b["statistics"], b["mask"], b["mask"])),  # integers
        ("fit_changes", lambda b: (torch.zeros(5),)),
    ],
)
def test_other_shapes_are_refused(batch: dict[str, Any], name: str, arguments: Callable[..., Any]) -> None:
    with pytest.raises(TypeCheckError):
        checked(getattr(entropy, name))(*arguments(batch))
