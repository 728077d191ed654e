"""The note a rank leaves when it ends early. Exit codes of ranks are lost on their way through torchrun, so
the launchers of all machines read these notes in the run folder instead."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plast_train.run_folder import publish_text, to_json

# How often a rank reports its progress to the others (more often where the watchdog's limit is short).
MOST_PULSE_SECONDS = 2.0
# By then, after the first note of a hang, every rank that still runs has left its own: ranks learn of
# another's last progress up to two pulses late, and as long again is for file systems.
SECONDS_FOR_HANG_NOTES = 4 * MOST_PULSE_SECONDS


def this_start() -> str:
    """Job and restart under Slurm, empty elsewhere."""
    return ".".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")).strip(".")


@dataclass(frozen=True)
class Failure:
    """Why a rank ended early.

    `kind` is interrupted, user, hang, killed or defect. `in_exchange`: the rank was exchanging with others,
    so its failure may well follow from another rank's. `where` is its stack location. `start` names the start
    of the Slurm job: a lost node's ranks may fail long after the job was restarted elsewhere.
    """

    rank: int
    kind: str
    message: str
    stage: str | None = None
    in_exchange: bool = False
    where: str = ""
    traceback: str = ""
    start: str = field(default_factory=this_start)
    time: float = field(default_factory=time.time)


def note_path(logs: Path, rank: int) -> Path:
    return logs / f"failure-rank-{rank}.json"


def stacks_path(logs: Path, rank: int) -> Path:
    """The stacks of a hung rank's threads."""
    return logs / f"stacks-rank-{rank}.txt"


def publish_failure(logs: Path, failure: Failure) -> None:
    """Raises OSError where the run folder cannot be written."""
    publish_text(note_path(logs, failure.rank), to_json(asdict(failure)))


def note_paths(logs: Path) -> list[Path]:
    return sorted(logs.glob("failure-rank-*.json"))


def read_failures(paths: list[Path]) -> list[Failure]:
    """The notes; one that the file system does not show yet is left out."""
    failures = []
    for path in paths:
        try:
            failures.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            continue
    return failures


def first_failure(failures: list[Failure]) -> Failure | None:
    """The one that the others follow from: failures in an exchange come last, whatever the machines' clocks
    say, and a killed rank, whose note its launcher writes late, comes first."""
    return min(failures, key=lambda f: (f.in_exchange, f.kind != "killed", f.time), default=None)
