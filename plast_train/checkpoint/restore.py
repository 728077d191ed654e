"""Loading a checkpoint: into the training engine, or as whole tensors.

Stored and owned ranges are intersected, so any number of ranks and any ZeRO stage reads any checkpoint, and
each rank only the bytes that it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import safe_open
from torch.nn import Parameter

from plast_train.checkpoint.format import check_sizes, read_manifest, shard_name
from plast_train.checkpoint.partitions import owned_ranges, publish_masters, set_adam_step
from plast_train.checkpoint.save import all_or_none
from plast_train.errors import UserError
from plast_train.runtime.distributed import Ranks
from plast_train.runtime.late_files import FileWait

log = logging.getLogger(__name__)


def restore(checkpoint: Path, engine: DeepSpeedEngine, parameters: dict[str, Parameter], ranks: Ranks) -> int:
    """Loads the checkpoint that `resume.choose` chose into the engine and returns its step.

    On the same number of ranks and the same ZeRO stage every bit is as it was, random states included; on
    others the masters and moments are, and the random states stay as they are.

    Raises:
        UserError: on every rank; one cannot read the checkpoint.
    """
    # Rank 0 has verified the hashes; each rank only waits until its own machine shows all files.
    manifest = all_or_none(ranks, f"read {checkpoint}", lambda: _wait_for_files(checkpoint))[ranks.rank]
    wanted = {owned.name: owned for owned in owned_ranges(engine, parameters)}
    num_missing = sum(owned.stop - owned.start for owned in wanted.values())
    for name, start, part in _stored_ranges(checkpoint, manifest):
        if (owned := wanted.get(name)) is None:
            continue
        low, high = max(start, owned.start), min(start + part.get_shape()[1], owned.stop)
        if low >= high:
            continue
        for view, values in zip(owned.views, part[:, low - start : high - start], strict=True):
            view[low - owned.start : high - owned.start].copy_(values)
        num_missing -= high - low
    if num_missing:
        raise UserError(f"{checkpoint}: its shards lack {num_missing} of the elements that this rank owns")
    set_adam_step(engine, manifest["step"])
    publish_masters(engine)
    if manifest["world_size"] == ranks.world:
        with safe_open(checkpoint / shard_name(ranks.rank, ranks.world), framework="pt") as shard:
            torch.set_rng_state(shard.get_tensor("rng.cpu"))
            if ranks.device.type == "cuda" and "rng.cuda" in shard.keys():  # noqa: SIM118 (not a mapping)
                torch.cuda.set_rng_state(shard.get_tensor("rng.cuda"))
    return int(manifest["step"])


def load_masters(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The whole trained tensors, fp32 on the CPU, by parameter name; of a checkpoint that `resume.judge`
    found whole."""
    masters = {name: torch.empty(shape) for name, shape in manifest["parameters"].items()}
    num_missing = sum(tensor.numel() for tensor in masters.values())
    for name, start, part in _stored_ranges(checkpoint, manifest):
        values = part[0]
        masters[name].view(-1)[start : start + len(values)] = values
        num_missing -= len(values)
    if num_missing:
        raise UserError(f"{checkpoint}: its shards lack {num_missing} elements of the trained tensors")
    return masters


def _wait_for_files(checkpoint: Path) -> dict[str, Any]:
    file_wait = FileWait(log.warning)
    manifest = read_manifest(checkpoint, file_wait)
    check_sizes(checkpoint, manifest, file_wait)
    return manifest


def _stored_ranges(checkpoint: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Parameter name, first element and lazy slice `[3, elements]` of each stored range."""
    for file in manifest["files"]:
        with safe_open(checkpoint / file, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 (not a mapping)
                name, at, start = key.rpartition("@")
                if at:  # random states have none
                    yield name, int(start), shard.get_slice(key)
