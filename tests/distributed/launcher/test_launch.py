"""The launcher: what it refuses before ranks start, what it skips, how it treats ranks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.paths import TESTS

from launcher.checks import machine, preflight
from launcher.cli import main
from launcher.commands import run
from launcher.processes import torchrun
from launcher.processes.outcome import Outcome
from launcher.processes.torchrun import Machines
from plast_train.checkpoint.format import manifest_text
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, read_json
from plast_train.runtime.failures import Failure, publish_failure
from plast_train.stages import STAGES, inputs_of, settings_of

QUESTIONS = [
    {"id": str(n), "image": None, "questions": {"en": f"Is it {n}?", "pt": f"São {n}?"}} for n in range(4)
]


@pytest.fixture
def asked(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """Overrides of the recipe `tiny`: another model, four questions, no benchmark."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in QUESTIONS))
    return [
        f"model.path={tiny_folder}",
        f"data.questions=[{questions}]",
        "data.languages=[en,pt]",
        "evaluate.benchmarks=[]",
        "train.validation_records=1",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


Change = Callable[[Path, list[str], pytest.MonkeyPatch], dict[str, Any]]


def base_without(pattern: str) -> Change:
    def change(folder: Path, asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
        shutil.copytree(asked[0].partition("=")[2], folder / "base")
        for path in (folder / "base").glob(pattern):
            path.unlink()
        return {"overrides": [f"model.path={folder / 'base'}"]}

    return change


def broken_index(folder: Path, asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    shutil.copytree(asked[0].partition("=")[2], folder / "base")
    (folder / "base" / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    return {"overrides": [f"model.path={folder / 'base'}"]}


def wrong_architecture(folder: Path, asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    shutil.copytree(asked[0].partition("=")[2], folder / "base")
    (folder / "base" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    return {"overrides": [f"model.path={folder / 'base'}"]}


def config_is_a_list(folder: Path, asked: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    changed = wrong_architecture(folder, asked, patch)
    (folder / "base" / "config.json").write_text("[]")
    return changed


def no_english(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "bad.jsonl").write_text('{"id": "a", "questions": {"pt": "Sim?"}}\n')
    return {"overrides": [f"data.questions=[{folder / 'bad.jsonl'}]"]}


def long_question(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    record = {"id": "a", "questions": {"en": "Is it red? " * 30, "pt": "É vermelho? " * 30}}
    (folder / "long.jsonl").write_text(json.dumps(record) + "\n")
    # Each alone would fit.
    return {"overrides": [f"data.questions=[{folder / 'long.jsonl'}]", "probe.tokens_per_row=300"]}


def nothing_to_probe(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of two records the only one with every language is too long and left out."""
    lines = [
        {"id": "a", "questions": {"en": "Is it red? " * 30, "pt": "É vermelho? " * 30, "de": "Rot? " * 30}},
        {"id": "b", "questions": {"en": "Is it red?", "pt": "É vermelho?"}},
    ]
    (folder / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [f"data.questions=[{folder / 'few.jsonl'}]", "data.languages=[en,pt,de]"]
    return {"overrides": [*asked, "data.max_bad_fraction=0.5", "probe.tokens_per_row=300"]}


def other_base(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    manifest = folder / "RUN" / "checkpoints" / "step-00000003" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(manifest_text({"format": 1, "step": 3, "base": "0123456789abcdef0123"}))
    return {}


def file_in_the_way(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "file").write_text("")
    return {"out": folder / "file" / "RUN"}


def full_disk(_folder: Path, _asked: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(machine.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    return {}


def no_permission(folder: Path, _asked: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    # The superuser may write anywhere, so the answer of the system is put in its mouth.
    patch.setattr(machine.os, "access", lambda path, _mode: Path(path) != folder)
    return {}


def bad_benchmark(folder: Path, _asked: list[str], _patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "bench_en.tsv").write_text("index\tquestion\n")
    return {"overrides": [f"evaluate.benchmarks=[{folder / 'bench_en.tsv'}]"]}


def more_ranks_than_gpus(_folder: Path, _asked: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr("plast_train.runtime.devices.count_gpus", lambda: 2)
    return {"nproc": 3}


def with_override(*overrides: str) -> Change:
    return lambda _folder, _asked, _patch: {"overrides": list(overrides)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (base_without("model.safetensors"), "no .*weights"),
        (broken_index, "index.json: has no 'weight_map'"),
        (base_without("config.json"), "config.json"),
        (base_without("tokenizer*"), "tokenizer"),
        (base_without("*processor_config.json"), "image processor cannot be loaded"),
        (with_override("train.validation_records=9"), "to train on; give"),
        (wrong_architecture, "'bert' is not supported"),
        (config_is_a_list, r"base/config.json: is \[\], not a JSON object"),
        (with_override("model.path=/no/such/model"), "no such folder"),
        (no_english, "line 1.*no English question"),
        (nothing_to_probe, "no record with a question in every language can be probed"),
        (with_override("data.languages=[en,xx]"), "'xx'"),
        (long_question, "long.jsonl, line 1, id 'a': .* in all languages"),
        (with_override("train.instruction=<image> {question}"), "image tokens where"),
        (with_override("selection.strategy=layers", "selection.layers=[1,99]"), "no layer 99"),
        (with_override("selection.strategy=deepest", "selection.k=99"), "selection.k=99"),
        (bad_benchmark, "bench_en.tsv"),
        (other_base, "another base"),
        (file_in_the_way, "is not a folder"),
        (no_permission, "no permission"),
        (full_disk, "checkpoints of .* and an export of"),
        (more_ranks_than_gpus, "--nproc 3"),
        (lambda _f, _a, _p: {"nproc": 4 * (os.cpu_count() or 1) + 1}, "--nproc"),
    ],
)
def test_refused_before_anything_is_written(
    change: Change, message: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "start_ranks", lambda *_: pytest.fail("ranks were started"))
    changed = change(tmp_path, asked, monkeypatch)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"(?s){message}"):
        run.run_stages(
            "tiny",
            [*asked, *changed.get("overrides", [])],
            changed.get("out", tmp_path / "RUN"),
            changed.get("nproc", 1),
            STAGES,
        )
    assert contents(tmp_path) == before


def test_a_stage_alone_names_the_one_to_run_first(asked: list[str], tmp_path: Path) -> None:
    for stage in STAGES[1:]:
        with pytest.raises(UserError, match=rf"{stage}: collect is not done.*plast collect tiny --out"):
            run.run_stages("tiny", asked, tmp_path / "RUN", 1, (stage,))
    assert not (tmp_path / "RUN").exists()


def finish(prepared: preflight.Prepared, stages: tuple[str, ...]) -> None:
    """Publishes records as if ranks had done the stages."""
    for stage in stages:
        inputs = inputs_of(stage, prepared.config, prepared.run, prepared.base)
        assert inputs is not None
        output = prepared.run.path / f"output-of-{stage}"
        output.write_text("")
        prepared.run.publish_record(stage, settings_of(stage, prepared.config), inputs, [output])


def test_only_what_is_missing_is_done(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, started = tmp_path / "RUN", []

    def start_ranks(_run: RunFolder, stages: tuple[str, ...], *_rest: object) -> Outcome:
        started.append(stages)
        finish(preflight.preflight("tiny", overrides, out, 1, STAGES), stages)
        return Outcome("done")

    monkeypatch.setattr(torchrun, "start_ranks", start_ranks)
    overrides = asked
    assert run.run_stages("tiny", overrides, out, 1, ("collect", "select")) == 0
    assert run.run_stages("tiny", overrides, out, 1, STAGES) == 0
    written = contents(out)
    capsys.readouterr()
    assert run.run_stages("tiny", overrides, out, 1, STAGES) == 0
    assert started == [STAGES[:2], STAGES[2:]]
    assert contents(out) == written
    assert [f"{stage}: done before, skipped" for stage in STAGES] == capsys.readouterr().out.splitlines()[
        : len(STAGES)
    ]

    overrides = [*asked, "selection.strategy=deepest", "selection.k=2"]
    assert run.run_stages("tiny", overrides, out, 1, STAGES) == 0
    assert started[2:] == [STAGES[1:]]
    (out / "output-of-export").unlink()
    assert run.run_stages("tiny", overrides, out, 1, ("collect", "export")) == 0
    assert started[3:] == [("export",)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text(questions.read_text().replace("Is it 3?", "Is it three?"))
    assert run.run_stages("tiny", overrides, out, 1, STAGES) == 0
    assert started[4:] == [STAGES]


def test_balancing_what_is_balanced_is_doubtful(
    asked: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions = tmp_path / "questions.jsonl"
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    balanced = [*asked, "sampling.languages=balanced", "data.languages=[en,pt,de]"]
    for german in (len(lines), len(lines) - 1):
        caplog.clear()
        for number, line in enumerate(lines):
            line["questions"] = {k: line["questions"][k] for k in ("en", "pt")} | (
                {"de": "Was?"} if number < german else {}
            )
        questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
        preflight.preflight("tiny", balanced, tmp_path / "RUN", 1, STAGES)
        told = any("sampling.languages=balanced has no effect" in message for message in caplog.messages)
        assert told == (german == len(lines))


def test_what_the_ranks_read_is_written_down(asked: list[str], tmp_path: Path) -> None:
    prepared = preflight.preflight("tiny", asked, tmp_path / "RUN", 1, STAGES)
    assert not (tmp_path / "RUN").exists()
    run.write_down(prepared)
    again = preflight.preflight(str(prepared.run.config), [], tmp_path / "RUN", 1, STAGES)
    assert again.config == prepared.config
    assert read_json(prepared.run.base) == prepared.base
    records = [json.loads(line) for line in prepared.run.records.read_text().splitlines()]
    assert [(r["id"], r["questions"]) for r in records] == [(r["id"], r["questions"]) for r in QUESTIONS]
    assert read_json(prepared.run.environment)["packages"]["torch"]


def test_command_of_one_and_of_several_machines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a; rm -rf $HOME")
    alone = torchrun.command(folder, ["collect"], 2, Machines.of({}))
    assert alone[-2:] == [str(folder.path), "collect"]
    assert {"--standalone", "--nproc-per-node=2", "plast_train.pipeline"} <= set(alone)
    several = Machines.of({"NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "n1"})
    words = torchrun.command(folder, ["collect"], 8, several)
    wanted = {"--nnodes=3", "--node-rank=1", "--master-addr=n1", "--master-port=29500"}
    assert wanted <= set(words)
    assert "--standalone" not in words
    assert not several.is_first
    for wrong in ({"NNODES": "2"}, {"NNODES": "two"}, {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "n"}):
        with pytest.raises(UserError, match=r"NNODES|MASTER_ADDR|NODE_RANK"):
            Machines.of(wrong)


def test_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    assert [torchrun.rank_environment(n, 0)["OMP_NUM_THREADS"] for n in (1, 2, 4)] == ["1", "1", "1"]
    assert [torchrun.rank_environment(n, 8)["OMP_NUM_THREADS"] for n in (1, 8)] == ["8", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert torchrun.rank_environment(2, 0)["OMP_NUM_THREADS"] == "3"


LAUNCH = """
import sys
from pathlib import Path
from launcher.processes import torchrun
from plast_train.run_folder import RunFolder
torchrun.PIPELINE = "support.ranks_launch"
try:
    outcome = torchrun.start_ranks(RunFolder(Path(sys.argv[1])), [sys.argv[2]], 2, 0, torchrun.Machines())
except KeyboardInterrupt:
    sys.exit("stopped")
if outcome.kind != "done":
    sys.exit(f"{outcome.kind}: {outcome.message}")
"""


def launch(folder: Path, stage: str) -> subprocess.Popen[str]:
    """Real torchrun with two ranks of `ranks_launch`."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(folder), stage],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ranks_start_and_reach_the_terminal(tmp_path: Path) -> None:
    launched = launch(tmp_path, "tell")
    output, errors = launched.communicate(timeout=120)
    assert (launched.returncode, output, errors) == (0, "rank 0 of 2 on the terminal\n", "")
    assert [(tmp_path / f"threads-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_ranks_save(number: signal.Signals, tmp_path: Path) -> None:
    launched = launch(tmp_path, "wait")
    # Sent while the ranks are still starting.
    wait_for(lambda: len(psutil.Process(launched.pid).children(recursive=True)) == 3)
    launched.send_signal(number)
    _, errors = launched.communicate(timeout=120)
    assert launched.returncode == 1
    assert "saved" in errors
    assert "interrupted: " in errors
    assert len(list((tmp_path / "logs").glob("failure-rank-*.json"))) == 2


def test_a_second_interrupt_ends_the_ranks_at_once(tmp_path: Path) -> None:
    launched = launch(tmp_path, "hang")
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    ranks = [psutil.Process(int(path.read_text())) for path in tmp_path.glob("pid-*")]
    launched.send_signal(signal.SIGINT)
    assert launched.stderr is not None
    assert "save first" in launched.stderr.readline()
    launched.send_signal(signal.SIGINT)
    _, errors = launched.communicate(timeout=120)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    assert (launched.returncode, errors) == (1, "stopped\n")


def test_ranks_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launched = launch(tmp_path, "wait")
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    ranks = [psutil.Process(int(path.read_text())) for path in tmp_path.glob("pid-*")]
    launched.kill()
    launched.communicate(timeout=120)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("stage", "message"),
    [("die", "killed: rank 1: was ended by SIGKILL"), ("refuse", "user: line 3: mend it")],
)
def test_the_first_failure_is_told(stage: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    publish_failure(tmp_path / "logs", Failure(7, "user", "of the run before", time=0.0))
    launched = launch(tmp_path, stage)
    _, errors = launched.communicate(timeout=120)
    assert launched.returncode == 1
    assert message in errors.splitlines()[-1]
    assert "of the run before" not in errors


def test_user_errors_of_ranks_give_exit_code_2(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start_ranks(*_: object) -> Outcome:
        return Outcome("user", "step 3: the loss is NaN")

    monkeypatch.setattr(torchrun, "start_ranks", start_ranks)
    with contextlib.chdir(tmp_path):
        assert main(["run", "tiny", *asked, "--out", "RUN"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "plast: step 3: the loss is NaN"
