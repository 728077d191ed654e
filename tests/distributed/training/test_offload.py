"""ZeRO-3 with weights and optimizer in host memory, on real ranks: the same training, also when resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.training_runs import continue_run, losses, make_base, make_config, make_run, train_runs

from plast_train.checkpoint.format import step_name

STEPS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its CPU AdamW with g++"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("offload")
    base = make_base(folder)
    made = {
        name: make_run(folder / name, base, make_config(every_steps=3, deepspeed=name, max_steps=STEPS))
        for name in ("zero3", "zero3_offload")
    }
    train_runs(2, list(made.values()))
    resumed = continue_run(made["zero3_offload"], folder / "resumed", [3])
    from_device = continue_run(made["zero3"], folder / "from-device", [3], deepspeed="zero3_offload")
    train_runs(2, [resumed, from_device])
    return SimpleNamespace(**made, resumed=resumed, from_device=from_device)


def shards(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / step_name(STEPS)
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_losses_are_those_without_offloading(runs: SimpleNamespace) -> None:
    expected = losses(runs.zero3)
    assert len(expected) == STEPS
    for run in (runs.zero3_offload, runs.from_device):
        torch.testing.assert_close(losses(run), expected, rtol=1e-4, atol=0)


def test_a_resumed_run_ends_with_the_same_bits(runs: SimpleNamespace) -> None:
    assert len(shards(runs.resumed)) >= 2
    assert shards(runs.resumed) == shards(runs.zero3_offload)
