"""The learning rate, step by step."""

from __future__ import annotations

import itertools

import pytest
from support.training_runs import make_config

from plast_train.training.engine import learning_rate


def test_learning_rate() -> None:
    train = make_config(warmup_fraction=0.1, learning_rate=1.0).train
    rates = [learning_rate(step, 100, train) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0)
    # The cosine at a third and at two thirds of the way.
    assert rates[40] == pytest.approx(0.75) and rates[70] == pytest.approx(0.25)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_a_part_of_a_step_of_warm_up_is_a_step() -> None:
    train = make_config(warmup_fraction=0.03, learning_rate=1.0).train
    assert [learning_rate(step, 50, train) for step in range(3)] == [0.5, 1.0, 1.0]
