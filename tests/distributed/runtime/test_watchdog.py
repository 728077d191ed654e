"""The watchdog of a process of its own. Hangs of real ranks are in test_failures.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plast_train.runtime.failures import note_path, read_failures, stacks_path

WATCHED = """
import sys, time
from pathlib import Path
from plast_train.runtime.watchdog import Watchdog
watchdog = Watchdog(Path(sys.argv[1]), 0)
watchdog.minutes, watchdog.stage = 0.05, "train"
def compute(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
def moving(seconds):
    for _ in range(5 * seconds):
        time.sleep(0.2)
        watchdog.alive()
watchdog.start()
print("started", flush=True)
"""


def watched(folder: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED + what, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("watchdog.enter_loop(); time.sleep(100)", 1),
        ("time.sleep(100)", 1),
        ("watchdog.enter_loop(); moving(6)", 0),
        ("compute(6)", 0),
        ("watchdog.enter_loop(); compute(100)", 1),
        ("watchdog.enter_loop()\nwith watchdog.computing(): compute(6)", 0),
    ],
)
def test_what_counts_as_moving(what: str, code: int, tmp_path: Path) -> None:
    assert watched(tmp_path, what).wait(timeout=60) == code
    assert stacks_path(tmp_path, 0).exists() == (code == 1)
    if code == 1:
        (failure,) = read_failures([note_path(tmp_path, 0)])
        assert (failure.kind, failure.stage, failure.in_exchange) == ("hang", "train", False)
        assert "<string>" in stacks_path(tmp_path, 0).read_text()


def test_a_frozen_process_that_goes_on_has_not_waited(tmp_path: Path) -> None:
    process = watched(tmp_path, "watchdog.enter_loop(); time.sleep(2); moving(1)")
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0
