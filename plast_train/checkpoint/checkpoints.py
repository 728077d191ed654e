"""Sharded checkpoints of what is trained, and nothing else.

Each rank writes the ranges it owns of every trained tensor (fp32 master and both Adam moments) to its own
shard. Loading intersects ranges, so any number of ranks and any ZeRO stage reads any checkpoint, and only the
bytes it needs. `manifest.json`, written last, makes the folder a checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import Parameter

from plast_train.checkpoint.format import (
    FORMAT,
    MANIFEST,
    BrokenCheckpoint,
    checkpoints,
    manifest_text,
    newest_valid,
    read_sizes,
    set_aside,
    shard_name,
    step_name,
    verify,
)
from plast_train.checkpoint.partitions import owned_ranges, publish_masters, set_adam_step
from plast_train.checkpoint.size import checkpoint_bytes
from plast_train.errors import UserError
from plast_train.run_folder import publish_folder, sha256_of, sync_file
from plast_train.runtime.distributed import Ranks
from plast_train.runtime.late_files import FileWait, has_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: the base's fingerprint and what of it is trained (name → shape)."""

    base: str
    layers: list[int]
    modules: str
    parameters: dict[str, list[int]]

    @property
    def elements(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.parameters.values())


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of the training state after `step` steps, copied to host memory."""

    step: int
    zero_stage: int
    tensors: dict[str, torch.Tensor]


class Exchange(Protocol):
    """What of `Ranks` saving needs."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    def gather(self, value: Any) -> list[Any]: ...


def host_memory(engine: DeepSpeedEngine, parameters: dict[str, Parameter]) -> dict[str, torch.Tensor]:
    """Room for this rank's part, `[3, elements]` float32 by `name@start`, pinned beside a GPU. Its pages are
    touched, so that no snapshot has to wait for them."""
    on_gpu = engine.device.type == "cuda"
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
    """Copies this rank's part into `memory` (see `host_memory`); training may go on while it is written. The
    next call writes it over."""
    tensors = dict(memory)
    on_gpu = engine.device.type == "cuda"
    for owned in owned_ranges(engine, parameters):
        for copy, view in zip(memory[f"{owned.name}@{owned.start}"], owned.views, strict=True):
            copy.copy_(view, non_blocking=on_gpu)
    tensors["rng.cpu"] = torch.get_rng_state()
    if on_gpu:
        torch.cuda.synchronize(engine.device)
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return Snapshot(step, engine.zero_optimization_stage(), tensors)


def write(
    snap: Snapshot, folder: Path, identity: Identity, settings: dict[str, Any], ranks: Exchange, keep: int
) -> Path:
    """Publishes `folder/step-NNNNNNNN` from every rank's snapshot and deletes all but the newest `keep`.

    `settings` is what the course of training depends on, the order of the data above all (JSON values).

    Raises:
        UserError: a rank cannot write; the checkpoints before stay as they are.
    """
    final = folder / step_name(snap.step)
    temporary = folder / f".{final.name}.partial"
    try:
        _write(snap, temporary, final, identity, settings, ranks)
    except Exception:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk is needed for other things
        raise
    if ranks.is_first:
        _delete_old(final, keep)
    return final


def _write(
    snap: Snapshot,
    temporary: Path,
    final: Path,
    identity: Identity,
    settings: dict[str, Any],
    ranks: Exchange,
) -> None:
    def on_first(action: Callable[[], Any]) -> None:
        _all_or_none(ranks, "write the checkpoint", action if ranks.is_first else lambda: None)

    on_first(lambda: _make_empty(temporary, checkpoint_bytes(identity.elements, ranks.world)))
    name = shard_name(ranks.rank, ranks.world)
    files = _all_or_none(
        ranks,
        "write its part of the checkpoint",
        lambda: {name: _write_shard(temporary / name, snap.tensors)},
    )
    manifest = {
        "format": FORMAT,
        "step": snap.step,
        "world_size": ranks.world,
        "zero_stage": snap.zero_stage,
        "base": identity.base,
        "layers": identity.layers,
        "modules": identity.modules,
        "parameters": identity.parameters,
        "settings": settings,
        "files": {key: entry for part in files for key, entry in part.items()},
    }
    on_first(lambda: _publish(temporary, final, manifest))


