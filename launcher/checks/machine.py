"""Whether the run fits this machine: permissions, number of ranks, disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from plast_train.checkpoint.format import checkpoint_bytes
from plast_train.config import Config
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder

log = logging.getLogger(__name__)

# On the CPU ranks share cores; with more than this per core a run only gets slower and fills the memory.
RANKS_PER_CORE = 4


def check_writable(folder: Path) -> None:
    """The run folder, or the nearest folder above it that exists, must be writable.

    Raises:
        UserError: it is not, or it is a file.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise UserError(f"--out {folder}: {existing} is not a folder; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: no permission to write in {existing}; choose another folder")


def check_ranks(nproc: int, gpus: int, cores: int) -> None:
    """Each rank needs its own GPU. On the CPU more ranks than cores are slow but work, up to a few per core.

    Raises:
        UserError: more ranks than that.
    """
    if gpus and nproc > gpus:
        raise UserError(
            f"--nproc {nproc}: each rank needs a GPU, and {gpus} are visible; give {gpus} or fewer"
        )
    if not gpus and nproc > RANKS_PER_CORE * cores:
        most = RANKS_PER_CORE * cores
        raise UserError(f"--nproc {nproc}: no GPU and {cores} cores here; give {cores}, at most {most}")
    if not gpus and nproc > cores:
        log.warning(
            "--nproc %d on %d cores: ranks wait for each other; --nproc %d is faster", nproc, cores, cores
        )


def check_disk(
    config: Config, run: RunFolder, base: Path, trained: int, nproc: int, todo: Collection[str]
) -> None:
    """Room for the checkpoints that are kept, the one being written and the export, less what exists.

    `trained` is the number of parameters that checkpoints hold.

    Raises:
        UserError: the disk has less room than that.
    """
    needed, parts = run_bytes(config, run, base, trained, nproc, todo)
    require_room(run.path, needed, f"the run needs about {_gigabytes(needed)} ({' and '.join(parts)})")


def run_bytes(
    config: Config, run: RunFolder, base: Path, trained: int, nproc: int, todo: Collection[str]
) -> tuple[int, list[str]]:
    """The bytes that `check_disk` requires, and what takes them."""
    needed, parts = 0, []
    if "train" in todo:
        # One more than are kept: the oldest is deleted only when the new one is complete.
        one, num_checkpoints = checkpoint_bytes(trained, nproc), config.checkpoint.keep + 1
        needed += num_checkpoints * one - _size(run.checkpoints)
        parts.append(f"{num_checkpoints} checkpoints of {_gigabytes(one)}")
    if "export" in todo:
        export = _size(base)
        needed += export - _size(run.export)
        parts.append(f"an export of {_gigabytes(export)}")
    return needed, parts


def require_room(folder: Path, needed: int, why: str) -> None:
    """Raises UserError where the folder's disk has fewer than `needed` bytes free; `why` says what for."""
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise UserError(
            f"--out {folder}: {_gigabytes(free)} are free on its disk, but {why}; free some space, lower "
            "checkpoint.keep or use another disk"
        )


def nearest_existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
