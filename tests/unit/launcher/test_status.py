"""`plast status`: what it says of a run folder, and how quickly."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.commands.status import duration, status_lines, status_of
from launcher.processes import attempts
from launcher.processes.lock import Owner, lock_path, only_launcher
from plast_train.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was stopped and is training again."""
    run = RunFolder(tmp_path / "RUN")
    run.logs.mkdir(parents=True)
    run.config.write_text("seed: 0\n")
    for stage in ("collect", "select"):
        run.publish_record(stage, {}, {}, [])
    checkpoint = run.checkpoints / "step-00000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    os.utime(checkpoint / "manifest.json", (time.time() - 600, time.time() - 600))
    run.metrics.write_text('{"step": 119, "loss": 2.5}\n{"step": 120, "loss": 1.25}\n{"step": 121, "lo')
    progress = {"label": "train", "done": 120, "total": 200, "unit": "steps", "per_second": 0.5, "time": 0}
    (run.logs / "progress.json").write_text(json.dumps(progress))
    attempts.end(run, attempts.begin(run, 2, 1), "interrupted", "stopped after step 50", "train", 50)
    attempts.begin(run, 2, 1)
    return run


def text(run: RunFolder) -> str:
    return "\n".join(status_lines(status_of(run)))


def test_of_a_running_run(run: RunFolder) -> None:
    with only_launcher(run):
        tree, said = status_of(run), text(run)
    assert tree["running"] and tree["stages_done"] == ["collect", "select"] and tree["stage"] == "train"
    assert (tree["step"], tree["loss"]) == (120, 1.25)
    assert tree["progress"]["seconds_left"] == 160
    assert tree["last_checkpoint"]["step"] == 100 and 599 < tree["last_checkpoint"]["age"] < 700
    assert [a["kind"] for a in tree["attempts"]] == ["interrupted", "running"]
    assert f"running (process {os.getpid()} on" in said
    assert (
        "train     running: train 120/200 steps, 0.5 a second, about 160 s left".replace("160 s", "3 min")
        in said
    )
    assert "last checkpoint: step-00000100, 10 min ago" in said
    assert "interrupted in train after step 50: stopped after step 50" in said
    assert "export    -" in said


def test_of_a_run_that_was_stopped(run: RunFolder) -> None:
    attempts.ask_for_restart(run, "interrupted: time is up")
    tree = status_of(run)
    assert not tree["running"] and tree["owner"] is None
    assert tree["progress"]["seconds_left"] is None
    assert [a["kind"] for a in tree["attempts"]] == ["interrupted", "lost"]
    assert "train     not finished" in text(run)
    assert "to be started again: interrupted: time is up" in text(run)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_of_a_run_whose_launcher_was_lost(elsewhere: bool, run: RunFolder) -> None:
    no_process = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    owner = replace(Owner.me(), pid=no_process, **({"host": "n7", "system": "other"} if elsewhere else {}))
    lock_path(run).write_text(json.dumps(asdict(owner)))
    assert status_of(run)["running"] is elsewhere  # it has just given a sign of life
    os.utime(lock_path(run), (time.time() - 300, time.time() - 300))
    assert not status_of(run)["running"]
    assert f"not running; {owner} was lost 5 min ago" in text(run)


def test_of_a_finished_run(run: RunFolder) -> None:
    for stage in ("train", "export", "evaluate", "analyse", "report"):
        run.publish_record(stage, {}, {}, [])
    attempts.end(run, 2, "done", "")
    assert text(run).startswith(f"{run.path}: finished")


def test_of_a_run_that_did_the_stages_it_was_asked_for(run: RunFolder) -> None:
    run.publish_record("train", {}, {}, [])
    attempts.end(run, 2, "done", "")
    assert status_of(run)["stage"] is None
    assert text(run).startswith(f"{run.path}: not running") and "export    -" in text(run)


def test_of_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "no config.yaml" in capsys.readouterr().err


def test_json(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 120


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h"), (300000, "3.5 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
