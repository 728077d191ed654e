"""The record of attempts, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.processes import attempts
from launcher.processes.attempts import (
    attempts_path,
    begin,
    diagnosis,
    end,
    faults_in_a_row,
    go_back,
    read_attempts,
)
from plast_train.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def attempt(run: RunFolder, kind: str | None, step: int | None = None, stage: str = "train") -> None:
    number = begin(run, 2, 1)
    if kind is not None:
        end(run, number, kind, f"message {number}", stage, step, 1)


def make_checkpoints(run: RunFolder, *steps: int) -> None:
    for step in steps:
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)


def test_what_is_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    attempt(run, None)
    attempt(run, "hang", 12)
    began, again, ended = map(json.loads, attempts_path(run).read_text().splitlines())
    assert (began["attempt"], again["attempt"], ended["attempt"]) == (1, 2, 2)
    assert began["event"] == "began" and began["job"] == "77" and began["restart"] == 3
    assert (began["nproc"], began["machines"]) == (2, 1)
    assert (ended["kind"], ended["stage"], ended["step"], ended["rank"]) == ("hang", "train", 12, 1)
    assert [a.kind for a in read_attempts(run)] == [None, "hang"]


def test_a_torn_line_is_left_out_and_the_next_one_whole(run: RunFolder) -> None:
    attempt(run, "killed", 3)
    with attempts_path(run).open("a") as file:
        file.write('{"attempt": 2, "eve')
    attempt(run, "done")
    assert [(a.number, a.kind) for a in read_attempts(run)] == [(1, "killed"), (2, "done")]


@pytest.mark.parametrize(
    ("history", "row"),
    [
        ([("hang", 5), ("killed", 5)], 2),
        ([("hang", 5), (None, None), ("defect", 5)], 2),  # lost from outside: says nothing
        ([("hang", 5), ("interrupted", 5), ("hang", 5)], 1),
        ([("hang", 4), ("hang", 5)], 1),
        ([("hang", 5), ("hang", 5), ("user", 5)], 0),
        ([(None, None)], 0),
    ],
)
def test_faults_in_a_row(history: list[tuple[str | None, int | None]], row: int, run: RunFolder) -> None:
    for kind, step in history:
        attempt(run, kind, step)
    assert len(faults_in_a_row(read_attempts(run))) == row


def test_twice_goes_back_and_the_third_time_gives_up(run: RunFolder) -> None:
    make_checkpoints(run, 100, 200)
    attempt(run, "hang", 230)
    assert go_back(run) is None
    attempt(run, "killed", 230)
    assert diagnosis(run) is None
    line = go_back(run)
    assert line is not None and "failed twice in the stage train, after step 230" in line
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000100"]
    assert (run.path / "suspect" / "step-00000200").is_dir()

    make_checkpoints(run, 200)
    attempt(run, "defect", 230)
    said = diagnosis(run)
    assert said is not None
    assert all(f"message {number}" in said for number in (1, 2, 3))
    assert go_back(run) is None  # whoever starts it now has mended something
    attempt(run, "done")
    assert diagnosis(run) is None


def test_a_step_set_aside_twice_keeps_both(run: RunFolder) -> None:
    for _ in range(2):
        make_checkpoints(run, 200)
        attempt(run, "hang", 230)
        attempt(run, "hang", 230)
        assert go_back(run)
        attempt(run, "interrupted", 240)
    assert len(list((run.path / "suspect").iterdir())) == 2


def test_only_training_goes_back(run: RunFolder) -> None:
    make_checkpoints(run, 100)
    for _ in range(3):
        attempt(run, "killed", None, "evaluate")
        assert go_back(run) is None
    said = diagnosis(run)
    assert said is not None and "in the stage evaluate;" in said


def test_a_new_attempt_takes_the_wish_for_a_restart_back(run: RunFolder) -> None:
    attempts.ask_for_restart(run, "hang: two\nlines")
    assert attempts.again_path(run).read_text() == "hang: two lines\n"
    attempt(run, "done")
    assert not attempts.again_path(run).exists()
