"""Right, wrong and unscorable: one meaning here, in training and within PEAR."""

from __future__ import annotations

import math
from typing import Any

import pytest

from entropy_rft import PEARReward
from entropy_rft.rewards.values import WrongReward, checked
from entropy_rft.sampling import Completion, right_and_scored, verdicts

ODD = [1.0, 0.0, None, math.inf, -math.inf, math.nan, -2, True]


def odd(completions: list, **kwargs: Any) -> list[Any]:
    return ODD


def completions(number: int) -> list[Completion]:
    return [Completion(text="x", token_ids=[1], prompt_ids=[2], truncated=False) for _ in range(number)]


def test_what_is_not_finite_says_nothing_here_in_training_and_within_pear() -> None:
    (found,) = verdicts(odd, [{"prompt": "?"}], [completions(len(ODD))])
    assert found == [True, False, None, None, None, None, False, True]
    assert right_and_scored(found) == (2, 4)
    trained = checked(odd, "odd", lambda count: None)(completions=ODD)
    assert [None if value is None else value > 0 for value in trained] == found
    within = PEARReward(odd)(completions=ODD, phase_entropies=[(0.0, 0.0)] * len(ODD))
    assert [None if value is None else value > 0 for value in within] == found


@pytest.mark.parametrize("returned", [[1.0], ["yes", 1.0], "ab", None, 1.0])
def test_a_wrong_return_is_one_line(returned: Any) -> None:
    def strange(completions: list, **kwargs: Any) -> Any:
        return returned

    with pytest.raises(WrongReward, match="rewards: strange must return a list of 2 numbers or None"):
        verdicts(strange, [{"prompt": "?"}], [completions(2)])
    with pytest.raises(WrongReward, match="rewards: strange must return a list of 2 numbers or None"):
        PEARReward(strange)(completions=["a", "b"], phase_entropies=[(0.0, 0.0)] * 2)
