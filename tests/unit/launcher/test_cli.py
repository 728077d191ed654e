"""The command line: what it answers, how fast, with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import COMMANDS, main
from launcher.commands import attention, evaluate, run
from launcher.doctor import machine
from launcher.table import benchmark_table
from plast_train.stages import STAGES


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
