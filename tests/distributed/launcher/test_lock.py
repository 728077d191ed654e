"""One launcher at a time in a run folder, on one machine and on several."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launcher.processes import lock
from launcher.processes.lock import Owner, lock_path, only_launcher, read_owner
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder

ELSEWHERE = Owner("n7", "another kernel", 4711, "99")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "RUN")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.1)
    monkeypatch.setattr(lock, "SECONDS_TO_WATCH", 1.0)


def write_owner(run: RunFolder, owner: Owner) -> None:
    run.path.mkdir(exist_ok=True)
    lock_path(run).write_text(json.dumps(asdict(owner)))


@contextmanager
def counting(run: RunFolder, owner: Owner) -> Iterator[None]:
    """Another machine's launcher, as this one sees it where locks do not reach across."""
    ended = threading.Event()

    def count() -> None:
        now = owner
        while not ended.wait(0.1):
            now = replace(now, count=now.count + 1)
            write_owner(run, now)

    write_owner(run, owner)
    thread = threading.Thread(target=count)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_second_launcher_is_refused_and_the_first_gives_the_folder_back(run: RunFolder) -> None:
    with (
        only_launcher(run),
        pytest.raises(UserError, match=f"process {os.getpid()} on "),
        only_launcher(run),
    ):
        pass
    assert read_owner(run) is None
    with only_launcher(run):
        pass


def test_the_count_of_an_owner_moves(run: RunFolder) -> None:
    with only_launcher(run):
        first = read_owner(run)
        assert first is not None and first.pid == os.getpid()
        time.sleep(0.5)
        later = read_owner(run)
        assert later is not None and later.count > first.count and first.is_same(later)


def test_a_killed_launcher_of_this_machine_is_followed_at_once(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path; from launcher.processes.lock import only_launcher;"
        "from plast_train.run_folder import RunFolder\n"
        "with only_launcher(RunFolder(Path(sys.argv[1]))): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(run.path)])
    killed.wait(timeout=60)
    began = time.monotonic()
    with only_launcher(run):
        assert time.monotonic() - began < lock.SECONDS_TO_WATCH
    assert f"process {killed.pid} on" in capsys.readouterr().err


def test_a_living_launcher_of_another_machine_is_refused(run: RunFolder) -> None:
    with (
        counting(run, ELSEWHERE),
        pytest.raises(UserError, match="process 4711 on n7, job 99"),
        only_launcher(run),
    ):
        pass


def test_a_dead_launcher_of_another_machine_is_followed(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_owner(run, ELSEWHERE)
    began = time.monotonic()
    with only_launcher(run):
        assert time.monotonic() - began >= lock.SECONDS_TO_WATCH
        assert Owner.me().is_same(read_owner(run))
    assert "process 4711 on n7, job 99, which held it, is dead" in capsys.readouterr().err


def test_a_lock_that_a_lost_machine_left_on_the_server_is_gone_round(run: RunFolder) -> None:
    """The file system still refuses the lock, but nobody counts."""
    write_owner(run, ELSEWHERE)
    with lock_path(run).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with only_launcher(run):
            assert Owner.me().is_same(read_owner(run))


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_the_count_decides(
    alive: bool, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flock", lambda _file: None)
    if alive:
        with counting(run, ELSEWHERE), pytest.raises(UserError), only_launcher(run):
            pass
    else:
        write_owner(run, ELSEWHERE)
        with only_launcher(run):
            pass


def holder(run: RunFolder, **environment: str) -> subprocess.Popen[str]:
    """A launcher in a process of its own that has the folder."""
    script = (
        "import sys, time; from pathlib import Path; from launcher.processes import lock;"
        "from plast_train.run_folder import RunFolder\n"
        "lock.SECONDS_BETWEEN_BEATS = 0.1\n"
        "with lock.only_launcher(RunFolder(Path(sys.argv[1]))): print('locked', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("job", "restart", "ended"), [("99", "1", True), ("99", "0", False), ("98", "1", False)]
)
def test_an_earlier_start_of_the_same_job_is_ended(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, job: str, restart: str, ended: bool
) -> None:
    """Slurm has given up its node and started the job elsewhere, but its processes live on."""
    process = holder(run, SLURM_JOB_ID="99", SLURM_RESTART_COUNT="0")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if ended:
        with only_launcher(run):
            assert process.poll() == 1
            time.sleep(0.5)
            assert Owner.me().is_same(read_owner(run))
        assert "taken over" in process.communicate()[1]
        return
    with pytest.raises(UserError, match="job 99"), only_launcher(run):
        pass
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_launcher_whose_folder_was_taken_over_ends(run: RunFolder) -> None:
    """As one does that stood still for minutes, machine and all."""
    process = holder(run)
    lock_path(run).unlink()
    write_owner(run, ELSEWHERE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "taken over by process 4711 on n7" in errors
    assert read_owner(run) == ELSEWHERE
