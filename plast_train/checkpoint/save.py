"""Saving what is trained behind the training loop, which is held for the copy to host memory alone.

Each rank writes the ranges that it owns of every trained tensor (fp32 master and both Adam moments) to its
own shard; rank 0 then publishes all of them with the manifest (`checkpoint.format`).
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import Parameter

from plast_train.checkpoint.format import (
    FORMAT,
    MANIFEST,
    BrokenCheckpoint,
    Identity,
    checkpoint_bytes,
    checkpoints,
    manifest_text,
    shard_name,
    step_name,
)
from plast_train.checkpoint.partitions import owned_ranges
from plast_train.checkpoint.resume import sweep
from plast_train.errors import UserError
from plast_train.run_folder import publish_folder, sha256_of, sync_file
from plast_train.runtime.distributed import Ranks
from plast_train.runtime.late_files import FileWait, has_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of the training state after `step` steps, copied to host memory."""

    step: int
    zero_stage: int
    tensors: dict[str, torch.Tensor]


class Exchange(Protocol):
    """The part of `Ranks` that saving needs."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    def gather(self, value: Any) -> list[Any]: ...


def host_memory(engine: DeepSpeedEngine, parameters: dict[str, Parameter]) -> dict[str, torch.Tensor]:
    """Memory for this rank's part, `[3, elements]` float32 by `name@start`, pinned beside a GPU."""
    on_gpu = engine.device.type == "cuda"
    # Filled, so that the system maps the pages now and the first snapshot does not wait for it.
    return {
        f"{owned.name}@{owned.start}": torch.empty(
            len(owned.views), owned.stop - owned.start, pin_memory=on_gpu
        ).fill_(0)
        for owned in owned_ranges(engine, parameters)
    }


def snapshot(
    engine: DeepSpeedEngine,
    parameters: dict[str, Parameter],
    step: int,
    memory: dict[str, torch.Tensor],
) -> Snapshot:
    """Copies this rank's part into `memory` (see `host_memory`), which the next call overwrites. Training may
    continue while the snapshot is written."""
    tensors = dict(memory)
    on_gpu = engine.device.type == "cuda"
    for owned in owned_ranges(engine, parameters):
        for copy, view in zip(memory[f"{owned.name}@{owned.start}"], owned.views, strict=True):
            copy.copy_(view, non_blocking=on_gpu)
    tensors["rng.cpu"] = torch.get_rng_state()
    if on_gpu:
        # The next step overwrites the views, so the copies must have finished.
        torch.cuda.synchronize(engine.device)
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return Snapshot(step, engine.zero_optimization_stage(), tensors)


def write(snap: Snapshot, folder: Path, identity: Identity, ranks: Exchange, keep: int) -> Path:
    """Publishes `folder/step-NNNNNNNN` from every rank's snapshot and deletes all but the newest `keep`.

    Raises:
        UserError: on every rank; one cannot write. The earlier checkpoints stay as they are.
    """
    final = folder / step_name(snap.step)
    temporary = folder / f".{final.name}.partial"
    room = checkpoint_bytes(identity.num_elements, ranks.world)
    try:
        # Every rank takes part in each of the three steps: one that fails must not leave the others waiting.
        _first_only(ranks, "write the checkpoint", partial(_make_empty, temporary, room))
        name = shard_name(ranks.rank, ranks.world)
        write_own = partial(_write_shard, temporary / name, snap.tensors)
        entries = all_or_none(ranks, "write its part of the checkpoint", write_own)
        manifest = {
            "format": FORMAT,
            "step": snap.step,
            "world_size": ranks.world,
            "zero_stage": snap.zero_stage,
            **vars(identity),
            "files": {shard_name(rank, ranks.world): entry for rank, entry in enumerate(entries)},
        }
        _first_only(ranks, "write the checkpoint", partial(_publish, temporary, final, manifest))
    except Exception:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)  # frees a disk that may be full
        raise
    if ranks.is_first:
        _delete_old(final, keep)
    return final


