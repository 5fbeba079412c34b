"""What the rewards are given, without a trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from entropy_rft.sampling import ThinkEndMarker
from entropy_rft.training.reward_inputs import RewardInputs, counted, not_finite_metrics

END = 9


class Tokenizer:
    """One token, 9, ends the thinking."""

    unk_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return {"</think>": [END], "": []}.get(text, [self.unk_token_id])

    def decode(self, ids: list[int], **options: Any) -> str:
        return "</think>" if list(ids) == [END] else "?"


def plain(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def by_phase(completions: list[Any], phase_entropies: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def by_token(completions: list[Any], token_entropies: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def test_only_what_a_reward_asks_for_is_given() -> None:
    marker = ThinkEndMarker(Tokenizer(), "</think>")
    assert not RewardInputs([plain, torch.nn.Linear(1, 1)], marker).need_entropies
    assert RewardInputs([plain], marker).columns([[1]], [[2]], None, None) == {}
    entropy = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 0.0, 0.0]])
    completions = [[1, END, 2, 3], [4, 5]]
    found = RewardInputs([plain, by_phase], marker).columns([[1], [1]], completions, entropy, None)
    assert found == {"phase_entropies": [(1.0, 6.0), (4.0, 0.0)]}
    both = RewardInputs([by_token], marker).columns([[1], [1]], completions, entropy, None)
    assert [row.tolist() for row in both["token_entropies"]] == [[1.0, 2.0, 4.0, 8.0], [3.0, 5.0]]


def test_tokens_that_a_tool_wrote_have_no_phase() -> None:
    marker = ThinkEndMarker(Tokenizer(), "</think>")
    entropy = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    found = RewardInputs([by_phase], marker).columns([[1]], [[1, END, 2, 3]], entropy, [[1, 1, 0, 1]])
    assert found["phase_entropies"] == [(1.0, 8.0)]


def test_values_that_are_not_finite_are_counted() -> None:
    def broken(completions: list[Any], **_: Any) -> list[float | None]:
        return [float("nan"), 1.0, None]

    (reward, fine), counts = counted([broken, plain], ["broken", "plain"])
    assert reward(completions=["", "", ""]) == [None, 1.0, None]
    assert fine(completions=[""]) == [1.0]
    with pytest.warns(UserWarning, match="rewards: broken returned NaN"):
        assert not_finite_metrics(counts, torch.device("cpu"), None) == {"rewards/broken/not_finite": 1.0}
