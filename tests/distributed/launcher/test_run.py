"""`plast run` end to end on real questions and two real ranks: every stage, then again, then changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.commands import plast
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.stages import STAGES
from plast_train.tasks.prompts import multiple_choice_text
from plast_train.tasks.registry import read_benchmark

XGQA = ["en", "de", "pt", "ru", "zh", "ko", "bn", "id"]
SHORT = ["probe.records=24", "train.max_steps=4", "train.global_batch=16", "train.validation_records=6"]


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, a real 32k tokenizer, made by the command that makes tiny models."""
    folder = tmp_path_factory.mktemp("models") / "tiny32k"
    plast("make-tiny", "--out", folder, "--tokenizer", shared / "data" / "tokenizer", "--random-weights")
    return folder


def arguments(model: Path, shared: Path, out: Path) -> list[str]:
    return [
        *("run", "tiny", "--nproc", "2", "--out", str(out), f"model.path={model}", *SHORT),
        f"data.questions=[{shared}/data/xgqa.jsonl]",
        f"data.languages=[{','.join(XGQA)}]",
        # Random weights have no layers that stand out, which the default rule refuses.
        *("selection.strategy=shallowest", "selection.k=2"),
        f"evaluate.benchmarks=[{shared}/data/benchmarks/mmmb_style_en.tsv,{shared}/data/benchmarks/mmmb_style_cn.tsv]",
    ]


@pytest.fixture(scope="module")
def run(model: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "xgqa"
    done = plast(*arguments(model, shared, out), timeout=600)
    assert "before" in done.stdout and str(out) in done.stdout
    return out


def test_every_stage_leaves_what_the_design_says(run: Path) -> None:
    for name in [
        *(
            "config.yaml",
            "environment.json",
            "activations/statistics.safetensors",
            "activations/summary.json",
        ),
        *("selection.json", "checkpoints/step-00000004/manifest.json", "metrics.jsonl", "logs/rank-1.log"),
        *("export/model.safetensors", "evaluation/results.json", "report/index.html"),
        "evaluation/predictions/mmmb_style.en.jsonl",
    ]:
        assert (run / name).is_file(), name
    assert sorted(p.stem for p in (run / "stages").iterdir()) == sorted(STAGES)
    selection = json.loads((run / "selection.json").read_text())
    assert selection["selected_layers"] == [0, 1]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    fields = {"loss", "learning_rate", "gradient_norm", "samples_per_second", "tokens_per_second"}
    fields |= {"seconds", "useful_flops_per_second", "data_wait_share", "peak_memory_bytes"}
    assert all(m[field] > 0 for m in metrics[:-1] for field in fields - {"data_wait_share"})
    assert set(metrics[-1]["validation_loss"]) == set(XGQA) - {"en"}
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert fields <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]


def test_only_the_selected_layers_differ_and_the_export_loads(run: Path, model: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).state_dict()
    trained = AutoModelForImageTextToText.from_pretrained(run / "export", dtype=torch.float32).state_dict()
    assert AutoProcessor.from_pretrained(run / "export").image_token == "<image>"
    differ = {name for name in base if not torch.equal(base[name], trained[name])}
    selected = {
        n for n in base if n.startswith(("model.language_model.layers.0.", "model.language_model.layers.1."))
    }
    assert differ == selected


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(run: Path) -> None:
    trained = json.loads((run / "selection.json").read_text())["trainable_parameters"]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000004").iterdir())
    expected = trained * 12 + 2 * 64 * 1024
    assert abs(size - expected) <= 0.1 * expected


def test_the_export_gives_the_logits_of_the_ranks(run: Path, shared: Path) -> None:
    """The option letters' logits that the ranks recorded, against plain transformers on the export."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(run / "export")
    model = AutoModelForImageTextToText.from_pretrained(run / "export", dtype=torch.float32).eval()
    lines = (
        (run / "evaluation" / "predictions" / "mmmb_style.en.jsonl").read_text(encoding="utf-8").splitlines()
    )
    answers = {r["index"]: r for r in map(json.loads, lines) if r["model"] == "plast"}
    for item in read_benchmark(shared / "data" / "benchmarks" / "mmmb_style_en.tsv").items[:3]:
        prompt = LLAVA_CHAT.prompt(multiple_choice_text(item.question, item.options, item.hint), True)
        inputs = processor(text=prompt, images=[item.image], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        for letter, logit in answers[item.index]["option_logits"].items():
            token = processor.tokenizer(f"{prompt} {letter}")["input_ids"][-1]
            assert abs(logits[token].item() - logit) < 1e-4


def test_a_second_run_skips_everything_and_a_changed_setting_redoes_what_follows(
    run: Path, model: Path, shared: Path
) -> None:
    again = plast(*arguments(model, shared, run))
    assert again.stdout.count("skipped") == len(STAGES)
    statistics = (run / "activations" / "statistics.safetensors").stat().st_mtime_ns
    longer = plast(*arguments(model, shared, run), "train.max_steps=5", timeout=600)
    assert longer.stdout.count("skipped") == 2
    assert (run / "activations" / "statistics.safetensors").stat().st_mtime_ns == statistics
    assert (run / "checkpoints" / "step-00000005").is_dir()


def test_a_typo_leaves_the_run_as_it_was(run: Path, model: Path, shared: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    wrong = plast(*arguments(model, shared, run), "train.learning_rat=1", fails=True)
    assert wrong.returncode == 2
    assert "learning_rate" in wrong.stderr
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_questions_with_photographs(model: Path, shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plast(
        *("run", "tiny", "--nproc", "2", "--out", out, f"model.path={model}", *SHORT, "train.max_steps=2"),
        f"data.questions=[{shared}/data/image_questions.jsonl]",
        *(f"data.image_root={shared}/data", "data.languages=[en,zh,pt,ar,tr,ru]", "train.deepspeed=zero3"),
        *("selection.strategy=middle", "selection.k=2", "evaluate.benchmarks=[]"),
        timeout=600,
    )
    assert (out / "report" / "index.html").is_file()
