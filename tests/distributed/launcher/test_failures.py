"""Ranks that hang, raise or are killed while they train: what the user sees, what is written down, and that
the same command then finishes. Real torchrun ranks and the real pipeline."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.training_runs import LANGUAGES, make_base, questions

from launcher.processes.attempts import again_path, read_attempts
from plast_train.run_folder import RunFolder
from plast_train.runtime.failures import stacks_path

# Whole launches, some of which wait for a limit to pass: minutes each.
pytestmark = pytest.mark.slow
STEPS = 6
LAUNCH = """
import sys
from launcher.processes import torchrun
from launcher.commands import run
torchrun.PIPELINE = "support.faulty_ranks"
from launcher import cli
run.some = run.stages_command("some", tuple(sys.argv.pop(1).split(",")))
cli.COMMANDS["some"] = ("run", "")
cli.plast()
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small run's overrides: a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("failures")
    base = make_base(folder)
    lines = [json.dumps({"id": str(n), "image": None, "questions": questions(n)}) for n in range(24)]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return [
        *(f"model.path={base}", f"data.questions=[{folder / 'questions.jsonl'}]"),
        *(f"data.languages=[{','.join(LANGUAGES)}]", "selection.strategy=shallowest", "selection.k=1"),
        *(f"train.max_steps={STEPS}", "train.global_batch=8", "train.tokens_per_row=256"),
        *("train.validation_records=4", "evaluate.benchmarks=[]", "checkpoint.every_steps=1"),
    ]


@pytest.fixture(scope="module")
def selected(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has everything before training."""
    out = tmp_path_factory.mktemp("runs") / "selected"
    done = wait(start(asked, out, stages="collect,select"))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def out(selected: Path, tmp_path: Path) -> Path:
    shutil.copytree(selected, tmp_path / "RUN")
    return tmp_path / "RUN"


def start(
    asked: Sequence[str],
    out: Path,
    faults: str = "",
    stages: str = "train",
    nproc: int = 2,
    **environment: str,
) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            LAUNCH,
            stages,
            "some",
            "tiny",
            "--nproc",
            str(nproc),
            "--out",
            str(out),
            *asked,
        ],
        env=os.environ | {"PYTHONPATH": paths, "PLAST_TEST_FAULTS": faults} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        output, errors = process.communicate(timeout=1200)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def ended(out: Path) -> dict[str, Any]:
    event = read_attempts(RunFolder(out))[-1].ended
    assert event is not None
    return event


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_finishes(asked: list[str], out: Path) -> None:
    done = wait(start(asked, out))
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert steps(out) == list(range(1, STEPS + 1))
    assert ended(out)["kind"] == "done"
    assert not again_path(RunFolder(out)).exists()


@pytest.mark.parametrize("fault", ["sleep", "stop"])
def test_a_rank_that_hangs_is_found_and_named(fault: str, asked: list[str], out: Path) -> None:
    """One that sleeps for ever, and one that does not run at all, which cannot speak for itself."""
    done = wait(start([*asked, "watchdog_minutes=0.5"], out, f"{fault}:1:4"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "no rank made progress" in last
    place = "training/loop.py" if fault == "sleep" else "an unknown place (its process state is: stopped)"
    assert f"rank 1 at {place}" in last
    assert "the others wait in an exchange" in last
    waiting, hung = (stacks_path(out / "logs", rank).read_text() for rank in (0, 1))
    assert "all_reduce" in waiting
    assert ("sleep_for_ever" if fault == "sleep" else "stopped") in hung
    assert (ended(out)["kind"], ended(out)["stage"], ended(out)["step"], ended(out)["rank"]) == (
        *("hang", "train", 3, 1),
    )
    assert again_path(RunFolder(out)).read_text().startswith("hang: ")
    assert_finishes(asked, out)


def test_a_killed_rank_takes_the_others_down(asked: list[str], out: Path) -> None:
    done = wait(start(asked, out, "kill:1:3"))
    assert done.returncode == 1
    assert "rank 1: was ended by SIGKILL" in done.stderr.splitlines()[-1]
    assert (ended(out)["kind"], ended(out)["step"], ended(out)["rank"]) == ("killed", 2, 1)
    assert_finishes(asked, out)


def test_a_rank_that_raises_ends_the_job_and_the_third_time_for_good(asked: list[str], out: Path) -> None:
    """Rank 0 is not in an exchange when rank 1 raises: it must be ended."""
    for attempt in (1, 2, 3):
        *_, before, newest = [""] * 2 + sorted(path.name for path in (out / "checkpoints").glob("step-*"))
        process = start(asked, out, "raise:1:4 sleep:0:4")
        done = wait(process)
        over = time.time()
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "plast: rank 1: ArithmeticError: the made-up fault"
        assert "in raise_an_error" in done.stderr
        failure = json.loads((out / "logs" / "failure-rank-1.json").read_text())
        assert over - failure["time"] < 10
        assert (ended(out)["kind"], ended(out)["step"]) == ("defect", 3)
        assert ("set aside" in done.stdout) == (attempt == 3)
        assert again_path(RunFolder(out)).exists() == (attempt < 3)
    assert "failed 3 times in the stage train, after step 3" in done.stderr
    # Step 3 was perhaps still being published when the rank raised.
    assert newest in ("step-00000002", "step-00000003")
    assert [path.name for path in (out / "suspect").iterdir()] == [newest]
    assert f"{before} (step {int(before[5:])} of" in done.stdout
    assert_finishes(asked, out)


def test_a_rank_that_raises_ends_the_other_machine_too(asked: list[str], out: Path) -> None:
    """Two launchers as on two machines that share the run folder; the other's rank is not in an exchange."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launched = [
        start(asked, out, "raise:1:4 sleep:0:4", nproc=1, **machines, NODE_RANK=str(number))
        for number in (0, 1)
    ]
    for process in launched:
        done = wait(process)
        over = time.time()
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "plast: rank 1: ArithmeticError: the made-up fault"
        assert over - json.loads((out / "logs" / "failure-rank-1.json").read_text())["time"] < 10
    assert (ended(out)["kind"], ended(out)["rank"]) == ("defect", 1)
