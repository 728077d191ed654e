"""A file of questions that the user may not read."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from plast_train.config import DataConfig
from plast_train.data.questions import read_records
from plast_train.errors import UserError

NOBODY = 65534


def read(path: Path) -> list[str]:
    config = DataConfig(questions=[str(path)], languages=["en", "pt"])
    return [record.id for record in read_records(config)]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def test_file_without_permission() -> None:
    """In a process of nobody's where this one is root's, which may read everything."""
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    with TemporaryDirectory() as folder:  # pytest's own is the user's alone
        Path(folder).chmod(0o755)
        path = Path(folder) / "q.jsonl"
        path.write_text('{"id": "1", "image": null, "questions": {"en": "Why?", "pt": "Por quê?"}}\n')
        found = read(path)  # also imports what nobody may not be allowed to
        with get_context("fork").Pool(1, os.setuid, (user,)) as child:
            path.chmod(0o644)
            assert child.apply(read, (path,)) == found
            path.chmod(0)
            assert "Permission denied" in child.apply(refused, (path,))
