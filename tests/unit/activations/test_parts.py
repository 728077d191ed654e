"""The parts of an unfinished collection: each row is in one of them, and one rank adds each."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from plast_train.activations.collect import _Parts
from plast_train.errors import UserError
from plast_train.neurons.counts import ActivationCounts
from plast_train.runtime import late_files


def counts_of(value: int) -> ActivationCounts:
    counts = ActivationCounts.zeros(1, 1, 1, 4, torch.device("cpu"))
    for table in counts.state_dict().values():
        table += value
    return counts


@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_add_up_on_any_ranks(tmp_path: Path, world: int) -> None:
    written = _Parts(tmp_path, "this collection", 0, 1)
    counts = counts_of(0)
    for rows, value in (([0, 3], 5), ([4], 70), ([1, 2], 900)):
        written.rows = list(rows)
        for table in counts.state_dict().values():
            table += value
        written.publish(counts)
        assert all(not table.any() for table in counts.state_dict().values()) and written.rows == []
    parts = [_Parts(tmp_path, "this collection", rank, world) for rank in range(world)]
    names = sorted(parts[0].names())
    assert sorted(row for rows in parts[0].rows_of(names).values() for row in rows) == [0, 1, 2, 3, 4]
    total = counts_of(0)
    for part in parts:
        part.add_to(total, names)
    for name, table in total.state_dict().items():
        assert table.unique().tolist() == [975], name


def test_a_part_of_another_collection_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0)
    other = _Parts(tmp_path, "another collection", 0, 1)
    other.rows = [0]
    other.publish(counts_of(1))
    ours = _Parts(tmp_path, "this collection", 0, 1)
    assert ours.rows_of(ours.names()) == {} and ours.names() == []


def test_a_part_shown_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's: neither counted again nor left out."""
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 1.0)
    counts = ActivationCounts.zeros(1, 1, 1, 4, torch.device("cpu"))
    parts = _Parts(tmp_path, "this collection", 0, 1)
    parts.rows = [3, 5]
    parts.publish(counts)
    (name,) = parts.published
    assert parts.published == {name: [3, 5]} and parts.rows == []
    hidden = (tmp_path / name).rename(tmp_path / "hidden")
    timer = threading.Timer(0.3, hidden.rename, [tmp_path / name])
    timer.start()
    assert parts.rows_of([name]) == {name: [3, 5]}
    timer.join()
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is not to be seen"):
        parts.add_to(counts, [name])
