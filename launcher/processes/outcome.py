"""How an attempt ended and why: from the failure notes of all ranks and what torchrun says."""

from __future__ import annotations

import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from plast_train.runtime.failures import (
    Failure,
    first_failure,
    note_paths,
    publish_failure,
    read_failures,
    this_start,
)

# How a line of torchrun's agent begins in its log, and how it tells that a signal ended a rank.
_AGENT_SAYS = re.compile(r"^\S+ \S+ \d+ torch/distributed/", re.MULTILINE)
_RANK_KILLED = re.compile(r"rank +: (?P<rank>\d+) .*\n +exitcode +: -(?P<signal>\d+) ")
# Where all that is known follows from a failure elsewhere, how long to wait for the other machine's note.
SECONDS_FOR_OTHER_MACHINES = 15


@dataclass(frozen=True)
class Outcome:
    """`kind` is done, interrupted, user, hang, killed or defect; `message` a line, `trace` what precedes."""

    kind: str
    message: str = ""
    rank: int | None = None
    stage: str | None = None
    trace: str = ""


class Notes:
    """The failure notes of one attempt: those that were there before belong to an earlier one, and so do
    those of ranks that an earlier start of this job has left behind."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._old = {path: _stamp(path) for path in note_paths(logs)}

    def read(self) -> list[Failure]:
        fresh = [path for path in note_paths(self.logs) if self._old.get(path) != _stamp(path)]
        return [failure for failure in read_failures(fresh) if failure.start == this_start()]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def outcome_of(notes: Notes, log: Path, code: int, first_rank: int, several_machines: bool) -> Outcome:
    """Why the ranks ended, after torchrun here ended with `code`; `log` is what it said.

    A rank that was killed cannot say so itself, so its machine's launcher leaves the note, for all to read.
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


_MEMORY = "; if memory ran out (see dmesg), lower tokens_per_row or give fewer ranks"


def _hang(failures: list[Failure]) -> Outcome:
    """Names those that did not wait for others; where all wait, each with its place."""
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
    """A rank that failed before it could leave a note writes where torchrun does."""
    trace = _AGENT_SAYS.split(agent, maxsplit=1)[0].rstrip()
    last = trace.splitlines()[-1] if trace else f"torchrun ended with code {code}"
    return Outcome("defect", last, trace=trace)
