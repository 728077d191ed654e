"""The command line in an interpreter of its own: how fast it answers, and what it does not import."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import COMMANDS

HEAVY = "{'torch', 'transformers', 'deepspeed', 'numpy'}"
# Drawing the tiny world takes seconds.
NO_WORLD = ("data.questions=[nowhere.jsonl]", "evaluate.benchmarks=[]")


def fresh(arguments: list[str], heavy: str = HEAVY) -> tuple[int, str, float]:
    """Exit code, output and seconds of a command in a new interpreter, which must not import `heavy`. Seconds
    of CPU: those of the clock where nothing else is at work, for it starts nothing and waits for nothing.
    """
    code = (
        "import sys; from launcher.cli import main; code = main(sys.argv[1:]); "
        f"loaded = {heavy} & set(sys.modules); assert not loaded, loaded; sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done.returncode, done.stdout + done.stderr, seconds


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "make-tiny"),
        (["run", "--help"], 0, "section.key=value"),
        (["rum"], 2, "did you mean 'run'?"),
        (["run", "tiny", "--nporc", "2", "--out", "x"], 2, "did you mean '--nproc'?"),
        (["run", "tiny"], 2, "--out"),
    ],
)
def test_help_and_refusals_come_at_once(arguments: list[str], code: int, answer: str) -> None:
    tries = 5
    found, output, seconds = fresh(arguments, HEAVY[:-1] + ", 'pydantic', 'yaml'}")
    assert (found, answer in output) == (code, True), output
    while seconds > 0.5 and (tries := tries - 1):  # 0.1 s on an idle machine, but a busy one is slower
        seconds = fresh(arguments)[2]
    assert seconds < 0.5


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["run", "tinny", "--out", "x"], "did you mean 'tiny'?"),
        (["run", "tiny", "--out", "x", "train.max_step=3"], "did you mean 'max_steps'?"),
        (["run", "tiny", "--out", "x", "train.max_steps=-1"], "train.max_steps"),
        (["run", "tiny", "--out", "x", "selection.strategy=random"], "selection.k"),
        (["run", "tiny", "--out", "x", "train.deepspeed=zero9"], "zero1"),
        (["run", "tiny", "--out", "x", "train.betas=[1.5,-2]"], "train.betas"),
        (["run", "tiny", "--out", "x", "train.learning_rate=.inf"], "train.learning_rate"),
        (["run", "tiny", "--out", "x", "data.languages=[en,EN]"], "a language twice"),
        (["run", "tiny", "--out", "x", "selection.strategy=layers", "selection.layers=[1,1]"], "twice"),
        (["run", "tiny", "--out", "x", *NO_WORLD, "evaluate.benchmarks=[none_en.tsv]"], "none_en.tsv"),
        (["collect", "tiny", "--out", "x", *NO_WORLD], "nowhere.jsonl"),
    ],
)  # fmt: skip
def test_wrong_config_is_refused_without_torch(
    arguments: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, _ = fresh(arguments, "{'torch'}")
    assert (code, answer in output, "Traceback" in output) == (2, True, False), output
    assert not (tmp_path / "x").exists()


def test_help_of_every_command_comes_at_once() -> None:
    code = (
        "import sys; from launcher.cli import COMMANDS, main; "
        "codes = {main([name, '--help']) for name in COMMANDS}; "
        f"loaded = {HEAVY[:-1]}, 'pydantic', 'yaml'}} & set(sys.modules); print(codes, loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("{0} set()\n")
    text = " ".join(done.stdout.split())  # lines are wrapped
    for name, (_, summary) in COMMANDS.items():
        assert f"Usage: plast {name} " in text and summary in text


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("plast make", {"make-tiny"}),
        ("plast run ti", {"tiny"}),
        ("plast run tiny train.max", {"train.max_steps="}),
        ("plast run tiny --np", {"--nproc"}),
    ],
)
def test_completion_in_a_shell(words: str, completed: set[str]) -> None:
    environment = {"_PLAST_COMPLETE": "bash_complete", "COMP_WORDS": words}
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli"],
        env=os.environ | environment | {"COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == completed
