"""How an attempt ends and why: from the failure notes of all ranks and torchrun's own log.

A rank that fails leaves the others waiting for it. Each machine's launcher sees the note, gives its own ranks
a short time (`OtherRanks`), and then says what came first (`outcome_of`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from plast_train.runtime.failures import (
    SECONDS_FOR_HANG_NOTES,
    Failure,
    first_failure,
    note_paths,
    publish_failure,
    read_failures,
    stacks_path,
    this_start,
)

# How a line of torchrun's agent begins in its log, and how it reports that a signal ended a rank.
_AGENT_SAYS = re.compile(r"^\S+ \S+ \d+ torch/distributed/", re.MULTILINE)
_RANK_KILLED = re.compile(r"rank +: (?P<rank>\d+) .*\n +exitcode +: -(?P<signal>\d+) ")
# Where every known failure follows from one elsewhere, how long to wait for the other machine's note: its
# launcher needs a moment to see a killed rank, and a shared file system some seconds to show the note.
SECONDS_FOR_OTHER_MACHINES = 15
# Ranks whose connection has broken fail at once, and a rank that cannot stops the others from ending.
SECONDS_TO_END = 5
# Longer where all end together and write something first: the stacks of a hang, the checkpoint of an
# interruption.
SECONDS_TO_END_TOGETHER = 30
SECONDS_BETWEEN_LOOKS = 1.0
_MEMORY = "; if memory ran out (see dmesg), lower tokens_per_row or use fewer ranks"


@dataclass(frozen=True)
class Outcome:
    """`kind` is done, interrupted, user, hang, killed or defect; `message` a line, `trace` the traceback."""

    kind: str
    message: str = ""
    rank: int | None = None
    stage: str | None = None
    trace: str = ""


class Notes:
    """The failure notes of one attempt: those that existed before belong to an earlier one, and so do those
    of ranks that an earlier start of this job has left behind."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._before = {path: _stamp(path) for path in note_paths(logs)}

    def read(self) -> list[Failure]:
        fresh = [path for path in note_paths(self.logs) if self._before.get(path) != _stamp(path)]
        return [failure for failure in read_failures(fresh) if failure.start == this_start()]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


class OtherRanks:
    """The ranks on this machine after one anywhere has failed: they wait for it, and must not wait long."""

    def __init__(self, agent: int, notes: Notes) -> None:
        self._agent, self._notes = agent, notes
        self._looked = self._first_note = self._first_hang = 0.0
        self._described = False

    def are_overdue(self) -> bool:
        """Whether a rank failed so long ago that those here should have ended. To be called often."""
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
                _describe_silent(self._agent, self._notes)
        together = kinds & {"hang", "interrupted"}
        return now - self._first_note > (SECONDS_TO_END_TOGETHER if together else SECONDS_TO_END)


def _describe_silent(agent: int, notes: Notes) -> None:
    """Leaves the notes of hung ranks that cannot: a stopped process, or one that a system call holds."""
    spoken = {failure.rank for failure in notes.read()}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(agent).children():
            with contextlib.suppress(psutil.NoSuchProcess, KeyError):
                rank = int(process.environ()["RANK"])
                if rank in spoken:
                    continue
                state = process.status()
                lines = [f"rank {rank}, process {process.pid}, left no stacks; its state is: {state}"]
                for thread in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
                    with contextlib.suppress(OSError):  # a thread that has just ended
                        name, waits = (thread / "comm").read_text().strip(), (thread / "wchan").read_text()
                        lines.append(f"thread {thread.name} ({name}): in the kernel at {waits}")
                stacks_path(notes.logs, rank).write_text("\n".join(lines) + os.linesep, encoding="utf-8")
                where = f"an unknown place (its process state is: {state})"
                publish_failure(notes.logs, Failure(rank, "hang", "no rank made progress", where=where))


def outcome_of(notes: Notes, log: Path, code: int, first_rank: int, several_machines: bool) -> Outcome:
    """Why the ranks ended, after torchrun here ended with `code`; `log` is its output.

    A rank that was killed cannot report it, so its machine's launcher leaves the note, for all to read.
    """
    if code == 0 and not notes.read():
        return Outcome("done")
    agent = log.read_text(encoding="utf-8", errors="replace")
    killed = _killed_rank(agent, code, first_rank)
    if killed is not None and killed.rank not in {failure.rank for failure in notes.read()}:
        publish_failure(notes.logs, killed)
    failures = notes.read()
    deadline = time.monotonic() + SECONDS_FOR_OTHER_MACHINES
    while several_machines and all(f.in_exchange for f in failures) and time.monotonic() < deadline:
        time.sleep(0.5)
        failures = notes.read()
    first = first_failure(failures)
    if first is None:
        return _unexplained(agent, code)
    if first.kind == "hang":
        return _hang([failure for failure in failures if failure.kind == "hang"])
    message = (
        first.message if first.kind in ("user", "interrupted") else f"rank {first.rank}: {first.message}"
    )
    return Outcome(first.kind, message, first.rank, first.stage, first.traceback)


def _killed_rank(agent: str, code: int, first_rank: int) -> Failure | None:
    """The rank here that a signal ended. One that aborted comes last: that is how NCCL answers the failure
    of another rank."""
    host = socket.gethostname()
    found = [(int(m["rank"]), signal.Signals(int(m["signal"])).name) for m in _RANK_KILLED.finditer(agent)]
    if found:
        rank, name = min(found, key=lambda one: one[1] == "SIGABRT")
        message = f"was ended by {name} on {host}" + (_MEMORY if name == "SIGKILL" else "")
        return Failure(rank, "killed", message, in_exchange=name == "SIGABRT")
    if code < 0:
        message = f"torchrun on {host} was ended by {signal.Signals(-code).name}" + _MEMORY
        return Failure(first_rank, "killed", message)
    return None


def _hang(failures: list[Failure]) -> Outcome:
    """Names the ranks that did not wait for others; where all wait, every rank with its stack location."""
    failures = sorted(failures, key=lambda failure: failure.rank)
    culprits = [failure for failure in failures if not failure.in_exchange]
    named = ", ".join(f"rank {f.rank} at {f.where}" for f in culprits or failures)
    if not culprits:
        why = "all ranks wait for each other"
    elif len(culprits) < len(failures):
        why = "the others wait in an exchange"
    else:
        why = "no rank waits for another"
    first = (culprits or failures)[0]
    message = f"{first.message}: {named}; {why}; the stacks are in logs/stacks-rank-*.txt"
    return Outcome("hang", message, culprits[0].rank if culprits else None, first.stage)


def _unexplained(agent: str, code: int) -> Outcome:
    """A rank that failed before it could leave a note has written into torchrun's log."""
    trace = _AGENT_SAYS.split(agent, maxsplit=1)[0].rstrip()
    last = trace.splitlines()[-1] if trace else f"torchrun ended with code {code}"
    return Outcome("defect", last, trace=trace)
