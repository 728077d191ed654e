"""The checkpoint format in one process: sizes, damage, which ones are kept, ranges that do not line up.
Real ranks save and load in test_training.py; test_checkpoints_fire.py damages many places."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoint_makers import (
    ALONE,
    IDENTITY,
    SHAPES,
    cut,
    masters_of,
    newest_whole,
    save,
    states,
    verify,
)

from plast_train.checkpoint import format, restore
from plast_train.checkpoint.format import OVERHEAD_PER_RANK, checkpoint_bytes, manifest_text
from plast_train.checkpoint.partitions import OwnedRange
from plast_train.errors import UserError
from plast_train.runtime import late_files


def test_holds_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    masters = masters_of(path)
    assert {name: list(tensor.shape) for name, tensor in masters.items()} == SHAPES
    for name, state in states(7).items():
        assert torch.equal(masters[name].flatten(), state[0])
    size = sum(file.stat().st_size for file in path.iterdir())
    assert size <= checkpoint_bytes(IDENTITY.num_elements, 1)
    assert size >= 12 * IDENTITY.num_elements
    large = checkpoint_bytes(10**9, 8)
    assert large == 12 * 10**9 + 8 * OVERHEAD_PER_RANK


@pytest.mark.parametrize("seed", range(5))
def test_any_ranges_read_any_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """What one number of ranks cut here and another there comes together, element for element."""
    path = save(tmp_path, 7, pieces=seed + 2)
    rank = random.Random(seed)
    wanted = []
    for name, state in states(7).items():
        start, stop = rank.choice(cut(state.shape[1], 3, 100 + seed))
        wanted.append(OwnedRange(name, start, stop, tuple(torch.zeros(stop - start) for _ in range(3))))
    steps: list[int] = []
    monkeypatch.setattr(restore, "owned_ranges", lambda engine, parameters: wanted)
    monkeypatch.setattr(restore, "set_adam_step", lambda engine, step: steps.append(step))
    monkeypatch.setattr(restore, "publish_masters", lambda engine: None)
    engine: Any = None
    assert restore.restore(path, engine, {}, ALONE) == 7 and steps == [7]
    for owned in wanted:
        expected = states(7)[owned.name][:, owned.start : owned.stop]
        assert torch.equal(torch.stack(owned.views), expected)


SHARD = "shard-00000-of-00001.safetensors"
DAMAGE: dict[str, Any] = {
    "shard of another step": lambda p: shutil.copy(p.with_name("step-00000005") / SHARD, p / SHARD),
    "another step's folder": lambda p: shutil.copytree(p.with_name("step-00000005"), p, dirs_exist_ok=True),
    "no files": lambda p: [file.unlink() for file in p.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0)
    before, path = save(tmp_path, 5), save(tmp_path, 10)
    assert newest_whole(tmp_path, pytest.fail) is not None
    DAMAGE[damage](path)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == before
    assert len(said) == 1 and str(path) in said[0]
    assert ("shard" in said[0].split("broken:")[1]) == ("shard" in damage)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in format.checkpoints(tmp_path)] == ["step-00000015", "step-00000010"]
    # A broken later one, left by a run that went on from before it, pushes no whole one out.
    (tmp_path / "step-00000099").mkdir()
    save(tmp_path, 20, keep=1)
    assert [p.name for p in format.checkpoints(tmp_path)] == ["step-00000099", "step-00000020"]
    save(tmp_path, 99, keep=1)
    assert [p.name for p in format.checkpoints(tmp_path)] == ["step-00000099"]


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    partial = tmp_path / ".step-00000010.partial"
    partial.mkdir()
    (partial / SHARD).write_bytes(b"half")
    assert [p.name for p in format.checkpoints(tmp_path)] == ["step-00000005"]
    save(tmp_path, 15)
    assert not partial.exists()


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB free, a checkpoint needs"):
        save(tmp_path, 10)
    assert [p.name for p in format.checkpoints(tmp_path)] == ["step-00000005"]


def test_manifest_names_no_file_outside(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = manifest["files"][SHARD]
    del manifest["sha256"]
    (path / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(ValueError, match="not a shard"):
        verify(path)