def all_or_none(ranks: Exchange, task: str, action: Callable[[], Any]) -> list[Any]:
    """Every rank's result of `action`, on every rank.

    Raises:
        UserError: on every rank; the file system or a damaged file made it fail on one.
        RuntimeError: on every rank; it failed on one in any other way, which raises its own error.
    """
    result, problem, defect = None, None, None
    try:
        result = action()
    except (OSError, SafetensorError, BrokenCheckpoint) as error:
        problem = f"rank {ranks.rank} cannot {task}: {error}"
    except Exception as error:
        defect = error
        problem = f"rank {ranks.rank} failed to {task}: {error!r}"
    outcomes = ranks.gather((problem, defect is not None, result))
    if defect is not None:
        raise defect
    for problem, is_defect, _ in outcomes:
        if problem is not None and is_defect:
            raise RuntimeError(problem)
        if problem is not None:
            raise UserError(f"{problem}; fix this and run the same command again")
    return [result for _, _, result in outcomes]


def _first_only(ranks: Exchange, task: str, action: Callable[[], None]) -> None:
    all_or_none(ranks, task, action if ranks.is_first else lambda: None)


def _make_empty(folder: Path, room: int) -> None:
    """Makes the folder, removes what killed runs left beside it, and checks that `room` bytes are free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if free < room:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, a checkpoint needs {room / 1e9:.1f} GB")


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    if not FileWait(log.warning).until(path.parent.is_dir, path.parent):
        raise OSError(f"{path.parent}, made by rank 0, cannot be seen: do all machines share this folder?")
    save_file(tensors, path)
    sync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    file_wait = FileWait(log.warning)
    for name, entry in manifest["files"].items():
        path, size = temporary / name, entry["size"]
        if not file_wait.until(partial(has_bytes, path, size), path):
            raise OSError(
                f"{path}, written by another rank, cannot be seen: do all machines share this folder?"
            )
    path = temporary / MANIFEST
    path.write_text(manifest_text(manifest), encoding="utf-8")
    sync_file(path)
    publish_folder(temporary, final)


def _delete_old(final: Path, keep: int) -> None:
    # A later one can only be a broken one that was skipped; it must not push out a whole one.
    for old in [p for p in checkpoints(final.parent) if p.name <= final.name][keep:]:
        try:
            # Renamed first: a kill must not leave half a checkpoint under a checkpoint's name.
            doomed = old.with_name(f".{old.name}.deleted")
            old.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", old, error)


@dataclass(frozen=True)
class _ThreadExchange:
    """Exchanges between the saving threads, in a process group of their own: in the training's group they
    would mix with its collectives, whose order they do not know."""

    rank: int
    world: int
    group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values


class Saver:
    """Writes and publishes checkpoints in one background thread per rank, one after the other. Made and
    called by every rank in the same order. State is copied into `memory` (`host_memory`).

    `last` is the checkpoint that was last published or resumed from.
    """

    def __init__(
        self, folder: Path, identity: Identity, keep: int, ranks: Ranks, memory: dict[str, torch.Tensor]
    ) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep
        self.last: Path | None = None
        # As long as the training's own group: torchrun notices a rank that dies. Gloo, since
        # all that is exchanged lies in host memory.
        group = dist.new_group(backend="gloo", timeout=timedelta(hours=6))
        self._exchange = _ThreadExchange(ranks.rank, ranks.world, group)
        self._watchdog = ranks.watchdog
        self._memory = memory
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being published on this rank."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the save in the background failed on this rank; `wait` raises why."""
        return self._error is not None

    def save(self, engine: DeepSpeedEngine, parameters: dict[str, Parameter], step: int) -> None:
        """Copies the state after `step` steps and returns; it is published in the background.

        Raises:
            UserError: the save before failed.
        """
        if self.busy:
            log.info("step %d waits for the previous checkpoint to be published", step)
        self.wait()  # there is one copy in host memory, and the previous save still reads it
        snap = snapshot(engine, parameters, step, self._memory)
        self._thread = threading.Thread(target=self._publish, args=(snap,), name="saver", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is left to publish.

        Raises:
            UserError: on every rank; one could not write.
        """
        if self._thread is not None:
            with self._watchdog.computing():
                self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Waits, then frees the memory and the group.

        Raises:
            UserError: see `wait`.
        """
        self.wait()
        self._memory.clear()
        dist.destroy_process_group(self._exchange.group)

    def _publish(self, snap: Snapshot) -> None:
        try:
            self.last = write(snap, self.folder, self.identity, self._exchange, self.keep)
            log.info("saved %s", self.last)
        except BaseException as error:  # raised again by the training loop, through `wait`
            log.exception("the checkpoint after step %d failed", snap.step)
            self._error = error
