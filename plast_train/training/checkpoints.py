"""Sharded checkpoints of what is trained, and nothing else.

Each rank writes the ranges it owns of every trained tensor (fp32 master and both Adam moments) to its own
shard. Loading intersects ranges, so any number of ranks and any ZeRO stage reads any checkpoint, and only the
bytes it needs. `manifest.json`, written last, makes the folder a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import Parameter

from plast_train.distributed import Ranks
from plast_train.errors import UserError
from plast_train.run_folder import publish_folder, sha256_of, sync_file, sync_folder, to_json
from plast_train.training.checkpoint_size import checkpoint_bytes
from plast_train.training.partitions import owned_ranges, publish_masters, set_adam_step

FORMAT = 1
_STEP_FOLDER = re.compile(r"step-\d{8}")
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")


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


def snapshot(engine: DeepSpeedEngine, parameters: dict[str, Parameter], step: int) -> Snapshot:
    """Copies this rank's part to host memory; training may go on while it is written."""
    tensors = {
        f"{owned.name}@{owned.start}": torch.stack([view.cpu() for view in owned.views])
        for owned in owned_ranges(engine, parameters)
    }
    tensors["rng.cpu"] = torch.get_rng_state()
    if engine.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return Snapshot(step, engine.zero_optimization_stage(), tensors)


def write(
    snap: Snapshot, folder: Path, identity: Identity, settings: dict[str, Any], ranks: Ranks, keep: int
) -> Path:
    """Publishes `folder/step-NNNNNNNN` from every rank's snapshot and deletes all but the newest `keep`.

    `settings` is what the course of training depends on, the order of the data above all (JSON values).

    Raises:
        UserError: a rank cannot write; the checkpoints before stay as they are.
    """
    final = folder / step_name(snap.step)
    temporary = folder / f".{final.name}.partial"
    if ranks.is_first:
        room = checkpoint_bytes(identity.elements, ranks.world)
        _all_or_none(ranks, lambda: _make_empty(temporary, room))
    else:
        _all_or_none(ranks, lambda: None)
    name = f"shard-{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    files = _all_or_none(ranks, lambda: {name: _write_shard(temporary / name, snap.tensors)})
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
    if ranks.is_first:
        _all_or_none(ranks, lambda: _publish(temporary, final, manifest, keep))
    else:
        _all_or_none(ranks, lambda: None)
    return final


def step_name(step: int) -> str:
    """The folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints, newest first, without looking into them."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _STEP_FOLDER.fullmatch(p.name)), reverse=True)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Raises ValueError for one that is missing, torn or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"manifest.json cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError("manifest.json is torn") from None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _manifest_hash(manifest):
        raise ValueError("manifest.json does not have the SHA-256 that it gives itself")
    if manifest["format"] != FORMAT:
        raise ValueError(f"manifest.json is of format {manifest['format']}, not {FORMAT}")
    if checkpoint.name != step_name(manifest["step"]):
        raise ValueError(f"manifest.json is that of {step_name(manifest['step'])}")
    return manifest


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest, after comparing every file's size and SHA-256 with it.

    Raises:
        ValueError: what is wrong, naming the file.
    """
    manifest = read_manifest(checkpoint)
    for name, entry in manifest["files"].items():
        path = checkpoint / name
        if not _SHARD.fullmatch(name):
            raise ValueError(f"manifest.json names a file that is no shard: {name!r}")
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != entry["size"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        if sha256_of(path) != entry["sha256"]:
            raise ValueError(f"{name} does not have the SHA-256 that the manifest gives")
    return manifest


def newest_valid(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its manifest; each broken one is named to `warn`."""
    for path in checkpoints(folder):
        try:
            return path, verify(path)
        except ValueError as error:
            warn(f"WARNING: checkpoint {path} is skipped for the one before: {error}")
    return None


def choose(folder: Path, identity: Identity, settings: dict[str, Any], ranks: Ranks) -> Path | None:
    """The checkpoint to go on from, decided by rank 0 for all; None to start from the base.

    Raises:
        UserError: the newest whole checkpoint is of another base, other layers or other settings.
    """
    return ranks.on_first(lambda: _choose(folder, identity, settings, ranks))


def _choose(folder: Path, identity: Identity, settings: dict[str, Any], ranks: Ranks) -> Path | None:
    found = newest_valid(folder, ranks.say)
    if found is None:
        return None
    path, manifest = found
    wrong = _mismatch(manifest, identity, settings)
    if wrong is not None:
        raise UserError(f"{path}: {wrong}; give another --out, or remove {folder} to train anew")
    return path


def restore(checkpoint: Path, engine: DeepSpeedEngine, parameters: dict[str, Parameter], ranks: Ranks) -> int:
    """Puts a checkpoint that `choose` chose into the engine and returns its step.

    On the same ranks and ZeRO stage every bit is as it was, the random states included; on others the
    masters and moments are, and the random states are left as they are.
    """
    manifest = read_manifest(checkpoint)
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
        manifest = verify(checkpoint)
    except ValueError as error:
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


def _manifest_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _restore_random_state(checkpoint: Path, ranks: Ranks) -> None:
    name = f"shard-{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    with safe_open(checkpoint / name, framework="pt") as shard:
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


def _all_or_none(ranks: Ranks, action: Callable[[], Any]) -> list[Any]:
    """Every rank's result of `action`; if it fails on one rank, UserError on all of them."""
    result, problem = None, None
    try:
        result = action()
    except (OSError, SafetensorError) as error:
        problem = f"rank {ranks.rank} cannot write its part of the checkpoint: {error}"
    problems = [p for p in ranks.gather(problem) if p is not None]
    if problems:
        raise UserError(f"{problems[0]}; mend it and run the same command again")
    return ranks.gather(result)


def _make_empty(folder: Path, room: int) -> None:
    """Makes the folder anew, removes what killed runs left beside it, and sees that `room` bytes are free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".step-*"):
        shutil.rmtree(leftover)
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if free < room:
        raise OSError(f"{folder.parent} has {free / 1e9:.1f} GB free, a checkpoint needs {room / 1e9:.1f} GB")


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    save_file(tensors, path)
    sync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _publish(temporary: Path, final: Path, manifest: dict[str, Any], keep: int) -> None:
    path = temporary / "manifest.json"
    path.write_text(to_json(manifest | {"sha256": _manifest_hash(manifest)}), encoding="utf-8")
    sync_file(path)
    publish_folder(temporary, final)
    # A later one can only be a broken one that was skipped; it must not push a whole one out.
    for old in [p for p in checkpoints(final.parent) if p.name <= final.name][keep:]:
        # Never half a checkpoint under a checkpoint's name.
        doomed = old.with_name(f".{old.name}.deleted")
        old.rename(doomed)
        shutil.rmtree(doomed)
    sync_folder(final.parent)