def wait_for_view(folder: Path, ranks: Ranks) -> None:
    """Waits until rank 0, which decides where to go on from, sees the newest checkpoint that any rank sees,
    and removes what killed runs left."""
    names = [name for part in ranks.gather([p.name for p in checkpoints(folder)[:1]]) for name in part]
    if ranks.is_first:
        if names:
            path = folder / max(names) / MANIFEST
            FileWait(ranks.say).until(lambda: has_bytes(path, 1), path)
        _sweep(folder)
    ranks.barrier()


def choose(folder: Path, identity: Identity, settings: dict[str, Any], ranks: Ranks) -> Path | None:
    """The checkpoint to go on from, decided by rank 0 for all; None to start from the base.

    Raises:
        UserError: the newest whole checkpoint is of another base, other layers or other settings.
    """
    return ranks.on_first(lambda: _choose(folder, identity, settings, ranks))


def _choose(folder: Path, identity: Identity, settings: dict[str, Any], ranks: Ranks) -> Path | None:
    found = newest_valid(folder, ranks.say)
    if found is not None:
        wrong = _mismatch(found[1], identity, settings)
        if wrong is not None:
            raise UserError(f"{found[0]}: {wrong}; give another --out, or remove {folder} to train anew")
    path = found[0] if found else None
    # They are none of those that `keep` counts, nor one to go back to.
    for broken in [p for p in checkpoints(folder) if path is None or p.name > path.name]:
        try:
            ranks.say(f"{broken} is now {set_aside(broken)}")
        except OSError as error:
            ranks.say(f"WARNING: {broken} cannot be set aside: {error}")
    return path


def restore(checkpoint: Path, engine: DeepSpeedEngine, parameters: dict[str, Parameter], ranks: Ranks) -> int:
    """Puts a checkpoint that `choose` chose into the engine and returns its step.

    On the same ranks and ZeRO stage every bit is as it was, the random states included; on others the
    masters and moments are, and the random states are left as they are.
    """
    manifest = _all_or_none(ranks, f"read {checkpoint}", lambda: _seen(checkpoint))[ranks.rank]
    wanted = {owned.name: owned for owned in owned_ranges(engine, parameters)}
    missing = sum(owned.stop - owned.start for owned in wanted.values())
    for name, start, part in _stored_ranges(checkpoint, manifest):
        owned = wanted.get(name)
        low, high = (
            (max(start, owned.start), min(start + part.get_shape()[1], owned.stop)) if owned else (0, 0)
        )
        if owned is None or low >= high:
            continue
        for view, values in zip(owned.views, part[:, low - start : high - start], strict=True):
            view[low - owned.start : high - owned.start].copy_(values)
        missing -= high - low
    if missing:
        raise UserError(f"{checkpoint}: its shards lack {missing} of the elements of this rank")
    set_adam_step(engine, manifest["step"])
    publish_masters(engine)
    if manifest["world_size"] == ranks.world:
        _restore_random_state(checkpoint, ranks)
    return int(manifest["step"])


