"""The run's folder: where everything is, stage records, atomic publishing.

Nothing gets its final name before it is complete: it is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plast_train.errors import UserError

STAGES = ("collect", "select", "train", "export", "evaluate", "analyse", "report")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. Creating the object touches nothing on disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def base(self) -> Path:
        """The base model: its folder and the SHA-256 of each file."""
        return self.path / "base.json"

    @property
    def records(self) -> Path:
        """The records that passed the checks, in one format whatever the source's was."""
        return self.path / "records.jsonl"

    @property
    def statistics(self) -> Path:
        return self.path / "activations" / "statistics.safetensors"

    @property
    def activation_parts(self) -> Path:
        return self.path / "activations" / "parts"

    @property
    def summary(self) -> Path:
        return self.path / "activations" / "summary.json"

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def diverged(self) -> Path:
        """Why an ablation continued without this run: its training's loss or gradient was not finite."""
        return self.path / "diverged.txt"

    @property
    def stage_times(self) -> Path:
        """One line each time a stage finishes: its name, seconds and ranks."""
        return self.path / "stage_times.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def results(self) -> Path:
        return self.path / "evaluation" / "results.json"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def record(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage: its settings, inputs and outputs; None before it is finished."""
        path = self.path / "stages" / f"{stage}.json"
        return read_json(path) if path.exists() else None

    def is_done(self, stage: str, settings: dict[str, Any], inputs: dict[str, Any]) -> bool:
        """Whether the stage is finished with exactly these settings and inputs, and its outputs are
        unchanged."""
        record = self.record(stage)
        if record is None or record["settings"] != settings or record["inputs"] != inputs:
            return False
        return all(self.is_intact(name, content) for name, content in record["outputs"].items())

    def is_intact(self, name: str, content: str) -> bool:
        path = self.path / name
        return path.is_dir() if content == "folder" else path.is_file() and sha256_of(path) == content

    def publish_record(
        self, stage: str, settings: dict[str, Any], inputs: dict[str, Any], outputs: list[Path]
    ) -> None:
        """Declares a stage finished. Files among the outputs are recorded with their hash."""
        named = {
            str(path.relative_to(self.path)): sha256_of(path) if path.is_file() else "folder"
            for path in outputs
        }
        record = {"stage": stage, "settings": settings, "inputs": inputs, "outputs": named}
        publish_text(self.path / "stages" / f"{stage}.json", to_json(record))

    def add_stage_time(self, stage: str, seconds: float, ranks: int) -> None:
        """Kept apart from the stage's record, which must not depend on how long the stage took."""
        with self.stage_times.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "seconds": round(seconds, 3), "ranks": ranks}) + "\n")

    def forget(self, stage: str) -> None:
        """Withdraws a stage's record, before the stage is redone."""
        (self.path / "stages" / f"{stage}.json").unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Raises UserError for a file that is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is missing or is not a JSON object."""
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is {tree!r:.40}, not a JSON object {{…}}; replace the file")
    return tree


def to_json(tree: Any) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def publish_text(path: Path, text: str) -> None:
    publish_bytes(path, text.encode("utf-8"))


def publish_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)  # the new name is safe from a power cut only now


def publish_folder(temporary: Path, final: Path) -> None:
    """Gives a finished folder its final name, replacing an older one of that name. Files in it must already
    be synced (`sync_file`)."""
    final.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(temporary)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed between the renames
    if final.exists():
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.rename(final)
    sync_folder(final.parent)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names below it."""
    if path.is_file():
        return sha256_of(path)
    files = [(str(file.relative_to(path)), sha256_of(file)) for file in path.rglob("*") if file.is_file()]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where all that can be recreated is kept: `$PLAST_CACHE`, or `plast` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plast"
    return Path(os.environ.get("PLAST_CACHE", default))


def slug(name: str) -> str:
    """A name as part of a file's name: letters and digits of any script, `-` and `_`; `_` for the rest."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no hard links. Only for
    files that are replaced as a whole and never written into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        sync_file(temporary)
    temporary.replace(target)
