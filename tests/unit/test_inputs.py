"""What a stage's record names of its inputs: every picture counts by content, wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from launcher.checks.preflight import records_text
from plast_train.analysis.stage import ANALYSES, _identity
from plast_train.config import Config, DataConfig, EvaluateConfig, load_config, with_values
from plast_train.data.questions import read_records
from plast_train.data.sampling import TrainingPlan, plan_training
from plast_train.data.token_tree import Key, TokenSequence
from plast_train.run_folder import RunFolder, publish_text, sha256_of
from plast_train.stages import inputs_of, is_done, settings_of
from plast_train.tasks.registry import benchmark_hashes
from plast_train.training.train import _digest

BASE = {"fingerprint": "f"}


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def open_questions(folder: Path, language: str = "en", image: str | None = "a.png") -> Path:
    folder.mkdir(exist_ok=True)
    record = {"id": "1", "image": image, "questions": {language: "What?"}, "answer": "cat"}
    (folder / "xgqa.jsonl").write_text(json.dumps(record) + "\n")
    return folder / "xgqa.jsonl"


def exam(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    entry = {"question_text": "Which?", "options": ["(1) (image)[a.png] x", "(2) y"], "answer_text": "2"}
    (folder / "m3exam_en.json").write_text(json.dumps([entry]))
    return folder / "m3exam_en.json"


def hashes(*paths: Path, **options: Any) -> dict[str, str]:
    return benchmark_hashes(EvaluateConfig(benchmarks=[str(path) for path in paths], **options))


@pytest.mark.parametrize("make", [open_questions, exam])
def test_a_benchmark_counts_with_its_pictures(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "one")
    missing = hashes(path)
    paint(tmp_path / "one" / "a.png", "red")
    paint(tmp_path / "root" / "a.png", "blue")
    red, blue = hashes(path), hashes(path, image_root=str(tmp_path / "root"))
    assert len({str(each) for each in (missing, red, blue)}) == 3
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert hashes(tmp_path / "two" / path.name) == red  # the same benchmark on another machine
    paint(tmp_path / "one" / "a.png", "blue")
    assert hashes(path) == blue


def test_a_file_without_pictures_is_its_own_hash(shared: Path, tmp_path: Path) -> None:
    table = shared / "data" / "benchmarks" / "mmmb_style_en.tsv"
    text = open_questions(tmp_path, image=None)
    broken = tmp_path / "broken_en.json"
    broken.write_text("[")
    for path in (table, text, broken):
        assert hashes(path) == {path.name: sha256_of(path)}


def test_files_of_one_name_are_all_there(tmp_path: Path) -> None:
    paths = [open_questions(tmp_path / name, name, image=None) for name in ("de", "ko")]
    before = hashes(*paths)
    assert set(before) == {"xgqa.jsonl", "xgqa.jsonl (2)"}
    assert set(before.values()) == {sha256_of(path) for path in paths}
    assert hashes(*reversed(paths)) == before
    for path in paths:
        old = path.read_text()
        path.write_text(old.replace("What?", "Which?"))
        assert hashes(*paths) != before
        path.write_text(old)


def evaluated(folder: Path) -> tuple[RunFolder, Config]:
    """A run of which `evaluate` and what it needs are done, as far as records tell."""
    run = RunFolder(folder / "RUN")
    publish_text(run.records, "{}\n")
    paint(folder / "one" / "a.png", "red")
    benchmarks = [str(open_questions(folder / "one")), str(open_questions(folder / "two", "ko", None))]
    config = with_values(load_config("tiny"), {"evaluate.benchmarks": benchmarks}, "test")
    for stage in ("collect", "select", "train", "export", "evaluate"):
        inputs = inputs_of(stage, config, run, BASE)
        assert inputs is not None
        run.publish_record(stage, settings_of(stage, config), inputs, [])
    return run, config


def test_evaluation_is_not_done_with_other_pictures(tmp_path: Path) -> None:
    run, config = evaluated(tmp_path)
    context: Any = SimpleNamespace(config=config, run=run, base=BASE)
    identity = _identity(context, ANALYSES["knockout"])
    assert is_done("evaluate", config, run, BASE)
    other_root = with_values(config, {"evaluate.image_root": str(tmp_path)}, "test")
    assert not is_done("evaluate", other_root, run, BASE)
    paint(tmp_path / "one" / "a.png", "blue")
    assert not is_done("evaluate", config, run, BASE)
    assert is_done("export", config, run, BASE)
    assert _identity(context, ANALYSES["knockout"]) != identity
    paint(tmp_path / "one" / "a.png", "red")
    assert is_done("evaluate", config, run, BASE) and _identity(context, ANALYSES["knockout"]) == identity
    (tmp_path / "two" / "xgqa.jsonl").write_text("{}\n")
    assert not is_done("evaluate", config, run, BASE)
    assert _identity(context, ANALYSES["knockout"]) != identity


def plan(image: str | None) -> TrainingPlan:
    sequence = TokenSequence.of(Key(0, 1), [1, 2, 3], (1, 2), labels=1, image=image)
    return plan_training([[sequence]], 1, 64, seed=0, epochs=1.0, max_steps=1)


def test_a_replaced_picture_makes_another_record(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    questions = {"en": "What?", "pt": "O que?"}
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "questions": questions}))
    config = DataConfig(questions=[str(tmp_path / "q.jsonl")], languages=["en", "pt"])
    red = read_records(config)
    os.utime(tmp_path / "a.png", (1, 1))
    assert records_text(read_records(config)) == records_text(red)
    paint(tmp_path / "a.png", "blue")
    blue = read_records(config)
    assert records_text(blue) != records_text(red)
    # Checkpoints trained with the one are not gone on from with the other, unless no picture is trained with.
    image = red[0].image
    assert _digest(plan(image), red) != _digest(plan(image), blue)
    assert _digest(plan(None), red) == _digest(plan(None), blue)
