"""The command line: what it answers, how fast, with which exit code."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import COMMANDS, main
from launcher.commands import attention, evaluate, run
from launcher.doctor import machine
from launcher.table import benchmark_table
from plast_train.stages import STAGES

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


def test_options_and_values_in_any_order() -> None:
    for line in (
        "tiny a.b=1 c=2 --out RUN --nproc 2",
        "--nproc 2 --out RUN tiny a.b=1 c=2",
        "tiny --nproc=2 a.b=1 --out RUN c=2",
    ):
        found = run.run.make_context("run", line.split()).params
        expected = {"recipe": "tiny", "overrides": ("a.b=1", "c=2"), "nproc": 2, "out": Path("RUN")}
        assert found == expected


def test_options_of_several_values() -> None:
    for line in (
        "RUN --benchmarks a.tsv b.tsv model.dtype=float32 --out DIR",
        "--benchmarks a.tsv --out DIR --benchmarks b.tsv model.dtype=float32 -- RUN",
    ):
        found = evaluate.evaluate.make_context("evaluate", line.split()).params
        assert (found["target"], found["overrides"], found["out"]) == ("RUN", (), Path("DIR"))
        assert found["benchmarks"] == ("a.tsv", "b.tsv", "model.dtype=float32")
    found = attention.attention.make_context(
        "attention", ["RUN", "--layer", "3", "5", "--question", "q"]
    ).params
    assert (found["layer"], found["question"]) == ((3, 5), "q")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("run tiny --out --nproc 2", "'--out' requires"),
        ("run tiny --ou x", "did you mean '--out'?"),
        ("attention RUN --question q --layer 1 two", "two"),
        ("doctor --nproc 2", "--nproc needs --distributed"),
        ("submit tiny --out x --nodes", "--nodes"),
        ("compare", "RUN"),
        ("--verison", "did you mean '--version'?"),
    ],
)
def test_wrong_usage(line: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert answer in capsys.readouterr().err


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


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_number_of_ranks(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--out", "x", f"--nproc={number}"]) == 2
    assert number in capsys.readouterr().err


def test_a_command_for_each_stage() -> None:
    assert set(STAGES) < set(COMMANDS)


def test_without_arguments_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: plast COMMAND" in capsys.readouterr().out


def test_make_tiny_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make-tiny", "--out", str(tmp_path)]) == 2
    assert "give a new folder" in capsys.readouterr().err


def test_table_counts_and_averages() -> None:
    def scores(generated: float, logits: float) -> dict[str, object]:
        return {"generated": {"parrot2024": generated, "vlmevalkit2026": 0.0}, "option_logits": logits}

    cells = {
        "zh": {"n": 4, "base": scores(0.5, 0.5), "plast": scores(0.75, 0.5)},
        "en": {"n": 4, "base": scores(1.0, 0.75), "plast": scores(0.995, 1.0)},
        "ar": {"n": 4, "base": scores(0.25, 0.25), "plast": scores(0.25, 0.5)},
    }
    lines = [line.split() for line in benchmark_table("demo", cells, "parrot2024").splitlines()[3:]]
    assert lines == [
        ["en", "100.0", "99.5", "-0.5", "75.0", "100.0", "+25.0"],
        ["ar", "25.0", "25.0", "+0.0", "25.0", "50.0", "+25.0"],
        ["zh", "50.0", "75.0", "+25.0", "50.0", "50.0", "+0.0"],
        ["mean", "of", "the", "others", "37.5", "50.0", "+12.5", "37.5", "50.0", "+12.5"],
    ]
    for cell in cells.values():
        for model in ("base", "plast"):
            cell[model]["circular"] = scores(0.125, 0.125)
    circular = benchmark_table("demo", cells, "parrot2024")
    assert "every order" in circular
    assert circular.splitlines()[3].split()[1:3] == ["12.5", "12.5"]


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, lines
    assert {"torch", "deepspeed", "transformers", "disk"} <= {
        line.split()[1] for line in lines if line[0] != " "
    }


def test_doctor_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.txt").write_text("# tested\ntorch==0.0.1\n")
    found = {finding.subject: finding for finding in machine.packages(tmp_path / "c.txt")}
    assert found["torch"].level == "warn"
    assert "0.0.1" in found["torch"].remedy
    assert found["deepspeed"].level == "ok"
    monkeypatch.setattr(machine, "NEEDED", ("no-such-package",))
    assert machine.run_doctor() == 2
    assert "pip install no-such-package" in capsys.readouterr().out


def test_doctor_demands_a_c_compiler_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    subjects = {finding.subject for finding in machine.compiler()}
    assert "C compiler" not in subjects
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = next(machine.compiler())
    assert (found.subject, found.level) == ("C compiler", "fail")
    assert "gcc" in found.text and "apt-get install gcc" in found.remedy
    (tmp_path / "gcc").touch(0o755)
    assert next(machine.compiler()).level == "ok"
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in next(machine.compiler()).text
