"""`plast ablate` on two real ranks: killed and gone on with; sharing does not change what a run is."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.commands import plast, wait_for
from support.paths import ROOT
from support.training_runs import LANGUAGES, make_base, questions

from launcher.commands import ablate
from launcher.processes.lock import only_launcher
from launcher.processes.stops import Stops
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, publish_text

OPTIONS = [
    *("model.dtype=float32", "selection.strategy=top_k", "selection.k=1", "probe.records=8"),
    *("train.max_steps=6", "train.global_batch=8", "train.learning_rate=1e-2", "train.tokens_per_row=256"),
    *("train.validation_records=4", "probe.tokens_per_row=256", "checkpoint.every_steps=3"),
    *("evaluate.max_new_tokens=4", "evaluate.batch_size=4", "ablate.only={lora: {train.lora_rank: 2}}"),
]
VARIANTS = "deepest,shallowest,lora,full"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a recipe: a small random LLaVA, 24 questions in three languages, a benchmark."""
    folder = tmp_path_factory.mktemp("recipe")
    base = make_base(folder)
    Image.new("RGB", (16, 16), (200, 30, 90)).save(folder / "picture.png")
    lines = [
        json.dumps({"id": str(n), "image": "picture.png", "questions": questions(n)}, ensure_ascii=False)
        for n in range(24)
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (10, 200, 90)).save(picture, format="PNG")
    image = base64.b64encode(picture.getvalue()).decode()
    for language in LANGUAGES:
        rows = ["index\tquestion\tA\tB\tanswer\timage"]
        for n in range(6):
            rows.append(f"{n}\t{questions(n)[language]}\t1\t2\t{'AB'[n % 2]}\t{image if n == 0 else 0}")
        (folder / f"quiz_{language}.tsv").write_text("\n".join(rows) + "\n")
    yaml = f"""model: {{path: {base}}}
data:
  questions: [{folder}/questions.jsonl]
  languages: [{", ".join(LANGUAGES)}]
evaluate:
  benchmarks: [{", ".join(f"{folder}/quiz_{language}.tsv" for language in LANGUAGES)}]
"""
    (folder / "recipe.yaml").write_text(yaml)
    return [str(folder / "recipe.yaml"), *OPTIONS]


