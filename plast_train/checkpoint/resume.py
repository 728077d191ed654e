"""The one place that decides about resuming: what may be wrong with a checkpoint, and what happens then.

Training asks `choose`, the launcher `require_base` before ranks start and `go_back` after a second fault at
the same step; exporting and the analyses ask `judge` about the checkpoint they want to read. Imports no
torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plast_train.checkpoint.format import (
    MANIFEST,
    BrokenCheckpoint,
    Identity,
    check_contents,
    checkpoints,
    read_manifest,
)
from plast_train.errors import UserError
from plast_train.runtime.late_files import FileWait, has_bytes

if TYPE_CHECKING:  # the module itself imports torch
    from plast_train.runtime.distributed import Ranks


class Case(Enum):
    FITS = "fits"
    NONE = "none"
    BROKEN = "broken"
    OTHER_BASE = "other base"
    OTHER_LAYERS = "other layers"
    OTHER_SETTINGS = "other settings"
    FAILED_TWICE = "failed twice here"


class Action(Enum):
    RESUME = "resume from it"
    START = "start from the base model"
    USE_ONE_BEFORE = "move it to RUN/suspect and use the one before"
    REFUSE = "stop with an error, touching nothing"
    TRAIN_ANEW = "move all to RUN/checkpoints-before-N and start from the base model"


# Per case: what training does, what is the matter, and what follows. A reader that does not train (export,
# analyses) reports what is the matter with a consequence of its own.
TABLE: dict[Case, tuple[Action, str, str]] = {
    Case.FITS: (Action.RESUME, "{path} fits this run", "training resumes from it"),
    Case.NONE: (Action.START, "{path} holds no checkpoint", "training starts from the base model"),
    Case.BROKEN: (
        Action.USE_ONE_BEFORE,
        "checkpoint {path} is broken: {detail}",
        "it {aside}, and the checkpoint before it is used",
    ),
    # A checkpoint holds only the trained tensors, so it is of no use without its base. The user has most
    # likely given a wrong path, so nothing is moved or retrained.
    Case.OTHER_BASE: (
        Action.REFUSE,
        "{path} was made from another base model ({detail})",
        "set model.path to that base again, give another --out, or remove {folder} to train from scratch",
    ),
    # What is trained or how was changed on purpose, so training is redone; but what may have taken days to
    # train is kept.
    Case.OTHER_LAYERS: (
        Action.TRAIN_ANEW,
        "{path} holds other trained weights than this run selects ({detail})",
        "training starts from the base model; all checkpoints are now in {aside}, which can be removed when "
        "no longer needed",
    ),
    Case.OTHER_SETTINGS: (
        Action.TRAIN_ANEW,
        "{path} was trained with other settings ({detail})",
        "training starts from the base model; all checkpoints are now in {aside}, which can be removed when "
        "no longer needed",
    ),
    # The state after the newest checkpoint may itself be the cause (a loss about to diverge, a bad write).
    Case.FAILED_TWICE: (
        Action.USE_ONE_BEFORE,
        "the run failed twice {detail}",
        "the newest checkpoint, {path}, {aside}, and training resumes from the one before it",
    ),
}


@dataclass(frozen=True)
class Verdict:
    """What was found about one checkpoint. `manifest` is its manifest where it could be read."""

    case: Case
    path: Path
    detail: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.case is Case.FITS

    @property
    def action(self) -> Action:
        return TABLE[self.case][0]

    @property
    def problem(self) -> str:
        """What is the matter, without what follows from it."""
        return TABLE[self.case][1].format(path=self.path, detail=self.detail)

    def sentence(self, aside: str = "") -> str:
        """What the user reads; `aside` says where the checkpoint was moved to."""
        follows = TABLE[self.case][2].format(path=self.path, folder=self.path.parent, aside=aside)
        return f"{self.problem}; {follows}"


def judge_manifest(checkpoint: Path, wanted: dict[str, Any], file_wait: FileWait | None = None) -> Verdict:
    """Compares the manifest alone with `wanted`: any of `Identity`'s keys, with the values of this run."""
    try:
        manifest = read_manifest(checkpoint, file_wait)
    except BrokenCheckpoint as error:
        return Verdict(Case.BROKEN, checkpoint, str(error))
    found = {key: manifest[key] for key in wanted}
    if found.get("base") != wanted.get("base"):
        detail = f"SHA-256 {found['base'][:16]}…, model.path has {wanted['base'][:16]}…"
        return Verdict(Case.OTHER_BASE, checkpoint, detail, manifest)
    layers = ({key: part.get(key) for key in ("layers", "modules")} for part in (found, wanted))
    if changed := _changes(*layers):
        return Verdict(Case.OTHER_LAYERS, checkpoint, changed, manifest)
    if found.get("parameters") != wanted.get("parameters"):
        return Verdict(Case.OTHER_LAYERS, checkpoint, "other tensors or shapes of these layers", manifest)
    if changed := _changes(found.get("settings", {}), wanted.get("settings", {})):
        return Verdict(Case.OTHER_SETTINGS, checkpoint, changed, manifest)
    return Verdict(Case.FITS, checkpoint, "", manifest)


