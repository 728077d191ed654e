"""How each launch with ranks ended: `RUN/attempts.jsonl`, and what follows from it for the next one.

An attempt that never ended was lost from outside (a node, a SIGKILL of everything) and says nothing about the
run. Those that ended by a fault of the run's own are counted: after two in a row at one place of the training
the next launch resumes from the checkpoint before (`checkpoint.resume`), after three the run is given up
with a diagnosis.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plast_train.checkpoint import resume
from plast_train.run_folder import RunFolder, publish_text

# Faults of the run's own, unlike being lost, `interrupted`, or an error of the `user`.
OWN_FAULTS = ("hang", "killed", "defect")
# After these the same command may well succeed, so a job script restarts it.
RESTARTED = (*OWN_FAULTS, "interrupted")
# One fault may be chance (a flaky GPU or network). A second at the same step points at the checkpoint that
# both resumed from; a third, from another checkpoint, at the data or the program, which no restart changes.
FAULTS_BEFORE_GOING_BACK = 2
FAULTS_BEFORE_GIVING_UP = 3


@dataclass(frozen=True)
class Attempt:
    """One launch. `kind` is done, interrupted, user, hang, killed or defect; None while it runs, or lost."""

    number: int
    began: dict[str, Any]
    ended: dict[str, Any] | None = None

    @property
    def kind(self) -> str | None:
        return self.ended["kind"] if self.ended else None

    @property
    def place(self) -> tuple[str | None, int | None]:
        """The stage and, while training, the last finished step."""
        return (self.ended["stage"], self.ended["step"]) if self.ended else (None, None)


def attempts_path(run: RunFolder) -> Path:
    return run.path / "attempts.jsonl"


def again_path(run: RunFolder) -> Path:
    """Exists, with a line of reason, while the same command should be started again."""
    return run.logs / "again"


def read_attempts(run: RunFolder) -> list[Attempt]:
    """All attempts in order; a line that a kill has torn is left out."""
    attempts: dict[int, Attempt] = {}
    path = attempts_path(run)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn
        number = event["attempt"]
        if event["event"] == "began":
            attempts[number] = Attempt(number, event)
        elif number in attempts:
            attempts[number] = Attempt(number, attempts[number].began, event)
    return list(attempts.values())


def begin(run: RunFolder, nproc: int, machines: int) -> int:
    """Records that an attempt begins, and returns its number. To be called under the run's lock."""
    number = max((attempt.number for attempt in read_attempts(run)), default=0) + 1
    again_path(run).unlink(missing_ok=True)
    event = {
        "attempt": number,
        "event": "began",
        "time": _now(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nproc": nproc,
        "machines": machines,
    }
    _append(attempts_path(run), event)
    return number


def end(
    run: RunFolder,
    number: int,
    kind: str,
    message: str,
    stage: str | None = None,
    step: int | None = None,
    rank: int | None = None,
) -> None:
    event = {"attempt": number, "event": "ended", "time": _now(), "kind": kind}
    event |= {"stage": stage, "step": step, "rank": rank, "message": message}
    _append(attempts_path(run), event)


def ask_for_restart(run: RunFolder, reason: str) -> None:
    """Asks whoever started the launcher (a job script, a container's restart policy) to do so again."""
    publish_text(again_path(run), " ".join(reason.split()) + "\n")


def faults_in_a_row(attempts: list[Attempt]) -> list[Attempt]:
    """The last of the ended attempts that failed by their own fault at one and the same place."""
    row: list[Attempt] = []
    for attempt in reversed([a for a in attempts if a.ended]):
        if attempt.kind not in OWN_FAULTS or (row and attempt.place != row[0].place):
            break
        row.insert(0, attempt)
    return row


def go_back(run: RunFolder) -> str | None:
    """After two faults in a row at one step of the training: sets the newest checkpoint aside, so that the
    run resumes from the one before, and returns the sentence for the user. Called under the run's lock."""
    row = faults_in_a_row(read_attempts(run))
    if len(row) != FAULTS_BEFORE_GOING_BACK or row[0].place[0] != "train":
        return None
    return resume.go_back(run.checkpoints, _where(*row[0].place))


def diagnosis(run: RunFolder) -> str | None:
    """The message when the run has failed for the third time at one place, and should not be tried again."""
    row = faults_in_a_row(read_attempts(run))
    if len(row) < FAULTS_BEFORE_GIVING_UP:
        return None
    lines = [f"failed {len(row)} times {_where(*row[0].place)}; it is not restarted automatically:"]
    for attempt in row:
        assert attempt.ended is not None
        rank = "" if attempt.ended["rank"] is None else f", rank {attempt.ended['rank']}"
        lines.append(f"  attempt {attempt.number} ({attempt.kind}{rank}): {attempt.ended['message']}")
    lines.append("look at: " + "; ".join(dict.fromkeys(_REMEDIES[str(attempt.kind)] for attempt in row)))
    return "\n".join(lines)


def _where(stage: str | None, step: int | None) -> str:
    if stage is None:
        return "before the first stage"
    return f"in the stage {stage}" + (f", after step {step}" if step is not None else "")


_REMEDIES = {
    "hang": "the stacks in logs/stacks-rank-*.txt, and the named rank's machine (dmesg, nvidia-smi)",
    "killed": "memory (dmesg, `plast plan`): lower tokens_per_row or use fewer ranks",
    "defect": "the trace in logs/rank-*.log; the same place each time points at the records of that step",
}


def _append(path: Path, event: dict[str, Any]) -> None:
    """Adds a line, on a line of its own also after a torn one; it is on the disk when this returns."""
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write((json.dumps(event, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl; None before the first step."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))  # bytes, some hundred lines
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):  # what follows the last newline is being written, or torn
        try:
            metrics: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        return metrics
    return None


class MetricsFile:
    """metrics.jsonl as it is before an attempt: training writes a new file when its loop begins."""

    def __init__(self, path: Path) -> None:
        self.path, self._before = path, _inode(path)

    def last_step(self) -> int | None:
        """The last step that this attempt has finished or resumed from; None where its loop never began."""
        metrics = last_metrics(self.path) if _inode(self.path) != self._before else None
        return metrics["step"] if metrics else None


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
