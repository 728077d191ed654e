"""A near tie that batching must not decide is found where it could have changed the reply."""

from __future__ import annotations

import torch

from plast_train.evaluation.answering import NEAR_TIE, near_ties


def test_near_ties_before_the_end_of_a_reply() -> None:
    """Four questions, three steps; token 9 ends a reply."""
    clear, near = [0.0, 5.0, 1.0], [0.0, 5.0, 5.0 - NEAR_TIE / 2]
    steps = [[clear, near, clear, clear], [clear, clear, clear, near], [clear, clear, near, clear]]
    generated = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 9, 0], [1, 9, 0]])
    found = near_ties(tuple(map(torch.tensor, steps)), generated, [9])
    assert found == [False, True, False, True]  # the third's tie comes after its end, the fourth's is its end
