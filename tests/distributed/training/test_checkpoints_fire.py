"""Checkpoints under fire: flipped bytes everywhere, a kill at every file operation, full and read-only disks,
clocks that go backwards, files that a shared file system shows late."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoint_makers import ALONE, IDENTITY, holds_step, newest_whole, save, save_on

from plast_train import run_folder
from plast_train.checkpoint import format, resume
from plast_train.checkpoint import save as saving
from plast_train.checkpoint.format import MANIFEST, shard_name, step_name
from plast_train.errors import UserError
from plast_train.runtime import late_files

OLD, NEW = step_name(5), step_name(10)
NOBODY = 65534  # the user of that name
WHITE = b" \n\t\r"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing does not come late."""
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two checkpoints of four ranks: four shards and a manifest each."""
    folder = tmp_path / "checkpoints"
    for step in (5, 10):
        assert save_on(4, folder, step) == [folder / step_name(step)] * 4
    return folder


def require_skipped(folder: Path, file: str, what: str) -> None:
    """The newest is skipped for the one before, and the message names the checkpoint and the file."""
    said: list[str] = []
    found = newest_whole(folder, said.append)
    assert found is not None and found.name == OLD, what
    assert len(said) == 1 and f"{folder / NEW} is broken" in said[0], (what, said)
    assert file in said[0].split("broken:")[1], (what, said)


def places(size: int, count: int, seed: int) -> list[int]:
    """The first 16 and the last byte, and others at random."""
    return sorted({*range(16), size - 1, *random.Random(seed).sample(range(size), count)})


def test_every_flipped_byte_is_found(two: Path, impatient: None) -> None:
    tried = 0
    for number, file in enumerate(sorted((two / NEW).iterdir())):
        content = file.read_bytes()
        for place in places(len(content), 60, number):
            flipped = bytearray(content)
            # A bit, as memory and disks flip them; white space in the manifest into other white space.
            flipped[place] ^= 1 << random.Random(place).randrange(8)
            if file.name == MANIFEST and content[place] in WHITE:
                flipped[place] = WHITE[(WHITE.index(content[place]) + 1) % len(WHITE)]
            file.write_bytes(flipped)
            require_skipped(two, file.name, f"{file.name}: byte {place}")
            tried += 1
        file.write_bytes(content)
    assert tried >= 5 * 60 and newest_whole(two, pytest.fail) is not None


def test_every_truncated_lengthened_and_missing_file_is_found(two: Path, impatient: None) -> None:
    for file in sorted((two / NEW).iterdir()):
        content = file.read_bytes()
        for size in (0, 1, 8, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            require_skipped(two, file.name, f"{file.name} cut to {size}")
        for more in (b"\0", b"\n"):
            file.write_bytes(content + more)
            require_skipped(two, file.name, f"{file.name} and {more!r}")
        file.write_bytes(bytes(len(content)))
        require_skipped(two, file.name, f"{file.name} of zeros")
        file.unlink()
        require_skipped(two, file.name, f"{file.name} missing")
        file.mkdir()
        require_skipped(two, file.name, f"{file.name} a folder")
        file.rmdir()
        file.write_bytes(content)
    assert newest_whole(two, pytest.fail) is not None


def test_a_broken_one_makes_way(two: Path, impatient: None) -> None:
    """It is neither kept instead of a whole one nor gone back to, and nothing of it is lost."""
    (two / NEW / shard_name(1, 4)).unlink()
    said: list[str] = []
    ranks: Any = SimpleNamespace(**vars(ALONE) | {"say": said.append})
    assert resume.choose(two, IDENTITY, ranks) == two / OLD
    assert [path.name for path in format.checkpoints(two)] == [OLD]
    assert (two.parent / "suspect" / NEW / MANIFEST).is_file()
    assert len(said) == 1 and f"it is set aside as {two.parent / 'suspect' / NEW}" in said[0]
    save_on(4, two, 10)
    (two / NEW / MANIFEST).write_text("torn")
    assert resume.choose(two, IDENTITY, ranks) == two / OLD
    assert sorted(path.name for path in (two.parent / "suspect").iterdir()) == [NEW, f"{NEW}-2"]


def test_all_broken_is_none(two: Path, impatient: None) -> None:
    for name in (OLD, NEW):
        (two / name / MANIFEST).unlink()
    said: list[str] = []
    assert newest_whole(two, said.append) is None
    assert [name in line for name, line in zip((NEW, OLD), said, strict=True)] == [True, True]


class Killed(BaseException):
    """Ends the writing at once, as SIGKILL does: no handler of `Exception` sees it."""


def half_done(function: str, target: Path) -> None:
    """What a kill in the middle of the operation leaves."""
    if function == "save_file":
        target.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    elif function == "write_text":
        target.write_text('{\n "format": 1,')
    elif function == "rmtree" and target.is_dir():
        next(iter(target.iterdir())).unlink()


def kill_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """The operation on files that has this number is left half done, and nothing follows."""
    count = itertools.count()

    def wrap(owner: Any, name: str, target: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def operation(*arguments: Any, **named: Any) -> Any:
            if next(count) == number:
                half_done(name, target(*arguments))
                raise Killed
            return original(*arguments, **named)

        patch.setattr(owner, name, operation)

    for name in ("mkdir", "rename", "write_text"):
        wrap(Path, name, lambda path, *_: path)
    wrap(saving, "save_file", lambda _tensors, path: path)
    wrap(shutil, "rmtree", lambda path, *_: path)
    wrap(os, "fsync", lambda _descriptor: None)


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "over a broken one"])
def test_a_kill_at_any_operation_loses_nothing(tmp_path: Path, impatient: None, replaced: bool) -> None:
    prepared, warn = tmp_path / "prepared", (lambda _line: None) if replaced else pytest.fail
    for step in (5, 10):
        save(prepared, step)
    shutil.copytree(prepared / NEW, prepared / f".{step_name(12)}.partial")  # of an earlier kill
    if replaced:
        shutil.rmtree(save(prepared, 15) / "shard-00000-of-00001.safetensors", ignore_errors=True)
        (prepared / step_name(15) / MANIFEST).write_text("torn")
    for number in itertools.count():
        folder = tmp_path / str(number)
        shutil.copytree(prepared, folder)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                save(folder, 15, keep=2)
                break
            except Killed:
                pass
        found = newest_whole(folder, warn)
        assert found is not None and found.name in (NEW, step_name(15)), number
        assert holds_step(found, int(found.name[5:])), number
        save(folder, 15, keep=2)
        assert sorted(p.name for p in folder.iterdir()) == [NEW, step_name(15)], number
        assert holds_step(folder / step_name(15), 15), number
    assert number >= 10  # folders, shard, manifest, their syncs, publishing and deleting


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("file systems are mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_while_writing(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others fill the disk after the check of its room: at any byte the checkpoints before stay whole."""
    folder = disk / "checkpoints"
    save(folder, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**9))
    full = 0
    for room in range(0, 80_000, 4096):
        filler = disk / "filler"
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - room))
        try:
            save(folder, 10)
        except UserError as error:
            full += 1
            assert "No space left" in str(error) or "os error 28" in str(error)
            assert [p.name for p in folder.iterdir()] == [OLD]  # the unfinished one takes no room
        else:
            assert holds_step(folder / NEW, 10)
            shutil.rmtree(folder / NEW)
        assert holds_step(folder / OLD, 5)
        filler.unlink()
    assert 5 <= full < 20
    save(folder, 10)
    assert holds_step(folder / NEW, 10)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The shard ends at a quota: an error, and nothing published."""
    save(tmp_path, 5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write its part of the checkpoint: .*File too large"):
            save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == [OLD]
    assert holds_step(tmp_path / OLD, 5)


def test_a_disk_that_becomes_read_only(disk: Path) -> None:
    folder = disk / "checkpoints"
    save(folder, 5)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"Read-only file system.*step-00000010"):
        save(folder, 10)
    assert resume.choose(folder, IDENTITY, ALONE) == folder / OLD


def test_a_folder_that_may_not_be_written() -> None:
    """As nobody where this process is root's, which may write everywhere."""
    user = os.geteuid()
    with TemporaryDirectory() as name:  # pytest's own is the user's alone
        folder = Path(name)
        save(folder, 5)
        folder.chmod(0o555)
        os.seteuid(NOBODY if user == 0 else user)
        try:
            with pytest.raises(UserError, match=r"Permission denied.*step-00000010"):
                save(folder, 10)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert [path.name for path in folder.iterdir()] == [OLD] and holds_step(folder / OLD, 5)


