"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests start ranks on the CPU, on every machine.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# The models here are so small that threads wait for each other longer than they compute: 15 s become 3 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["support.packed_rows"]  # its fixtures `lvlm` and `records`

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real multilingual data that lies beside a full checkout."""
    folder = Path(os.environ.get("PLAST_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set PLAST_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-1.5 with random weights and the shipped tokenizer."""
    from plast_train.tiny.base import make_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder, seed=0, random_weights=True)
    return folder
