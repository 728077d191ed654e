"""The small run that is killed again and again: a random LLaVA of 3 layers, 24 records, 12 steps, two
benchmarks of 12 questions; and what must be the same at its end however often it was killed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from PIL import Image

from launcher.checks.preflight import preflight
from launcher.commands.run import write_down
from plast_train.checkpoint.format import step_name
from plast_train.run_folder import sha256_of
from plast_train.stages import STAGES
from plast_train.tiny.base import make_tiny
from support.checkpoint_makers import verify
from support.training_runs import LANGUAGES, SIZES, questions

STEPS = 12
RECORDS = 24
# Every interval is so short that each row is published while collecting, and each step while training.
SETTINGS = [
    f"data.languages=[{','.join(LANGUAGES)}]",
    f"probe.records={RECORDS}",
    "probe.tokens_per_row=256",
    "selection.strategy=shallowest",
    "selection.k=2",
    f"train.max_steps={STEPS}",
    "train.global_batch=8",
    "train.learning_rate=5e-3",
    "train.tokens_per_row=256",
    "train.validation_records=4",
    "train.validate_every=6",
    "checkpoint.every_minutes=1e-6",
    "checkpoint.keep=2",
    "evaluate.batch_size=2",
    "analyse.records=4",
    "analyse.items=2",
    "analyse.attention_records=2",
    "analyse.pictures=1",
    "evaluate.max_new_tokens=4",
]


def make_world(folder: Path, nproc: int) -> Path:
    """Writes model, data and benchmarks, and returns a run folder as the launcher leaves it to the ranks."""
    make_tiny(folder / "base", seed=0, random_weights=True, sizes=SIZES)
    records = []
    for number in range(RECORDS):
        image = f"image-{number}.png" if number % 3 == 0 else None
        if image is not None:
            Image.new("RGB", (16, 16), (10 * number, 255 - 9 * number, 7 * number)).save(folder / image)
        records.append({"id": f"record-{number}", "image": image, "questions": questions(number)})
    (folder / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    picture = base64.b64encode((folder / "image-0.png").read_bytes()).decode()
    for language in ("en", "de"):
        rows = [
            f"{number}\t{questions(number)[language]}\t{number}\t{number + 1}\tA\t{picture}"
            for number in range(RECORDS // 2)
        ]
        text = "\n".join(["index\tquestion\tA\tB\tanswer\timage", *rows]) + "\n"
        (folder / f"small_{language}.tsv").write_text(text)
    out = folder / "prepared"
    prepared = preflight("tiny", arguments(folder), out, nproc, STAGES)
    out.mkdir()
    write_down(prepared)
    return out


def arguments(folder: Path) -> list[str]:
    """The overrides of recipe `tiny` that make it this run."""
    return [
        f"model.path={folder / 'base'}",
        f"data.questions=[{folder / 'questions.jsonl'}]",
        f"evaluate.benchmarks=[{folder / 'small_en.tsv'},{folder / 'small_de.tsv'}]",
        *SETTINGS,
    ]


def require_same_end(run: Path, reference: Path) -> None:
    """Every result equals that of the run left alone, to the bit; nothing unfinished lies about."""
    assert checkpoint(run) == checkpoint(reference)
    for name in (
        "activations/statistics.safetensors",
        "activations/summary.json",
        "selection.json",
        "export/model.safetensors",
        "evaluation/results.json",
    ):
        assert sha256_of(run / name) == sha256_of(reference / name), name
    for name in ("neurons", "stability", "representation", "knockout"):
        assert analysis(run, name) == analysis(reference, name), name
    steps = metrics(run)
    assert [step for step, *_ in steps] == list(range(1, STEPS + 1))
    assert steps == metrics(reference)
    assert answers(run) == answers(reference)
    unfinished = [p.name for p in (run, run / "checkpoints") for p in p.glob(".*.*") if p.is_dir()]
    assert unfinished == [], unfinished
    assert not (run / "activations" / "parts").exists()


def analysis(run: Path, name: str) -> dict[str, Any]:
    """Without the hash of what it was made from, to which the training's times belong."""
    tree = json.loads((run / "analysis" / f"{name}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in tree.items() if key != "made_from"}


def checkpoint(run: Path) -> Any:
    """Sizes and SHA-256 of all shards of the last one: weights, moments and random states of every rank."""
    return verify(run / "checkpoints" / step_name(STEPS))["files"]


def metrics(run: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "gradient_norm", "validation_loss")
    return [tuple(line.get(key) for key in keys) for line in lines]


def answers(run: Path) -> list[Any]:
    files = sorted((run / "evaluation" / "predictions").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
