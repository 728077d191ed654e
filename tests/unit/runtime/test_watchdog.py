"""The watchdog of one process, where a thread stands, and which failure came first. Hangs of real ranks are
in test_failures.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.commands import run
from launcher.processes.attempts import again_path
from launcher.processes.outcome import Notes, Outcome, outcome_of
from launcher.processes.stops import Stops
from plast_train import pipeline
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder, sha256_of
from plast_train.runtime import rank
from plast_train.runtime.failures import Failure, note_path, publish_failure, read_failures
from plast_train.runtime.stack_location import raised_in_exchange, stack_location

PACKAGE = Path(pipeline.__file__).parent
C10D = "/lib/torch/distributed/distributed_c10d.py"


@pytest.mark.parametrize(
    ("files", "stands"),
    [
        (["training/loop.py", "/lib/deepspeed/engine.py"], (False, "training/loop.py:1 in at")),
        (["training/loop.py", "/lib/deepspeed/engine.py", C10D], (True, "training/loop.py:1 in at")),
        (["training/loop.py", "runtime/distributed.py", C10D], (True, "training/loop.py:1 in at")),
        (
            ["training/loop.py", "runtime/distributed.py"],
            (True, "training/loop.py:1 in at"),
        ),  # waits for the device
        # Rank 0 at work while the others wait for it.
        (
            ["pipeline.py", "runtime/distributed.py", "training/export.py"],
            (False, "training/export.py:1 in at"),
        ),
        ([C10D], (True, "outside the program")),
    ],
)
def test_where_a_thread_stands(files: list[str], stands: tuple[bool, str]) -> None:
    """`files` call each other, the last one is the innermost."""

    def look() -> tuple[bool, str]:
        frame = sys._getframe().f_back
        assert frame is not None
        return stack_location(frame)

    call = look
    for file in reversed(files):
        names: dict[str, Callable[[], tuple[bool, str]]] = {"inner": call}
        exec(compile("def at(): return inner()", str(PACKAGE / file), "exec"), names)
        call = names["at"]
    assert call() == stands


def test_an_error_out_of_an_exchange() -> None:
    import torch
    import torch.distributed as dist

    for action, expected in ((lambda: dist.all_reduce(torch.ones(1)), True), (lambda: int("x"), False)):
        with pytest.raises(ValueError) as caught:
            action()  # no process group: the call itself fails
        assert raised_in_exchange(caught.value.__traceback__) is expected


def outcome(folder: Path, *failures: Failure, agent: str = "", code: int = 1) -> Outcome:
    notes = Notes(folder)
    for failure in failures:
        publish_failure(folder, failure)
    (folder / "torchrun.log").write_text(agent)
    return outcome_of(notes, folder / "torchrun.log", code, 0, several_machines=False)


def test_what_ranks_of_an_earlier_start_write_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm has given up their node and started the job elsewhere; there they fail at last."""
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    left_behind = Failure(1, "defect", "connection closed")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert outcome(tmp_path, left_behind, code=0).kind == "done"
    assert outcome(tmp_path, left_behind, Failure(0, "defect", "KeyError: 3")).rank == 0


def killed(rank: int, number: int) -> str:
    return f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : -{number} (pid: 7)\n"


def test_the_first_failure_whatever_the_clocks_say(tmp_path: Path) -> None:
    """Rank 0's machine is an hour behind: its lost connection would seem to come first."""
    lost = Failure(0, "defect", "connection closed", in_exchange=True, time=1000.0)
    found = outcome(tmp_path, lost, Failure(1, "defect", "KeyError: 3", "train", time=4600.0))
    assert (found.kind, found.rank, found.message, found.stage) == (
        "defect",
        1,
        "rank 1: KeyError: 3",
        "train",
    )


def test_a_killed_rank_comes_before_what_follows_and_leaves_a_note(tmp_path: Path) -> None:
    found = outcome(tmp_path, Failure(0, "defect", "RuntimeError: peer", time=1.0), agent=killed(1, 9))
    assert (found.kind, found.rank) == ("killed", 1)
    assert "ended by SIGKILL" in found.message and "memory" in found.message
    assert read_failures([note_path(tmp_path, 1)])[0].kind == "killed"


def test_an_abort_follows_from_another_failure(tmp_path: Path) -> None:
    error = Failure(0, "defect", "KeyError: 3")
    assert outcome(tmp_path, error, agent=killed(1, 6)).message == "rank 0: KeyError: 3"
    (tmp_path / "alone").mkdir()
    assert "ended by SIGABRT" in outcome(tmp_path / "alone", agent=killed(1, 6)).message


def test_notes_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    publish_failure(tmp_path, Failure(3, "user", "long ago"))
    assert outcome(tmp_path, code=0).kind == "done"
    assert outcome(tmp_path, agent="Traceback …\nImportError: torch\n").message == "ImportError: torch"
    assert outcome(tmp_path, Failure(3, "user", "now")).message == "now"


def test_a_hang_names_those_that_did_not_wait(tmp_path: Path) -> None:
    hang = [
        Failure(n, "hang", "no rank made progress", "train", n != 2, f"training/loop.py:{n} in f")
        for n in range(4)
    ]
    found = outcome(tmp_path, *hang)
    assert (found.kind, found.rank, found.stage) == ("hang", 2, "train")
    assert "rank 2 at training/loop.py:2 in f; the others wait" in found.message
    mismatch = outcome(tmp_path, *(Failure(n, "hang", "no progress", None, True, str(n)) for n in range(4)))
    assert mismatch.rank is None
    assert "all ranks wait for each other" in mismatch.message


def other_machine() -> SimpleNamespace:
    return SimpleNamespace(is_first=False, alive=lambda: None, barrier=lambda: None)


def test_a_file_that_another_machine_sees_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    (tmp_path / "there").write_text("new")
    contents = {"late": sha256_of(tmp_path / "there")}
    (tmp_path / "late").write_text("as it was")
    writer = threading.Timer(1.0, lambda: (tmp_path / "late").write_text("new"))
    writer.start()
    rank.wait_for_files(RunFolder(tmp_path), contents, other_machine())  # type: ignore[arg-type]
    assert (tmp_path / "late").read_text() == "new"
    monkeypatch.setattr(rank, "SECONDS_TO_APPEAR", 1)
    with pytest.raises(UserError, match=r"export: .* must be one folder that all machines share"):
        rank.wait_for_files(RunFolder(tmp_path), {"export": "folder"}, other_machine())  # type: ignore[arg-type]


def test_stop_signals_without_ranks() -> None:
    with Stops() as stops:
        with pytest.raises(Interrupted, match="SIGUSR1"), stops.end_this():
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # while the launcher says how the ranks ended
        with pytest.raises(Interrupted, match="SIGTERM"), stops.end_this():
            pytest.fail("begun after a stop signal")


def test_a_stop_before_ranks_asks_for_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.checks import preflight

    monkeypatch.setattr(preflight, "preflight", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run.run_stages("tiny", [], tmp_path, 1, ("collect",)) == 1
    assert "SIGTERM came before ranks" in again_path(RunFolder(tmp_path)).read_text()
