"""`plast submit` and the job script, without a Slurm: stand-ins take down what they are called with."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

from launcher.cli import main
from launcher.commands import submit
from launcher.commands.submit import Job, plan_jobs

SLURM = ROOT / "slurm"


def test_the_two_heads_say_the_same_and_all_of_it() -> None:
    small, large = ((SLURM / f"plast_{size}.sh").read_text() for size in ("7b", "13b"))
    assert small.replace("7b", "13b").replace("7B", "13B") == large
    documented = set(re.findall(r"^# +(PLAST_\w+)|(?<=, )(PLAST_\w+)  ", small, re.MULTILINE))
    names = {first or second for first, second in documented}
    used = set(re.findall(r"PLAST_[A-Z_]+[A-Z]", (SLURM / "job.sh").read_text()))
    assert used == names


@pytest.mark.parametrize(
    ("sizes", "jobs"),
    [
        (None, [("plast-tiny", ("run",), 2)]),
        (
            "collect=1,train=4",
            [("plast-tiny-collect", ("collect", "select"), 1), ("plast-tiny-train", ("run",), 4)],
        ),
        (
            "train=4,export=1",
            [("plast-tiny-train", ("train",), 4), ("plast-tiny-export", ("run",), 1)],
        ),
    ],
)
def test_jobs_of_a_chain(sizes: str | None, jobs: list[tuple[str, tuple[str, ...], int]]) -> None:
    assert plan_jobs("tiny", None if sizes else 2, sizes) == [Job(*job) for job in jobs]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "colect=1"], "did you mean 'collect'"),
        (["--stages", "train=4,collect=1"], "in this order"),
        (["--stages", "train=4,train=1"], "once"),
        (["--stages", "collect"], "STAGE=NODES"),
        (["--stages", "collect=0"], "STAGE=NODES"),
        (["--stages", "collect=1", "--nodes", "2"], "one of them"),
        (["--partition", "a\n#SBATCH --wrap=x"], "--partition"),
        (["--account", "me --wrap=x"], "--account"),
        (["train.instruction=a {question}\nb"], "one line"),
        (["train.steps=3"], "unknown key 'train.steps'"),
    ],
)
def test_refused_before_anything_is_submitted(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "submit_all", lambda *_: pytest.fail("submitted"))
    assert main(["submit", "tiny", "--out", "RUN", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_sbatch_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["submit", "tiny", "--out", "RUN"]) == 2
    assert "login node" in capsys.readouterr().err
    assert main(["submit", "tiny", "--out", "RUN", "--nodes", "3", "--dry-run"]) == 0
    assert "#SBATCH --nodes=3\n" in capsys.readouterr().out
