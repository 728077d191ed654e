"""What a checkpoint is on disk, and whether it is whole.

`RUN/checkpoints/step-NNNNNNNN/` holds one shard per rank and `manifest.json`. A shard has, of every trained
tensor, the elements that its rank owns: key `name@first-element`, `[3, elements]` float32 (master weight and
Adam's two moments). The manifest, written last, makes the folder a checkpoint: it lists every shard with size
and SHA-256 and gives its own SHA-256. Imports no torch, so that the launcher can read checkpoints too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plast_train.run_folder import sha256_of, to_json
from plast_train.runtime.late_files import FileWait, has_bytes

FORMAT = 1
MANIFEST = "manifest.json"
BYTES_PER_PARAMETER = 12  # an fp32 master and two fp32 moments
OVERHEAD_PER_RANK = 64 * 1024  # tensor names and random states (the CPU generator's alone has 5 KB)
_STEP_FOLDER = re.compile(r"step-\d{8}")
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")


class BrokenCheckpoint(ValueError):
    """A published checkpoint is torn, corrupt or lacks a file. The message names the file."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: the base's fingerprint, what of it is trained (`parameters`: name →
    shape), and the `settings` that the course of training depends on, the order of the data above all (JSON
    values). The manifest has the same keys."""

    base: str
    layers: list[int]
    modules: str
    parameters: dict[str, list[int]]
    settings: dict[str, Any]

    @property
    def num_elements(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters.values())


def checkpoint_bytes(num_elements: int, world: int) -> int:
    """An upper bound of a checkpoint's size for that many trained parameters."""
    return num_elements * BYTES_PER_PARAMETER + world * OVERHEAD_PER_RANK


def step_name(step: int) -> str:
    """The folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints, newest first, without looking into them."""
    if not folder.is_dir():
        return []
    # The step says which is newer: machines' clocks differ, and so do a file system's times.
    return sorted((p for p in folder.iterdir() if _STEP_FOLDER.fullmatch(p.name)), reverse=True)


def manifest_text(content: dict[str, Any]) -> str:
    """The manifest with this content, which has no `sha256` yet."""
    return to_json(content | {"sha256": _content_hash(content)})


def read_manifest(checkpoint: Path, file_wait: FileWait | None = None) -> dict[str, Any]:
    """Raises BrokenCheckpoint for a manifest that is missing, torn, changed or of another format."""
    path = checkpoint / MANIFEST
    if file_wait is not None:
        file_wait.until(lambda: has_bytes(path, 1), path)
    try:
        text = path.read_bytes().decode()
        manifest: dict[str, Any] = json.loads(text)
    except OSError as error:
        raise BrokenCheckpoint(f"{MANIFEST} cannot be read ({error.strerror})") from None
    except ValueError:
        raise BrokenCheckpoint(f"{MANIFEST} is torn") from None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _content_hash(manifest):
        raise BrokenCheckpoint(f"{MANIFEST} does not have the SHA-256 that it records for itself")
    if to_json(manifest) != text:  # the hash is of the content, so it misses changed white space
        raise BrokenCheckpoint(f"{MANIFEST} was changed after it was written")
    if manifest["format"] != FORMAT:
        raise BrokenCheckpoint(f"{MANIFEST} has format {manifest['format']}; this version reads {FORMAT}")
    if checkpoint.name != step_name(manifest["step"]):
        raise BrokenCheckpoint(f"{MANIFEST} belongs to {step_name(manifest['step'])}")
    return manifest


def check_sizes(checkpoint: Path, manifest: dict[str, Any], file_wait: FileWait) -> None:
    """Raises BrokenCheckpoint, naming the file, if a shard is missing or has another size than recorded."""
    for name, entry in manifest["files"].items():
        # A manifest must not make us read files outside its folder.
        if not _SHARD.fullmatch(name):
            raise BrokenCheckpoint(f"{MANIFEST} names {name!r}, which is not a shard")
        path, size = checkpoint / name, entry["size"]
        file_wait.until(partial(has_bytes, path, size), path)
        if not path.is_file():
            raise BrokenCheckpoint(f"{name} is missing")
        if path.stat().st_size != size:
            raise BrokenCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {size}")


def check_contents(checkpoint: Path, manifest: dict[str, Any], file_wait: FileWait) -> None:
    """Raises BrokenCheckpoint, naming the file, if a shard is not, byte for byte, what was written."""
    check_sizes(checkpoint, manifest, file_wait)
    for name, entry in manifest["files"].items():
        try:
            found = sha256_of(checkpoint / name)
        except OSError as error:
            raise BrokenCheckpoint(f"{name} cannot be read ({error.strerror})") from None
        if found != entry["sha256"]:
            raise BrokenCheckpoint(f"{name} does not have the SHA-256 that the manifest records")


def _content_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
