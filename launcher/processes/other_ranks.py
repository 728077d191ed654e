"""The ranks on this machine after one anywhere has failed: they wait for it, and are not to wait long."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from launcher.processes.outcome import Notes
from plast_train.runtime.failures import SECONDS_FOR_HANG_NOTES, Failure, publish_failure, stacks_path

# Seconds that ranks get to end after another has failed.
SECONDS_TO_END = 5
# More where all end together and write something down first: what hangs, and what was interrupted.
SECONDS_TO_END_TOGETHER = 30
SECONDS_BETWEEN_LOOKS = 1.0


class OtherRanks:
    """Those that torchrun's agent here has started."""

    def __init__(self, agent: int, notes: Notes) -> None:
        self._agent, self._notes = agent, notes
        self._looked = self._first_note = self._first_hang = 0.0
        self._described = False

    def are_overdue(self) -> bool:
        """Whether a rank has failed so long ago that those here should be gone. To be asked often."""
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = now
        kinds = {failure.kind for failure in self._notes.read()}
        if not kinds:
            return False
        self._first_note = self._first_note or now
        if "hang" in kinds:
            self._first_hang = self._first_hang or now
            if not self._described and now - self._first_hang > SECONDS_FOR_HANG_NOTES:
                self._described = True
                self._describe_silent()
        together = kinds & {"hang", "interrupted"}
        return now - self._first_note > (SECONDS_TO_END_TOGETHER if together else SECONDS_TO_END)

    def _describe_silent(self) -> None:
        """Speaks for ranks that cannot: a stopped process, or one that the system holds in a call."""
        spoken = {failure.rank for failure in self._notes.read()}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._agent).children():
                with contextlib.suppress(psutil.NoSuchProcess, KeyError):
                    rank = int(process.environ()["RANK"])
                    if rank not in spoken:
                        _speak_for(rank, process, self._notes.logs)


def _speak_for(rank: int, process: psutil.Process, logs: Path) -> None:
    state = process.status()
    lines = [f"rank {rank}, process {process.pid}, wrote nothing of itself; the system says: {state}"]
    for thread in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
        with contextlib.suppress(OSError):  # a thread that has just ended
            name, waits = (thread / "comm").read_text().strip(), (thread / "wchan").read_text()
            lines.append(f"thread {thread.name} ({name}): in the kernel at {waits}")
    stacks_path(logs, rank).write_text("\n".join(lines) + os.linesep, encoding="utf-8")
    where = f"an unknown place (the system says: {state})"
    publish_failure(logs, Failure(rank, "hang", "nothing moved", where=where))
