"""Running `plast` as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from support.paths import ROOT


def plast(
    *arguments: str | Path, fails: bool = False, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, one thread a rank; asserts that it succeeds (or fails)."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_plast(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Starts the command and returns at once; its output is thrown away."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(path: Path, text: str = "", seconds: float = 120) -> None:
    """Waits until the file exists and has the text."""
    deadline = time.monotonic() + seconds
    while not path.exists() or text not in path.read_text(encoding="utf-8", errors="replace"):
        assert time.monotonic() < deadline, f"{path} has not appeared, or lacks {text!r}"
        time.sleep(0.02)
