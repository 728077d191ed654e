"""What a checkpoint is on disk, and whether it is whole.

`manifest.json`, written last, lists every shard with size and SHA-256 and gives its own SHA-256. Imports no
torch, so that the launcher can ask.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plast_train.run_folder import sha256_of, to_json
from plast_train.runtime.late_files import FileWait, has_bytes

FORMAT = 1
MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step-\d{8}")
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")


class BrokenCheckpoint(ValueError):
    """A published checkpoint that is torn, corrupt or lacks a file. The message names the file."""


def step_name(step: int) -> str:
    """The folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints, newest first, without looking into them. Steps tell which is newer: clocks
    of machines differ, and a file system's times too."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _STEP_FOLDER.fullmatch(p.name)), reverse=True)


def manifest_text(content: dict[str, Any]) -> str:
    """The one text of a manifest with this content, which has no `sha256` yet."""
    return to_json(content | {"sha256": _content_hash(content)})


def read_manifest(checkpoint: Path, file_wait: FileWait | None = None) -> dict[str, Any]:
    """Raises BrokenCheckpoint for one that is missing, torn, changed or of another format."""
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
        raise BrokenCheckpoint(f"{MANIFEST} does not have the SHA-256 that it gives itself")
    if to_json(manifest) != text:  # white space is not in the hash
        raise BrokenCheckpoint(f"{MANIFEST} was written over")
    if manifest["format"] != FORMAT:
        raise BrokenCheckpoint(f"{MANIFEST} is of format {manifest['format']}, not {FORMAT}")
    if checkpoint.name != step_name(manifest["step"]):
        raise BrokenCheckpoint(f"{MANIFEST} is that of {step_name(manifest['step'])}")
    return manifest


def read_sizes(checkpoint: Path, file_wait: FileWait) -> dict[str, Any]:
    """The manifest, after comparing every file's size with it.

    Raises:
        BrokenCheckpoint: what is wrong, naming the file.
    """
    manifest = read_manifest(checkpoint, file_wait)
    for name, entry in manifest["files"].items():
        if not _SHARD.fullmatch(name):
            raise BrokenCheckpoint(f"{MANIFEST} names a file that is no shard: {name!r}")
        _check_size(checkpoint / name, entry["size"], file_wait)
    return manifest


def verify(checkpoint: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The manifest, after comparing every file's size and SHA-256 with it. `say` hears of waiting for files.

    Raises:
        BrokenCheckpoint: what is wrong, naming the file.
    """
    return _verify(checkpoint, FileWait(say))


def newest_valid(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its manifest; each broken one is named to `warn`."""
    file_wait = FileWait(warn)
    for path in checkpoints(folder):
        try:
            return path, _verify(path, file_wait)
        except BrokenCheckpoint as error:
            warn(f"WARNING: checkpoint {path} is skipped for the one before: {error}")
    return None


def set_aside(checkpoint: Path) -> Path:
    """Moves a checkpoint out of the others' way, into `RUN/suspect`, and returns where it is then."""
    folder, number = checkpoint.parent.parent / "suspect", 1
    folder.mkdir(exist_ok=True)
    aside = folder / checkpoint.name
    while aside.exists():
        number += 1
        aside = folder / f"{checkpoint.name}-{number}"
    checkpoint.rename(aside)
    return aside


def _check_size(path: Path, size: int, file_wait: FileWait) -> None:
    file_wait.until(lambda: has_bytes(path, size), path)
    if not path.is_file():
        raise BrokenCheckpoint(f"{path.name} is missing")
    if path.stat().st_size != size:
        raise BrokenCheckpoint(f"{path.name} has {path.stat().st_size} bytes instead of {size}")


def _verify(checkpoint: Path, file_wait: FileWait) -> dict[str, Any]:
    manifest = read_sizes(checkpoint, file_wait)
    for name, entry in manifest["files"].items():
        try:
            found = sha256_of(checkpoint / name)
        except OSError as error:
            raise BrokenCheckpoint(f"{name} cannot be read ({error.strerror})") from None
        if found != entry["sha256"]:
            raise BrokenCheckpoint(f"{name} does not have the SHA-256 that the manifest gives")
    return manifest


def _content_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
