"""`plast evaluate` of a model and of a run, as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import plast
from support.training_runs import make_config

from plast_train.config import dump_config
from plast_train.lvlm.loading import describe_base, resolve_base

# Whole launches: minutes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a finished run as evaluating reads; its export is a model with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    folder.mkdir()
    config = make_config(dtype="float32")
    config = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"max_new_tokens": 4, "batch_size": 4})}
    )
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "base.json").write_text(
        json.dumps(describe_base(resolve_base(config.model.model_copy(update={"path": "tiny"}))))
    )
    shutil.copytree(tiny_folder, folder / "export")
    return folder


def test_a_run_its_base_and_its_export(run: Path, shared: Path, tmp_path: Path) -> None:
    """Once whole; again, nothing to do; with a benchmark more on other ranks, only that is answered; a model
    that is not the folder's is refused."""
    english, turkish = (shared / "data" / "benchmarks" / f"mmmb_style_{x}.tsv" for x in ("en", "tr"))
    out = tmp_path / "out"
    done = plast("evaluate", run, "--benchmarks", english, "--out", out, "--nproc", "2")
    assert "mmmb_style: accuracy in % of rows, base model and trained model" in done.stdout
    long = [line for line in done.stdout.splitlines() if len(line) > 100 and "/" not in line]
    assert not [line for line in long if "WARNING" not in line]
    lines = [
        json.loads(x) for x in (out / "evaluation/predictions/mmmb_style.en.jsonl").open(encoding="utf-8")
    ]
    assert [line["model"] for line in lines] == ["base"] * 12 + ["plast"] * 12
    assert {"index", "question", "A", "B", "answer", "category", "l2-category", "prediction"} <= set(lines[0])
    right = sum(line["prediction"] == line["answer"] for line in lines[:12])
    results = json.loads((out / "evaluation/results.json").read_text())
    assert results["mmmb_style"]["en"]["base"]["generated"]["parrot2024"] == right / 12
    assert "p_holm" in results["mmmb_style"]["en"]["comparison"]["generated"]

    parts = {path: path.read_text() for path in out.glob("evaluation/parts/*/rank-*.jsonl")}
    assert len(parts) == 4
    again = plast("evaluate", run, "--benchmarks", english, "--out", out, "--nproc", "2")
    assert "done before, skipped" in again.stdout and "mmmb_style" in again.stdout
    more = plast("evaluate", run, "--benchmarks", english, turkish, "--out", out, "--nproc", "1")
    assert "mean of the others" in more.stdout
    for path, text in parts.items():
        assert path.read_text().startswith(text)
    answered = [line for path in parts for line in path.read_text().splitlines()]
    assert len(answered) == 48
    refused = plast("evaluate", "tiny", "--benchmarks", english, "--out", out, fails=True)
    assert refused.returncode == 2 and "holds the evaluation of" in refused.stderr


def test_a_model_answers_open_questions(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "xgqa.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    (tmp_path / "xgqa.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = plast(
        *("evaluate", "tiny", "--benchmarks", tmp_path / "xgqa.jsonl", "--out", tmp_path / "out"),
        *("--nproc", "1", "evaluate.max_new_tokens=3"),
    )
    assert "xgqa: tiny" in done.stdout and "zh" in done.stdout
    results = json.loads((tmp_path / "out/evaluation/results.json").read_text())["xgqa"]
    assert sorted(results) == ["bn", "de", "en", "id", "ko", "pt", "ru", "zh"]
    assert list(results["pt"]["tiny"]["generated"]) == ["xgqa", "maxm"]
    assert results["pt"]["tiny"]["option_logits"] is None
