"""One launcher at a time in a run folder, also where several machines share it.

The lock is an flock, which the system releases when a process dies. Not every shared file system carries it
to other machines, and a lost machine's may stay. So the file `RUN/.lock` also names its owner, with a count
that the owner's thread raises every few seconds. Only a moving count shows that another machine's owner is
alive: clocks are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from plast_train.errors import UserError
from plast_train.run_folder import RunFolder

SECONDS_BETWEEN_BEATS = 5.0
# A count that has not moved for three beats is a dead launcher's: file systems show a change of an open file
# within a few seconds.
SECONDS_TO_WATCH = 15.0
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Owner:
    """The launcher that works in a run folder. `system` names the running kernel: on the same one the flock
    alone decides. `restart` is how often Slurm has restarted its job."""

    host: str
    system: str
    pid: int
    job: str | None
    restart: int = 0
    count: int = 0

    @staticmethod
    def me() -> Owner:
        job, restart = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return Owner(socket.gethostname(), _this_system(), os.getpid(), job, restart)

    def precedes(self, other: Owner) -> bool:
        """Whether Slurm has restarted this one's job as the other: a lost node's launcher may still run."""
        return self.job is not None and self.job == other.job and self.restart < other.restart

    def is_same(self, other: Owner | None) -> bool:
        return other is not None and replace(self, count=0) == replace(other, count=0)

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def lock_path(run: RunFolder) -> Path:
    return run.path / ".lock"


def read_owner(run: RunFolder) -> Owner | None:
    """Who holds or held the run folder; None where its last launcher has released it."""
    try:
        return Owner(**json.loads(lock_path(run).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # no file, empty, or just being written
        return None


@contextlib.contextmanager
def only_launcher(run: RunFolder) -> Iterator[None]:
    """Keeps a second launcher out of the run folder while the first one's ranks write into it.

    Raises:
        UserError: another launcher works there.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    file = _acquire(run)
    me = Owner.me()
    _write(file, me)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(run, file, me, ended), name="lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        os.truncate(file, 0)
        os.close(file)


def _acquire(run: RunFolder) -> int:
    """The open lock file, locked as well as its file system can."""
    file = _open(run)
    held = _flock(file)
    owner = read_owner(run)  # only after the flock: one that has just released the folder has no owner
    here = owner is None or owner.system == _this_system()
    if here:
        # The kernel knows; without locks only the count tells.
        lives = held is False or (held is None and owner is not None and _counts(run, owner))
    else:
        lives = owner is not None and _counts(run, owner)
    if lives and not (owner and owner.precedes(Owner.me())):
        raise UserError(
            f"{run.path}: another plast works there ({owner or 'just starting'}); wait until it ends, "
            "stop it, or give another --out"
        )
    if owner is None:
        return file
    what = "belongs to an earlier start of this job and will be ended" if lives else "is dead"
    print(f"plast: {run.path}: {owner}, which held it, {what}; taking over", file=sys.stderr, flush=True)
    if lives or held is False:
        # A live owner still writes into the file, and the file system may keep a lost machine's lock on it,
        # so a new file takes its place.
        os.close(file)
        lock_path(run).unlink()
        file = _open(run)
        _flock(file)
    if lives:
        _write(file, Owner.me())
        time.sleep(SECONDS_TO_WATCH)  # its next beat reads the new owner and ends it with its ranks
    return file


def _open(run: RunFolder) -> int:
    return os.open(lock_path(run), os.O_RDWR | os.O_CREAT, 0o644)


def _flock(file: int) -> bool | None:
    """Whether this process holds the lock now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _counts(run: RunFolder, owner: Owner) -> bool:
    """Whether the owner's count moves, or another owner has appeared."""
    deadline = time.monotonic() + SECONDS_TO_WATCH
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SECONDS_TO_WATCH / 5))
        now = read_owner(run)
        if now is not None and now != owner:
            return True
    return False


def _beat(run: RunFolder, file: int, me: Owner, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(SECONDS_BETWEEN_BEATS):
        owner = read_owner(run)
        if owner is not None and not me.is_same(owner):
            # This machine was frozen for so long that another one took over. Its ranks must not write any
            # more; they end with this process.
            print(
                f"plast: {run.path}: was taken over by {owner}; ending at once", file=sys.stderr, flush=True
            )
            os._exit(1)
        count += 1
        with contextlib.suppress(OSError):  # a file system that is away for a moment; the next beat writes
            _write(file, replace(me, count=count))


def _write(file: int, owner: Owner) -> None:
    """In place, so that it stays the locked file; of fixed length, so that no reader sees half of it."""
    os.pwrite(file, f"{json.dumps(asdict(owner)):<400}\n".encode(), 0)
    os.fsync(file)


def _this_system() -> str:
    """The running kernel's own name, which containers share; the host's name elsewhere than on Linux."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
