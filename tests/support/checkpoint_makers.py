"""Small checkpoints made in one process, by one rank or by several that are threads of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from plast_train.checkpoint.format import Identity, check_contents, checkpoints, read_manifest
from plast_train.checkpoint.restore import load_masters
from plast_train.checkpoint.resume import judge
from plast_train.checkpoint.save import Snapshot, write
from plast_train.runtime.late_files import FileWait

SHAPES = {"layers.0.weight": [40, 50], "layers.0.norm": [50], "layers.1.weight": [30, 50]}
SETTINGS = {"seed": 0, "data": "digest"}
IDENTITY = Identity("base-fingerprint", [0, 1], "all", SHAPES, SETTINGS)
ALONE: Any = SimpleNamespace(
    rank=0,
    world=1,
    is_first=True,
    device=torch.device("cpu"),
    gather=lambda value: [value],
    on_first=lambda action: action(),
    barrier=lambda: None,
    say=print,
)


@dataclass
class ThreadRank:
    """One of several ranks that are threads of this process."""

    rank: int
    world: int
    barrier: threading.Barrier
    box: list[Any]

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        self.barrier.wait()
        values = list(self.box)
        self.barrier.wait()
        return values


def on_ranks(world: int, action: Callable[[ThreadRank], Any]) -> list[Any]:
    """What `action` returned, or the exception that it raised, on each rank."""
    barrier, box = threading.Barrier(world, timeout=30), [None] * world
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = action(ThreadRank(rank, world, barrier, box))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def states(step: int) -> dict[str, torch.Tensor]:
    """Master and two moments of each tensor, `[3, elements]`, different for every step."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(3, torch.Size(s).numel(), generator=generator) for name, s in SHAPES.items()}


def cut(elements: int, pieces: int, seed: int) -> list[tuple[int, int]]:
    """Ranges that cover `elements`, cut at random."""
    inner = sorted(random.Random(seed).sample(range(1, elements), pieces - 1))
    return list(pairwise([0, *inner, elements]))


def save(folder: Path, step: int, keep: int = 10, pieces: int = 1, identity: Identity = IDENTITY) -> Path:
    """One rank's checkpoint, each tensor in that many ranges."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    for name, state in states(step).items():
        for start, stop in cut(state.shape[1], pieces, step):
            tensors[f"{name}@{start}"] = state[:, start:stop].contiguous()
    return write(Snapshot(step, 2, tensors), folder, identity, ALONE, keep)


def save_on(world: int, folder: Path, step: int, keep: int = 10) -> list[Any]:
    """Several ranks' checkpoint, a range of every tensor each; what each rank returned or raised."""

    def write_part(rank: ThreadRank) -> Path:
        tensors = {"rng.cpu": torch.get_rng_state()}
        for name, state in states(step).items():
            start, stop = cut(state.shape[1], world, step)[rank.rank]
            tensors[f"{name}@{start}"] = state[:, start:stop].contiguous()
        return write(Snapshot(step, 2, tensors), folder, IDENTITY, rank, keep)

    return on_ranks(world, write_part)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint. Raises BrokenCheckpoint."""
    file_wait = FileWait(print)
    manifest = read_manifest(path, file_wait)
    check_contents(path, manifest, file_wait)
    return manifest


def masters_of(path: Path) -> dict[str, torch.Tensor]:
    return load_masters(path, verify(path))


def newest_whole(folder: Path, warn: Callable[[str], object]) -> Path | None:
    """The newest whole checkpoint, whatever it belongs to; `warn` gets what is the matter with later ones."""
    file_wait = FileWait(warn)
    for path in checkpoints(folder):
        verdict = judge(path, {}, file_wait)
        if verdict.fits:
            return path
        warn(verdict.problem)
    return None


def holds_step(path: Path, step: int) -> bool:
    """Whether the checkpoint can be loaded and holds just what was saved after that step."""
    masters = masters_of(path)
    return all(torch.equal(masters[name].flatten(), state[0]) for name, state in states(step).items())
