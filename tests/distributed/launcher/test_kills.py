"""Runs that are killed with SIGKILL at random moments, over all stages, end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.commands import plast, start_plast
from support.kill_world import arguments, make_world, require_same_end
from support.paths import TESTS

# Whole launches, some of which wait for a limit to pass: minutes each.
pytestmark = pytest.mark.slow

PLACES = ("collecting", "saving", "publishing", "deleting", "exporting", "evaluating")


@pytest.mark.parametrize(
    ("kills", "seed"), [(10, 0), pytest.param(100, 1, marks=pytest.mark.long)], ids=["10", "100"]
)
def test_killed_runs_end_as_if_left_alone(tmp_path: Path, kills: int, seed: int) -> None:
    root = TESTS
    asked = ["--kills", str(kills), "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, root / "support" / "kill_runs.py", tmp_path / "runs", *asked],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root.parent), str(root)])},
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["kills"] == kills
    assert all(figures["hits"].get(place, 0) >= 1 for place in PLACES), figures


def test_the_launcher_and_everything_it_started_killed(tmp_path: Path) -> None:
    """`plast run` as a user starts it: every process of it is killed at once, six times."""
    tmp_path.joinpath("world").mkdir()
    make_world(tmp_path / "world", 2)
    command = ["run", "tiny", "--nproc", "2", *arguments(tmp_path / "world"), "--out"]
    began = time.monotonic()
    plast(*command, tmp_path / "reference")
    seconds, draw = time.monotonic() - began, random.Random(0)
    kills = 0
    for _ in range(100):
        launched = start_plast(*command, tmp_path / "run")
        with suppress(subprocess.TimeoutExpired):
            assert launched.wait(draw.uniform(0.2, 1.0) * seconds if kills < 6 else 600) == 0
            break
        kill_all_of(launched.pid)
        launched.wait()
        kills += 1
    assert kills >= 3, "it was done before it was killed often enough"
    require_same_end(tmp_path / "run", tmp_path / "reference")


def kill_all_of(pid: int) -> None:
    """SIGKILL to the process and all below it; returns when they have ended."""
    launcher = psutil.Process(pid)
    processes = [launcher, *launcher.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes[1:], timeout=30)
