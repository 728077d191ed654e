"""The stage `export`: a copy of the base's folder with the trained tensors, or those that LoRA adapters were
merged into, in place of the base's.

A weight file is copied byte for byte and only the ranges that hold trained tensors are overwritten, so
names, order, sharding and every other tensor are the base's by construction, and memory holds the trained
tensors alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from plast_train.checkpoint.format import checkpoints
from plast_train.checkpoint.restore import load_masters
from plast_train.checkpoint.resume import Case, Verdict, judge
from plast_train.context import Context
from plast_train.errors import Diverged, Interrupted, UserError
from plast_train.lvlm.lora import MergedWeights
from plast_train.lvlm.weights import StoredTensor, disk_tensors, header_bytes, model_files, tensors_of
from plast_train.run_folder import publish_folder, sync_file
from plast_train.runtime.distributed import stop_requested
from plast_train.runtime.late_files import FileWait
from plast_train.training.model_card import model_card

# Everything of a base that is not weights and that transformers reads, and its licence.
_COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_CHUNK = 16 * 2**20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export(context: Context) -> list[Path]:
    """Writes `RUN/export/`, a Hugging Face model folder, from the newest checkpoint. Rank 0 does the work.

    Raises:
        Diverged: on every rank; a trained weight is not finite.
        UserError: on every rank; there is no checkpoint, or it is broken (the next run replaces it) or of
            another base.
        Interrupted: on every rank; a stop signal came.
    """
    context.ranks.on_first(lambda: _export(context))
    return [context.run.export]


def _export(context: Context) -> None:
    run, base = context.run, Path(context.base["path"])
    checkpoint, manifest = _newest(context)
    masters: Mapping[str, torch.Tensor] = load_masters(checkpoint, manifest)
    if context.config.train.method == "lora":
        masters = MergedWeights(base, masters, context.config.train.lora_scale)
    card = model_card(context.config, run, manifest)
    write_export(base, context.base["files"], masters, run.export, card)
    changed = check_export(base, run.export, masters)
    context.ranks.say(
        f"export: {run.export} ({changed} tensors of the base replaced, all others equal to the byte)"
    )


def _newest(context: Context) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint, which is whole and of this base, and its manifest."""
    run, found = context.run, checkpoints(context.run.checkpoints)
    if not found:
        raise UserError(f"{Verdict(Case.NONE, run.checkpoints).problem}; run `plast train` first")
    verdict = judge(found[0], {"base": context.base["fingerprint"]}, FileWait(context.ranks.say))
    if verdict.case is Case.BROKEN:
        # Training ended with this checkpoint, so it is no longer done.
        run.forget("train")
        raise UserError(
            f"{verdict.problem}; run the same command again: it resumes training from the newest whole "
            "checkpoint"
        )
    if not verdict.fits:
        raise UserError(verdict.sentence())
    return found[0], verdict.manifest


def write_export(
    base: Path, hashes: Mapping[str, str], masters: Mapping[str, torch.Tensor], target: Path, card: str
) -> None:
    """Publishes `target`: the folder `base` with `masters` (by parameter name) cast to the dtype they have on
    disk, and `card` as its README.md. `hashes` gives the SHA-256 of files of the base.

    Raises:
        UserError: the base's files are not those of `hashes`, lack a trained tensor, or hold it in another
            shape or a dtype that cannot be written.
    """
    files = _files_of(base)
    stored = disk_tensors(base, masters)
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in files:
        copy = temporary / file.name
        read = _copy(file, copy)
        if hashes.get(file.name, read) != read:
            raise UserError(
                f"{file}: is not the file that the run started with; put that file back, or start a new run"
            )
        _overwrite(copy, {name: at for name, at in stored.items() if at.file == file}, masters)
        sync_file(copy)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    sync_file(temporary / "README.md")
    publish_folder(temporary, target)


def check_export(base: Path, export: Path, trained: Collection[str]) -> int:
    """Compares the written export with the base and returns how many tensors differ.

    Raises:
        RuntimeError: a file, a header or a tensor that is not among `trained` (parameter names) differs.
    """
    allowed = {stored.key for stored in disk_tensors(base, trained).values()}
    changed = 0
    for file in _files_of(base):
        other = export / file.name
        if not other.is_file():
            raise RuntimeError(f"{other}: missing")
        if file.suffix != ".safetensors":
            if file.read_bytes() != other.read_bytes():
                raise RuntimeError(f"{other}: differs from the base's")
            continue
        if header_bytes(file) != header_bytes(other):
            raise RuntimeError(f"{other}: other keys, dtypes or shapes than the base's")
        if file.stat().st_size != other.stat().st_size:
            raise RuntimeError(f"{other}: another size than the base's")
        for stored in tensors_of(file):
            if not _same_bytes(file, other, stored.start, stored.stop):
                if stored.key not in allowed:
                    raise RuntimeError(f"{other}: {stored.key} differs from the base, but was not trained")
                changed += 1
    return changed


def _files_of(base: Path) -> list[Path]:
    others = [
        path
        for path in sorted(base.iterdir())
        if path.is_file()
        and (path.suffix in _COPIED or path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")))
        and not path.name.endswith(".bin.index.json")
    ]
    return others + model_files(base)


def _copy(source: Path, target: Path) -> str:
    """Copies and returns the SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            _stop_if_asked()
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _overwrite(file: Path, places: Mapping[str, StoredTensor], masters: Mapping[str, torch.Tensor]) -> None:
    with file.open("r+b") as writer:
        for name, stored in places.items():
            master = masters[name]
            if stored.dtype not in _DTYPES or stored.shape != tuple(master.shape):
                raise UserError(
                    f"{stored.file}: {stored.key} is {stored.dtype} {stored.shape}; the trained tensor has "
                    f"shape {tuple(master.shape)}, and only {', '.join(_DTYPES)} can be written"
                )
            values = master.to(_DTYPES[stored.dtype]).contiguous()
            if not bool(values.isfinite().all()):
                raise Diverged(
                    f"{stored.key}: a trained weight is not finite in {stored.dtype}: the training diverged"
                )
            writer.seek(stored.start)
            writer.write(values.view(torch.uint8).numpy().tobytes())


def _same_bytes(one: Path, other: Path, start: int, stop: int) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        a.seek(start)
        b.seek(start)
        while start < stop:
            _stop_if_asked()
            size = min(_CHUNK, stop - start)
            if a.read(size) != b.read(size):
                return False
            start += size
    return True


def _stop_if_asked() -> None:
    if stop_requested():
        raise Interrupted("export: stopped by a signal; the next run starts it over")
