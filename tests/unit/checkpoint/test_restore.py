"""What a checkpoint gives back: tensors from any pieces, the random state on as many ranks alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_makers import ALONE, SHAPES, masters_of, save, save_on, states

from plast_train.checkpoint import restore
from plast_train.checkpoint.format import step_name


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_masters_are_put_together(tmp_path: Path, pieces: int) -> None:
    masters = masters_of(save(tmp_path, 7, pieces=pieces))
    assert {name: list(tensor.shape) for name, tensor in masters.items()} == SHAPES
    for name, state in states(7).items():
        assert torch.equal(masters[name].flatten(), state[0])


@pytest.mark.parametrize("world", [1, 2])
def test_the_random_state_comes_back_on_as_many_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    for name in ("owned_ranges", "set_adam_step", "publish_masters"):
        monkeypatch.setattr(restore, name, lambda *_: [])
    torch.manual_seed(1)
    saved = torch.get_rng_state()
    save_on(world, tmp_path, 7)
    torch.manual_seed(2)
    other = torch.get_rng_state()
    engine: Any = None
    restore.restore(tmp_path / step_name(7), engine, {}, ALONE)
    assert torch.equal(torch.get_rng_state(), saved if world == 1 else other)