@pytest.fixture(scope="module")
def ablation(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Killed when the second launch has trained a run, then begun again."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    arguments = ["ablate", *recipe, "--out", str(out), "--nproc", "2", "--seeds", "2", "--variants", VARIANTS]
    first = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(out / "runs" / "lora-seed-0" / "stages" / "train.json", seconds=900)
    first.send_signal(signal.SIGKILL)  # the ranks end with it
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/top_k-seed-*/stages/*.json")}
    done = plast(*arguments, timeout=1200)
    return SimpleNamespace(out=out, before=before, text=done.stdout, arguments=arguments)


@pytest.mark.slow
def test_what_was_done_is_not_done_again(ablation: SimpleNamespace) -> None:
    assert len(ablation.before) == 2 * 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in ablation.before.items())
    again = plast(*ablation.arguments, timeout=300)
    assert "run 1 of" not in again.stdout and "quiz: accuracy" in again.stdout


@pytest.mark.slow
def test_every_variant_is_in_the_table(ablation: SimpleNamespace) -> None:
    tree = json.loads((ablation.out / "ablation.json").read_text())
    names = {entry["variant"] for entry in tree}
    assert names == {"top_k", *VARIANTS.split(",")} and len(tree) == 2 * len(names)
    layers = {(e["variant"], e["seed"]): e["layers"] for e in tree}
    assert layers["full", 0] == layers["lora", 1] == [0, 1, 2] and layers["deepest", 0] == [2]
    chosen = layers["top_k", 0]
    runs = {(e["variant"], e["seed"]): e["run"] for e in tree}
    for name, own in (("shallowest", [0]), ("deepest", [2])):
        expected = f"runs/{'top_k' if chosen == own else name}-seed-0"
        assert runs[name, 0] == expected
    for name in names:
        assert any(line.startswith(name) for line in ablation.text.splitlines())
    for file in ("ablation.csv", "ablation.png", "ablation.svg", "ablation-quiz.tex", "ablation.txt"):
        assert (ablation.out / file).stat().st_size > 0
    freezing = json.loads((ablation.out / "runs" / "lora-seed-1" / "freezing.json").read_text())
    assert freezing["trained_parameters"] > 0 and all(".lora_" in n for n in freezing["trained_tensors"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora-seed-1", ["selection.strategy=all", "train.method=lora", "train.lora_rank=2"]),
        ("full-seed-0", ["selection.strategy=all", "train.method=full"]),
    ],
)
def test_a_run_is_the_same_as_alone(
    ablation: SimpleNamespace, recipe: list[str], tmp_path: Path, name: str, options: list[str]
) -> None:
    seed = name[-1]
    own = [o for o in recipe if not o.startswith("selection.")]
    alone = tmp_path / "alone"
    plast("run", *own, *options, f"seed={seed}", "--out", alone, "--nproc", "2", timeout=600)
    shared = ablation.out / "runs" / name
    for file in (
        "activations/statistics.safetensors",
        "selection.json",
        "export/model.safetensors",
        "evaluation/results.json",
        *(f"evaluation/predictions/quiz.{language}.jsonl" for language in LANGUAGES),
    ):
        assert (shared / file).read_bytes() == (alone / file).read_bytes(), file
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (shared, alone)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_shared_files_are_one_and_answers_are_copies(ablation: SimpleNamespace) -> None:
    runs = ablation.out / "runs"
    one, other = (
        runs / name / "activations" / "statistics.safetensors" for name in ("top_k-seed-0", "full-seed-0")
    )
    assert one.samefile(other)
    parts = [runs / name / "evaluation" / "parts" / "base" for name in ("top_k-seed-0", "full-seed-1")]
    names = [sorted(path.name for path in folder.iterdir()) for folder in parts]
    assert names[0] == names[1]
    for one, other in ((parts[0] / name, parts[1] / name) for name in names[0]):
        assert one.read_bytes() == other.read_bytes() and not one.samefile(other)


@pytest.mark.slow
def test_a_variant_s_run_folder_is_an_ordinary_one(ablation: SimpleNamespace) -> None:
    run = ablation.out / "runs" / "full-seed-1"
    status = json.loads(plast("status", run, "--json").stdout)
    assert status["stages_done"][:5] == ["collect", "select", "train", "export", "evaluate"]
    assert "not running" in plast("status", run).stdout
    # What an ablation leaves out, analyses and report.
    done = plast("run", run / "config.yaml", "--out", run, "--nproc", "2", timeout=300)
    assert "evaluate: done before, skipped" in done.stdout
    assert "vision tower" in (run / "report" / "index.html").read_text()


@pytest.mark.slow
def test_a_variant_that_diverges_costs_only_itself(recipe: list[str], tmp_path: Path) -> None:
    """The run after it is the same as alone, and the same command tries it again."""
    only = "ablate.only={all: {train.learning_rate: 1e30}, lora: {train.lora_rank: 2}}"
    own = [option for option in recipe if not option.startswith("ablate.only")]
    out = tmp_path / "out"
    command = ["ablate", *own, only, "--out", out, "--nproc", "2", "--seeds", "1", "--variants", "all,lora"]
    done = plast(*command, timeout=600)
    assert "WARNING: all-seed-0 is left out" in done.stdout and "quiz: accuracy" in done.stdout
    why = (out / "runs" / "all-seed-0" / "diverged.txt").read_text()
    assert "is nan; records" in why or "is not finite; records" in why
    entries = {entry["variant"]: entry for entry in json.loads((out / "ablation.json").read_text())}
    assert entries["all"]["run"] is None and entries["all"]["refused"].startswith(why.partition(";")[0])
    assert entries["lora"]["run"] == "runs/lora-seed-0"

    own = [option for option in own if not option.startswith("selection.")]
    options = ["selection.strategy=all", "train.method=lora", "train.lora_rank=2", "seed=0"]
    plast("run", *own, *options, "--out", tmp_path / "alone", "--nproc", "2", timeout=600)
    for file in ("export/model.safetensors", "evaluation/results.json"):
        shared = out / "runs" / "lora-seed-0" / file
        assert shared.read_bytes() == (tmp_path / "alone" / file).read_bytes(), file
    assert "run 1 of 1: all-seed-0" in plast(*command, timeout=600).stdout


def test_no_other_launcher_works_in_a_run_of_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [RunFolder(tmp_path / "runs" / name) for name in ("msd-seed-0", "msd-seed-1")]
    todo = [SimpleNamespace(run=run, todo=("train",)) for run in folders]
    prepared: Any = SimpleNamespace(run=RunFolder(tmp_path), nproc=1, gpus=[], machines=None)
    launched = []

    def start_ranks(_out: RunFolder, names: list[str], *_: object) -> SimpleNamespace:
        for run in folders:
            with pytest.raises(UserError, match="another plast works there"), only_launcher(run):
                pass
        launched.append(names)
        return SimpleNamespace(kind="done")

    monkeypatch.setattr("launcher.processes.torchrun.start_ranks", start_ranks)
    monkeypatch.setattr(ablate, "_runs", lambda *_: todo)
    monkeypatch.setattr(ablate, "_check_room", lambda *_: None)
    monkeypatch.setattr(ablate, "write_down", lambda prepared: publish_text(prepared.run.records, "{}\n"))
    with Stops() as stops:
        assert ablate._launch([], prepared, stops) == 0
        with only_launcher(folders[1]), pytest.raises(UserError, match="msd-seed-1: another plast"):
            ablate._launch([], prepared, stops)
    assert launched == [["msd-seed-0", "msd-seed-1"]]
    for run in folders:  # given back
        with only_launcher(run):
            pass


def test_a_wrong_variant_is_refused_before_anything_runs(recipe: list[str], tmp_path: Path) -> None:
    refused = plast("ablate", *recipe, "--out", tmp_path / "out", "--variants", "deepset", fails=True)
    assert refused.returncode == 2 and "did you mean 'deepest'" in refused.stderr
    assert not (tmp_path / "out").exists()
