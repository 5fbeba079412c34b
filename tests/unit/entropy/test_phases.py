from __future__ import annotations

import pytest
import torch

from entropy_rft.entropy import phase_masks


def masks(ids: list[int], marker: list[int], mask: list[int] | None = None) -> tuple[list[int], list[int]]:
    thinking, answer = phase_masks(torch.tensor([ids]), torch.tensor([mask or [1] * len(ids)]), marker)
    assert thinking.dtype == answer.dtype == torch.bool
    return thinking[0].nonzero().flatten().tolist(), answer[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("ids", "marker", "mask", "thinking", "answer"),
    [
        ([5, 6, 9, 7, 8], [9], None, [0, 1], [3, 4]),
        ([5, 6, 7], [9], None, [0, 1, 2], []),  # no marker: everything is thinking
        ([9, 5], [9], None, [], [1]),  # empty thinking
        ([5, 9], [9], None, [0], []),  # empty answer
        ([5, 9, 6, 9, 7], [9], None, [0], [2, 3, 4]),  # the first marker ends the thinking
        ([5, 1, 2, 3, 6], [1, 2, 3], None, [0], [4]),  # several tokens belong to neither phase
        ([1, 2, 1, 2, 3, 6], [1, 2, 3], None, [0, 1], [5]),  # a false start
        ([5, 1, 2], [1, 2, 3], None, [0, 1, 2], []),  # cut off within the marker
        ([5], [1, 2], None, [0], []),  # shorter than the marker
        ([5, 9, 6, 0, 0], [9], [1, 1, 1, 0, 0], [0], [2]),  # padding
        ([5, 9, 6, 9, 7], [9], [1, 0, 1, 1, 1], [0, 2], [4]),  # a marker in a tool's output does not count
        ([5, 1, 2, 6], [1, 2], [1, 1, 0, 1], [0, 1, 3], []),  # nor one that is only partly valid
        ([5, 9, 6], [9], [0, 0, 0], [], []),
    ],
)
def test_phases(ids: list, marker: list, mask: list | None, thinking: list, answer: list) -> None:
    assert masks(ids, marker, mask) == (thinking, answer)


def test_rows_are_independent_and_empty_batches_work() -> None:
    ids = torch.tensor([[1, 9, 2], [9, 1, 2], [1, 2, 3]])
    thinking, answer = phase_masks(ids, torch.ones_like(ids), [9])
    assert thinking.int().tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert answer.int().tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]
    for shape in ((0, 3), (2, 0)):
        thinking, answer = phase_masks(torch.zeros(shape, dtype=torch.long), torch.zeros(shape), [9])
        assert thinking.shape == answer.shape == shape


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="think_end_ids is empty"):
        phase_masks(torch.zeros(1, 2), torch.ones(1, 2), [])
    with pytest.raises(ValueError, match=r"must both be \(B, T\)"):
        phase_masks(torch.zeros(1, 2), torch.ones(1, 3), [1])