def fail_on_rank_2(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = saving.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if "shard-00002" in path.name:
            raise error
        original(tensors, path)

    monkeypatch.setattr(saving, "save_file", save_file)


def test_one_rank_that_cannot_write_is_named_on_all(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_rank_2(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for outcome in save_on(4, two, 15):
        assert isinstance(outcome, UserError)
        assert "rank 2 cannot write" in str(outcome) and "No space left" in str(outcome)
    assert sorted(p.name for p in two.iterdir()) == [OLD, NEW]


def test_a_defect_on_one_rank_ends_the_save_on_all(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_rank_2(monkeypatch, KeyError("of the program"))
    outcomes = save_on(4, two, 15)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError, KeyError, RuntimeError]
    assert "rank 2 failed" in str(outcomes[0])
    assert [p.name for p in format.checkpoints(two)] == [NEW, OLD]


def test_clocks_that_go_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the files' times nor the clock tell which checkpoint is the newest, or how long to wait."""
    now = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: next(now))
    for step in (5, 10, 15):
        path = save(tmp_path, step, keep=2)
        for file in (path, *path.iterdir()):
            os.utime(file, (next(now), next(now)))
    assert [p.name for p in format.checkpoints(tmp_path)] == [step_name(15), NEW]
    assert resume.choose(tmp_path, IDENTITY, ALONE) == tmp_path / step_name(15)
    (tmp_path / step_name(15) / MANIFEST).unlink()
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0.5)
    began = time.monotonic()
    assert resume.choose(tmp_path, IDENTITY, ALONE) == tmp_path / NEW
    assert 0.5 <= time.monotonic() - began < 5


def hide(path: Path, seconds: float) -> threading.Timer:
    """Takes the file or folder away and shows it after that time, as another machine's is shown."""
    hidden = path.parent.parent / f"hidden-{path.name}"
    path.rename(hidden)
    timer = threading.Timer(seconds, hidden.rename, [path])
    timer.start()
    return timer


@pytest.mark.parametrize("late", [MANIFEST, "shard-00002-of-00004.safetensors"])
def test_a_file_shown_late_is_waited_for(two: Path, late: str) -> None:
    timer = hide(two / NEW / late, 0.7)
    said: list[str] = []
    found = newest_whole(two, said.append)
    timer.join()
    assert found is not None and found.name == NEW
    assert len(said) == 1 and f"{two / NEW / late} is not complete yet; waiting up to 70 s" in said[0]


def test_a_file_shown_in_part_is_waited_for(two: Path) -> None:
    shard = two / NEW / "shard-00001-of-00004.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    timer = threading.Timer(0.7, shard.write_bytes, [content])
    timer.start()
    said: list[str] = []
    found = newest_whole(two, said.append)
    timer.join()
    assert found is not None and found.name == NEW and len(said) == 1


def test_waiting_ends(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files are missing, in however many checkpoints."""
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 1.0)
    save(two, 3)
    (two / NEW / "shard-00001-of-00004.safetensors").unlink()
    (two / OLD / MANIFEST).unlink()
    said: list[str] = []
    began = time.monotonic()
    found = newest_whole(two, said.append)
    assert found is not None and found.name == step_name(3)
    assert 1.0 <= time.monotonic() - began < 4.0
    assert [line.split(" is ")[-1][:7] for line in said] == ["not com", "missing", "broken:"]


def test_a_checkpoint_that_only_another_rank_sees_is_waited_for(two: Path) -> None:
    timer = hide(two / NEW, 0.7)
    ranks: Any = SimpleNamespace(**vars(ALONE) | {"gather": lambda value: [value, [NEW]]})
    assert resume.choose(two, IDENTITY, ranks) == two / NEW
    timer.join()


def show_late(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The folder of a checkpoint and rank 1's shard are seen only after that time."""
    make_empty, write_shard = saving._make_empty, saving._write_shard

    def make_late(folder: Path, room: int) -> None:
        make_empty(folder, room)
        hide(folder, seconds)

    def write_late(path: Path, tensors: Any) -> Any:
        entry = write_shard(path, tensors)
        if "shard-00001" in path.name:
            hide(path, seconds)
        return entry

    monkeypatch.setattr(saving, "_make_empty", make_late)
    monkeypatch.setattr(saving, "_write_shard", write_late)


def test_publishing_waits_for_what_is_shown_late(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show_late(monkeypatch, 0.7)
    assert save_on(3, two, 15) == [two / step_name(15)] * 3
    found = newest_whole(two, pytest.fail)
    assert found is not None and found.name == step_name(15) and holds_step(found, 15)


def test_a_folder_that_machines_do_not_share_is_told(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard = saving._write_shard

    def write_elsewhere(path: Path, tensors: Any) -> Any:
        entry = write_shard(path, tensors)
        if "shard-00001" in path.name:
            path.unlink()
        return entry

    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0.5)
    monkeypatch.setattr(saving, "_write_shard", write_elsewhere)
    for outcome in save_on(3, two, 15):
        assert isinstance(outcome, UserError)
        assert "shard-00001" in str(outcome) and "do all machines share this folder?" in str(outcome)
    assert [p.name for p in format.checkpoints(two)] == [NEW, OLD]


def test_a_kill_while_a_folder_is_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    """Between the two renames: the folder is made anew, and the old one goes."""
    final, temporary, old = (tmp_path / name for name in ("export", ".export.partial", ".export.old"))
    for folder in (temporary, old):
        folder.mkdir()
        (folder / "weights").write_text(folder.name)
    run_folder.publish_folder(temporary, final)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert (final / "weights").read_text() == ".export.partial"
