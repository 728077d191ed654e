"""Kills runs of two ranks with SIGKILL at random moments until they end, and compares how they end with a run
that was left alone.

    python tests/kill_runs.py FOLDER [--kills 100] [--seed 0]

One process has imported everything and forks the ranks, so that an attempt starts in a second, not in ten.
Two kills of three come just before one operation on a file, drawn at random, of a place that was hit least
so far (saving, publishing, deleting, …); the third comes by the clock. Prints what was hit, as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

from plast_train import pipeline
from plast_train.runtime.distributed import end_ranks
from plast_train.stages import STAGES
from support.checkpoint_makers import newest_whole
from support.kill_world import STEPS, make_world, require_same_end

RANKS = 2
LONGEST = 300.0  # seconds that an attempt may take
PR_SET_CHILD_SUBREAPER = 36
# Where an operation on a file belongs, and the stage that does it. Kills go round in this order.
PLACES = {
    "collecting": "collect",
    "saving": "train",
    "publishing": "train",
    "deleting": "train",
    "exporting": "export",
    "evaluating": "evaluate",
    "analysing": "analyse",
    "resuming": "train",
    "training": "train",
    "selecting": "select",
    "reporting": "report",
    "recording": "report",  # the records of all stages
}
STARTS = {
    "activations": "collecting",
    "metrics.jsonl": "training",
    "tensorboard": "training",
    "evaluation": "evaluating",
    "analysis": "analysing",
    "report": "reporting",
    "stages": "recording",
}
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def place_of(operation: str, path: str, writes: bool) -> str | None:
    """The place of an operation on the file of this path below the run folder."""
    first, _, rest = path.partition("/")
    if first == "checkpoints":
        return checkpoint_place(operation, rest)
    if not writes:
        return None
    if "export" in first:
        return "exporting"
    if "selection.json" in first or "summary.json" in rest:
        return "selecting"
    return STARTS.get(first)


def checkpoint_place(operation: str, path: str) -> str:
    if ".deleted" in path:
        return "deleting"
    if ".partial" not in path:
        return "deleting" if operation == "os.rename" else "resuming"
    return "publishing" if operation == "os.rename" or "manifest" in path else "saving"


class Hook:
    """Counts a process's operations by place and, told to, kills its process group before one of them."""

    def __init__(self, run: Path, place: str | None = None, number: int = 0) -> None:
        self.root, self.place, self.number = f"{run}/", place, number
        self.counts: Counter[str] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not isinstance(arguments[0], str | Path):
            return
        path = str(arguments[0])
        if not path.startswith(self.root):
            return
        writes = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        place = place_of(event, path.removeprefix(self.root), writes)
        if place is None:
            return
        self.counts[place] += 1
        if place == self.place and self.counts[place] == self.number:
            os.killpg(0, signal.SIGKILL)