def judge(checkpoint: Path, wanted: dict[str, Any], file_wait: FileWait) -> Verdict:
    """As `judge_manifest`, and then reads the shards, whose every byte must be the one that was written."""
    verdict = judge_manifest(checkpoint, wanted, file_wait)
    if verdict.fits:
        try:
            check_contents(checkpoint, verdict.manifest, file_wait)
        except BrokenCheckpoint as error:
            return Verdict(Case.BROKEN, checkpoint, str(error), verdict.manifest)
    return verdict


def choose(folder: Path, identity: Identity, ranks: Ranks) -> Path | None:
    """The checkpoint to resume from, or None to start from the base: rank 0 decides and tells the others.
    Checkpoints that cannot be used are moved out of the way as `TABLE` says. Called by every rank.

    Raises:
        UserError: a checkpoint was made from another base.
    """
    wait_for_view(folder, ranks)
    return ranks.on_first(lambda: decide(folder, identity, ranks.say))


def decide(folder: Path, identity: Identity, say: Callable[[str], None]) -> Path | None:
    """What `choose` does on rank 0. A broken checkpoint is moved although it could be skipped: it must
    not take a whole one's place among the kept, nor be gone back to."""
    file_wait = FileWait(say)  # one for all, so that the wait is bounded however many files are missing
    for path in checkpoints(folder):
        verdict = judge(path, vars(identity), file_wait)
        if verdict.action is Action.RESUME:
            return path
        if verdict.action is Action.REFUSE:
            raise UserError(verdict.sentence())
        if verdict.action is Action.TRAIN_ANEW:
            say(f"WARNING: {verdict.sentence(str(_move_all_aside(folder)))}")
            return None
        try:
            aside = f"is set aside as {_move_aside(path)}"
        except OSError as error:  # it stays, and is judged again next time
            aside = f"cannot be set aside ({error})"
        say(f"WARNING: {verdict.sentence(aside)}")
    say(Verdict(Case.NONE, folder).sentence())
    return None


def wait_for_view(folder: Path, ranks: Ranks) -> None:
    """Waits until rank 0, which decides, sees the newest checkpoint that any rank sees: a shared file system
    may show it late. Removes what killed runs left. Called by every rank."""
    names = [name for part in ranks.gather([p.name for p in checkpoints(folder)[:1]]) for name in part]
    if ranks.is_first:
        if names:
            path = folder / max(names) / MANIFEST
            FileWait(ranks.say).until(lambda: has_bytes(path, 1), path)
        sweep(folder)
    # No rank may begin to save while rank 0 still removes unfinished folders.
    ranks.barrier()


def sweep(folder: Path) -> None:
    """Removes unfinished and half-deleted checkpoints; their names begin with a dot."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def require_base(folder: Path, base: str) -> None:
    """The launcher's check before ranks start, from the manifests alone; broken ones are left to `choose`.

    Raises:
        UserError: the folder holds a checkpoint that was made from another base than that fingerprint.
    """
    for path in checkpoints(folder):
        verdict = judge_manifest(path, {"base": base})
        if verdict.action is Action.REFUSE:
            raise UserError(verdict.sentence())


def go_back(folder: Path, where: str) -> str | None:
    """Moves the newest checkpoint aside after two faults in a row at one step (`where`), and returns the
    sentence for the user; None where there is no checkpoint."""
    newest = next(iter(checkpoints(folder)), None)
    if newest is None:
        return None
    return Verdict(Case.FAILED_TWICE, newest, where).sentence(f"is set aside as {_move_aside(newest)}")


def _move_aside(checkpoint: Path) -> Path:
    """Moves one checkpoint into `RUN/suspect`, where neither `checkpoint.keep` counts it nor a later run goes
    back to it, and returns where it is now."""
    folder, number = checkpoint.parent.parent / "suspect", 1
    folder.mkdir(exist_ok=True)
    aside = folder / checkpoint.name
    while aside.exists():
        number += 1
        aside = folder / f"{checkpoint.name}-{number}"
    checkpoint.rename(aside)
    return aside


def _move_all_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}-before-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """`key: old → new` for each value that changed, or an empty string."""
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in keys)