def load_masters(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole trained tensors, fp32 on the CPU, by parameter name.

    Raises:
        UserError: the checkpoint is torn or corrupt.
    """
    try:
        manifest = verify(checkpoint, log.warning)
    except BrokenCheckpoint as error:
        raise UserError(f"{checkpoint}: {error}") from None
    masters = {name: torch.empty(shape) for name, shape in manifest["parameters"].items()}
    missing = sum(tensor.numel() for tensor in masters.values())
    for name, start, part in _stored_ranges(checkpoint, manifest):
        values = part[0]
        masters[name].view(-1)[start : start + len(values)] = values
        missing -= len(values)
    if missing:
        raise UserError(f"{checkpoint}: its shards lack {missing} elements of the trained tensors")
    return masters


def _stored_ranges(checkpoint: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Parameter name, first element and lazy slice `[3, elements]` of each stored range."""
    for file in manifest["files"]:
        with safe_open(checkpoint / file, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 (not a mapping)
                name, at, start = key.rpartition("@")
                if at:
                    yield name, int(start), shard.get_slice(key)


def _restore_random_state(checkpoint: Path, ranks: Ranks) -> None:
    with safe_open(checkpoint / shard_name(ranks.rank, ranks.world), framework="pt") as shard:
        torch.set_rng_state(shard.get_tensor("rng.cpu"))
        if ranks.device.type == "cuda" and "rng.cuda" in shard.keys():  # noqa: SIM118
            torch.cuda.set_rng_state(shard.get_tensor("rng.cuda"))


def _mismatch(manifest: dict[str, Any], identity: Identity, settings: dict[str, Any]) -> str | None:
    """How a whole checkpoint differs from what is to be trained, or None."""
    if manifest["base"] != identity.base:
        return f"was made from the base {manifest['base'][:16]}…, but model.path has {identity.base[:16]}…"
    trained = (manifest["layers"], manifest["modules"], manifest["parameters"])
    if trained != (identity.layers, identity.modules, identity.parameters):
        return (
            f"trains layers {manifest['layers']} ({manifest['modules']}), "
            f"but selected are layers {identity.layers} ({identity.modules})"
        )
    changed = changed_settings(manifest["settings"], settings)
    return f"was trained with other settings: {changed}" if changed else None


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """`key: old → new` for each setting that changed, or an empty string."""
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in keys)


def _all_or_none(ranks: Exchange, doing: str, action: Callable[[], Any]) -> list[Any]:
    """Every rank's result of `action`; if it fails on one rank, an error on all of them: UserError for what
    the machine refuses, RuntimeError for a defect."""
    result, problem, defect = None, None, None
    try:
        result = action()
    except (OSError, SafetensorError, BrokenCheckpoint) as error:
        problem = f"rank {ranks.rank} cannot {doing}: {error}"
    except Exception as error:
        defect = error
        problem = f"rank {ranks.rank} failed to {doing}: {error!r}"
    outcomes = ranks.gather((problem, defect is not None, result))
    if defect is not None:
        raise defect
    for problem, is_defect, _ in outcomes:
        if problem is not None and is_defect:
            raise RuntimeError(problem)
        if problem is not None:
            raise UserError(f"{problem}; mend it and run the same command again")
    return [result for _, _, result in outcomes]


def _make_empty(folder: Path, room: int) -> None:
    """Makes the folder anew, removes what killed runs left beside it, and sees that `room` bytes are free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if free < room:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, a checkpoint needs {room / 1e9:.1f} GB")


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    if not FileWait(log.warning).until(path.parent.is_dir, path.parent):
        raise OSError(f"{path.parent}, made by rank 0, is not to be seen: do all machines share this folder?")
    save_file(tensors, path)
    sync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
    file_wait = FileWait(log.warning)
    for name, entry in manifest["files"].items():
        path, size = temporary / name, entry["size"]
        if not file_wait.until(partial(has_bytes, path, size), path):
            raise OSError(
                f"{path}, written by another rank, is not to be seen: do all machines share this folder?"
            )
    path = temporary / MANIFEST
    path.write_text(manifest_text(manifest), encoding="utf-8")
    sync_file(path)
    publish_folder(temporary, final)


def _delete_old(final: Path, keep: int) -> None:
    # A later one can only be a broken one that was skipped; it must not push a whole one out.
    for old in [p for p in checkpoints(final.parent) if p.name <= final.name][keep:]:
        try:
            # Never half a checkpoint under a checkpoint's name.
            doomed = old.with_name(f".{old.name}.deleted")
            old.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", old, error)


def _sweep(folder: Path) -> None:
    """Removes what is no checkpoint: parts of unfinished ones, and deleted ones."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _seen(checkpoint: Path) -> dict[str, Any]:
    """The manifest, once this rank's machine shows all of the checkpoint that rank 0 verified."""
    return read_sizes(checkpoint, FileWait(log.warning))
