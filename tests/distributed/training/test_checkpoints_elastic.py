"""Saved on four ranks under ZeRO-2, resumed on one, two and three under ZeRO-2 and ZeRO-3, and back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.checkpoint_makers import verify
from support.training_runs import (
    STEPS,
    continue_run,
    losses,
    make_base,
    make_config,
    make_run,
    metrics,
    train_runs,
)

from plast_train.checkpoint.format import step_name

pytestmark = pytest.mark.slow
WAYS = [(world, zero) for world in (1, 2, 3) for zero in (2, 3)] + [(4, 3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`there` goes on from step 10 of the run on four ranks, `back` on four ranks from step 15 of `there`."""
    folder = tmp_path_factory.mktemp("elastic")
    reference = make_run(folder / "reference", make_base(folder), make_config(deepspeed="zero2"))
    train_runs(4, [reference])
    there = {
        (world, zero): continue_run(reference, folder / f"{world}-zero{zero}", [10], deepspeed=f"zero{zero}")
        for world, zero in WAYS
    }
    for world in (1, 2, 3, 4):
        train_runs(world, [run for way, run in there.items() if way[0] == world])
    back = {
        way: continue_run(run, folder / f"{run.name}-back", [15], deepspeed="zero2")
        for way, run in there.items()
    }
    train_runs(4, list(back.values()))
    return SimpleNamespace(reference=reference, there=there, back=back)


def require_curve(run: Path, reference: Path, world: int, zero: int) -> None:
    """The whole curve within 1e-3, all steps once, and a last checkpoint that was saved this way."""
    expected = losses(reference)
    assert expected[-1] < 0.8 * expected[0], "the model must learn, or the comparison says little"
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert float(((losses(run) - expected).abs() / expected).max()) < 1e-3
    assert torch.equal(losses(run)[:10], expected[:10])
    manifest = verify(run / "checkpoints" / step_name(STEPS))
    assert (manifest["world_size"], manifest["zero_stage"]) == (world, zero)


@pytest.mark.parametrize(("world", "zero"), WAYS)
def test_from_four_ranks_under_zero_2(runs: SimpleNamespace, world: int, zero: int) -> None:
    require_curve(runs.there[world, zero], runs.reference, world, zero)


@pytest.mark.parametrize(("world", "zero"), WAYS)
def test_back_on_four_ranks_under_zero_2(runs: SimpleNamespace, world: int, zero: int) -> None:
    run = runs.back[world, zero]
    require_curve(run, runs.reference, 4, 2)
    assert torch.equal(losses(run)[:15], losses(runs.there[world, zero])[:15])
