"""Saving behind the training loop, in one process. Real ranks save so in test_training.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.checkpoint_makers import IDENTITY, SHAPES, holds_step, states

from plast_train.checkpoint import save
from plast_train.checkpoint.format import step_name
from plast_train.checkpoint.partitions import OwnedRange
from plast_train.checkpoint.save import Saver
from plast_train.errors import UserError

ENGINE: Any = SimpleNamespace(device=torch.device("cpu"), zero_optimization_stage=lambda: 2)


class Weights:
    """The states that training goes on changing while they are saved."""

    def __init__(self) -> None:
        self.views = {name: torch.zeros(3, torch.Size(shape).numel()) for name, shape in SHAPES.items()}

    def train_to(self, step: int) -> None:
        for name, state in states(step).items():
            self.views[name].copy_(state)

    def owned(self, _engine: Any, _parameters: Any) -> list[OwnedRange]:
        return [OwnedRange(name, 0, view.shape[1], tuple(view)) for name, view in self.views.items()]


class Gate:
    """Stands before the writing of shards: they wait until it is opened, and fail where it says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._write = save._write_shard
        monkeypatch.setattr(save, "_write_shard", self.write)

    def write(self, path: Path, tensors: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(30)
        if self.error is not None:
            raise self.error
        return self._write(path, tensors)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Weights:
    made = Weights()
    monkeypatch.setattr(save, "owned_ranges", made.owned)
    return made


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def saver(tmp_path: Path, weights: Weights) -> Iterator[Saver]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks: Any = SimpleNamespace(rank=0, world=1, watchdog=SimpleNamespace(computing=nullcontext))
    memory = save.host_memory(ENGINE, {})
    yield Saver(tmp_path / "checkpoints", IDENTITY, 2, ranks, memory)
    dist.destroy_process_group()


def test_training_goes_on_while_its_state_is_saved(saver: Saver, weights: Weights, gate: Gate) -> None:
    weights.train_to(5)
    saver.save(ENGINE, {}, 5)
    assert gate.reached.wait(30)
    weights.train_to(6)  # the next step, before a byte of the save is written
    assert saver.last is None and not saver.failed
    gate.opened.set()
    saver.close()
    assert saver.last == saver.folder / step_name(5)
    assert holds_step(saver.last, 5)


def test_a_save_waits_for_the_one_before(
    saver: Saver, weights: Weights, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights.train_to(5)
    saver.save(ENGINE, {}, 5)
    assert gate.reached.wait(30)
    weights.train_to(6)
    second = threading.Thread(target=saver.save, args=(ENGINE, {}, 6))
    second.start()
    second.join(0.5)
    assert second.is_alive() and "step 6 waits" in caplog.text
    gate.opened.set()
    second.join(30)
    saver.wait()
    assert holds_step(saver.folder / step_name(5), 5) and holds_step(saver.folder / step_name(6), 6)
    assert saver.last == saver.folder / step_name(6)


def test_host_memory_is_used_again(saver: Saver, weights: Weights) -> None:
    saver.save(ENGINE, {}, 1)
    saver.wait()
    before = {name: tensor.data_ptr() for name, tensor in saver._memory.items()}
    weights.train_to(2)
    saver.save(ENGINE, {}, 2)
    saver.wait()
    assert before == {name: tensor.data_ptr() for name, tensor in saver._memory.items()}
    assert holds_step(saver.folder / step_name(2), 2)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a defect")])
def test_a_failed_save_is_raised(saver: Saver, weights: Weights, gate: Gate, error: Exception) -> None:
    gate.opened.set()
    weights.train_to(5)
    saver.save(ENGINE, {}, 5)
    saver.wait()
    gate.error = error
    expected = UserError if isinstance(error, OSError) else KeyError
    saver.save(ENGINE, {}, 10)
    with pytest.raises(expected):
        saver.wait()
    assert saver.failed and saver.last == saver.folder / step_name(5)
    for again in (lambda: saver.save(ENGINE, {}, 15), saver.close):
        with pytest.raises(expected):
            again()
    assert [p.name for p in saver.folder.iterdir()] == [step_name(5)]
