"""A manifest that was changed after it was written is refused, whatever was changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoint_makers import save

from plast_train.checkpoint.format import MANIFEST, BrokenCheckpoint, read_manifest
from plast_train.run_folder import to_json


@pytest.mark.parametrize("key", ["step", "world_size", "zero_stage", "base", "layers", "settings"])
def test_a_changed_value(tmp_path: Path, key: str) -> None:
    path = save(tmp_path, 7) / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(to_json(manifest | {key: "changed"}))
    with pytest.raises(BrokenCheckpoint, match="SHA-256"):
        read_manifest(path.parent)


def test_changed_white_space(tmp_path: Path) -> None:
    path = save(tmp_path, 7) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(BrokenCheckpoint):
        read_manifest(path.parent)