@dataclass
class Left:
    """What an attempt finished, which no later one may do again or lose."""

    records: dict[str, tuple[int, int]]
    newest: str

    @staticmethod
    def of(run: Path) -> Left:
        paths = [run / "stages" / f"{stage}.json" for stage in STAGES]
        records = {p.stem: (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths if p.exists()}
        found = newest_whole(run / "checkpoints", fail)
        return Left(records, found.name if found else "")

    def require_kept(self, later: Left) -> None:
        assert self.records.items() <= later.records.items(), f"done again: {self.records} {later.records}"
        assert self.newest <= later.newest, f"lost {self.newest}, the newest is {later.newest}"


def fail(message: str) -> None:
    raise AssertionError(message)


def forked(action: Callable[[], Any]) -> int:
    """Runs the action in a process of its own; returns the process's id."""
    child = os.fork()
    if child != 0:
        return child
    code = 1
    try:
        code = action() or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    end_ranks(code)
    raise AssertionError  # never reached


def attempt(run: Path, hook: Hook, seconds: float | None) -> bool:
    """Starts the ranks; whether they were killed, by the hook or after that time, before they were done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = forked(lambda: run_ranks(run, hook, port))
    began, status = time.monotonic(), None
    while status is None:
        time.sleep(0.002)
        passed = time.monotonic() - began
        if passed > min(LONGEST, LONGEST if seconds is None else seconds):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        done, ended = os.waitpid(group, os.WNOHANG)
        status = ended if done else None
    with suppress(ChildProcessError):
        while True:  # the ranks, whose parent this process has become
            os.waitpid(-group, 0)
    assert passed < LONGEST, f"the ranks hang: see {run / 'logs'}"
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"status {status}: see {run / 'logs'}"
    return killed


def run_ranks(run: Path, hook: Hook, port: int) -> int:
    """The ranks of one attempt in a process group of their own. When one ends badly the other is ended."""
    os.setsid()
    ranks = [forked(lambda rank=rank: one_rank(run, hook, rank, port)) for rank in range(RANKS)]  # type: ignore[misc]
    while ranks:
        rank, status = os.wait()
        ranks.remove(rank)
        if status != 0:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def one_rank(run: Path, hook: Hook, rank: int, port: int) -> int:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    terminal = os.open(run / "terminal.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    sys.addaudithook(hook)
    code = pipeline.main([str(run), *STAGES])
    if rank == 0:
        (run / "seen.json").write_text(json.dumps({"counts": hook.counts, "modules": sorted(sys.modules)}))
    return code


class Killer:
    """Draws the moments and counts what they hit."""

    def __init__(self, seed: int, counts: dict[str, int], seconds: float) -> None:
        self.random, self.counts, self.seconds = random.Random(seed), counts, seconds
        self.hits: Counter[str] = Counter()

    def attempt(self, run: Path) -> bool:
        """One attempt, perhaps killed; whether it was."""
        left = Left.of(run)
        if sum(self.hits.values()) % 3 == 2:
            place = None
            killed = attempt(run, Hook(run), self.random.uniform(0.0, self.seconds))
        else:
            place, number = self._draw(left)
            killed = attempt(run, Hook(run, place, number), None)
        later = Left.of(run)
        left.require_kept(later)
        if killed:
            stage = next((s for s in STAGES if s not in later.records), "the end")
            self.hits[place or f"by the clock, in {stage}"] += 1
        return killed

    def _draw(self, left: Left) -> tuple[str, int]:
        """The place that was hit least of those still to come, and which of its operations."""
        ahead = [place for place, stage in PLACES.items() if stage not in left.records]
        if not left.newest and "resuming" in ahead:
            ahead.remove("resuming")
        place = min(ahead, key=lambda place: self.hits[place])
        count = self.counts.get(place, 1)
        if PLACES[place] == "train" and left.newest and place != "resuming":
            count = count * (STEPS - int(left.newest.removeprefix("step-"))) // STEPS
        return place, self.random.randint(1, max(1, count))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    # Ranks whose parent was killed become this process's children, which waits for their end.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    began = time.monotonic()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True)
    world = forked(lambda: make_world(folder, RANKS) and 0)
    assert os.waitpid(world, 0)[1] == 0, "the world could not be made"
    reference, seconds = run_alone(folder)
    seen = json.loads((reference / "seen.json").read_text())
    killer, runs = Killer(asked.seed, seen["counts"], seconds), 0
    while sum(killer.hits.values()) < asked.kills:
        runs += 1
        run = folder / f"run-{runs}"
        shutil.copytree(folder / "prepared", run)
        while killer.attempt(run):
            if sum(killer.hits.values()) >= asked.kills:
                assert not attempt(run, Hook(run), None)
                break
        require_same_end(run, reference)
        shutil.rmtree(run)
    figures = {"kills": sum(killer.hits.values()), "runs": runs, "hits": dict(sorted(killer.hits.items()))}
    print(json.dumps(figures | {"left alone": seconds, "seconds": time.monotonic() - began}))


def run_alone(folder: Path) -> tuple[Path, float]:
    """The run that no one kills, and how long it takes once everything is imported."""
    for name in ("first", "reference"):
        run = folder / name
        shutil.copytree(folder / "prepared", run)
        began = time.monotonic()
        assert not attempt(run, Hook(run), None)
        seconds = time.monotonic() - began
        for module in json.loads((run / "seen.json").read_text())["modules"]:
            with suppress(Exception):
                importlib.import_module(module)
    require_same_end(folder / "first", run)
    return run, seconds


if __name__ == "__main__":
    main()
