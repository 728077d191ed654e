"""Run folders ready for the training stage, a small random LLaVA, and real torchrun ranks to train it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from plast_train.checkpoint.format import checkpoints, step_name
from plast_train.config import Config, dump_config, load_config
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.lvlm.loading import describe_base
from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.base import make_tiny
from plast_train.tiny.tokenizer import train_tokenizer
from support.paths import ROOT

LANGUAGES = ["en", "de", "pt"]
STEPS = 20
SIZES = TinySizes(
    image_size=16,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    width=32,
    layers=3,
    heads=4,
    ffn_width=72,
    max_positions=512,
)
_WORDS = {
    "en": ("How many {} are there?", "red dogs|blue cats|green cars|small birds|old houses|white boats"),
    "de": (
        "Wie viele {} gibt es?",
        "rote Hunde|blaue Katzen|grüne Autos|kleine Vögel|alte Häuser|weiße Boote",
    ),
    "pt": ("Quantos {} existem?", "cães vermelhos|gatos azuis|carros verdes|pássaros|casas velhas|barcos"),
}


def questions(number: int) -> dict[str, str]:
    return {
        language: f"{number}. " + pattern.format(things.split("|")[number % 6])
        for language, (pattern, things) in _WORDS.items()
    }


def make_base(folder: Path) -> Path:
    """A LLaVA of 3 layers with random weights and a tokenizer of its own."""
    texts = [text for number in range(40) for text in questions(number).values()]
    train_tokenizer(
        [*texts, *[LLAVA_CHAT.prompt("Translate the following question", False)] * 3],
        folder / "tokenizer",
        420,
    )
    make_tiny(folder / "base", seed=0, tokenizer=folder / "tokenizer", random_weights=True, sizes=SIZES)
    # Fresh logits are all but equal, and the frozen head would keep them so: nothing could be learned.
    weights = load_file(folder / "base" / "model.safetensors")
    weights["language_model.lm_head.weight"] *= 10
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return folder / "base"


def make_config(every_steps: int = 5, every_minutes: float = 60.0, **train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "base", "dtype": train.pop("dtype", "float32")},
            "data": {"questions": ["unused"], "languages": LANGUAGES},
            "train": {
                "deepspeed": "zero2",
                "max_steps": STEPS,
                "global_batch": 8,
                "learning_rate": 5e-3,
                "warmup_fraction": 0.2,
                "weight_decay": 0.01,
                "gradient_clipping": 0.5,
                "tokens_per_row": 256,
                "validation_records": 4,
                "validate_every": 10,
                **train,
            },
            "checkpoint": {"every_steps": every_steps, "every_minutes": every_minutes, "keep": 10},
        }
    )


def make_run(folder: Path, base: Path, config: Config, layers: Sequence[int] = (0, 1)) -> Path:
    """A run folder as the stages before training leave it: 24 records, every third with an image, two of them
    without German."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "base.json").write_text(json.dumps(describe_base(base)))
    lines = []
    for number in range(24):
        image = folder / f"image-{number}.png" if number % 3 == 0 else None
        if image is not None:
            Image.new("RGB", (16, 16), (10 * number, 255 - 9 * number, 7 * number)).save(image)
        record = {
            "id": f"record-{number}",
            "questions": {k: q for k, q in questions(number).items() if k != "de" or number not in (6, 7)},
            "image": str(image) if image else None,
            "answer": None,
            "where": f"line {number + 1}",
        }
        lines.append(json.dumps(record))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "selection.json").write_text(json.dumps({"selected_layers": list(layers), "modules": "all"}))
    return folder


def continue_run(source: Path, target: Path, steps: Sequence[int], **train: Any) -> Path:
    """A copy of a run as if it had been killed: with its checkpoints of `steps` only, and its metrics."""
    shutil.copytree(source, target)
    for checkpoint in checkpoints(target / "checkpoints"):
        if checkpoint.name not in {step_name(step) for step in steps}:
            shutil.rmtree(checkpoint)
    if train:
        config = load_config(str(target / "config.yaml"))
        changed = config.train.model_copy(update=train)
        changed_config = config.model_copy(update={"train": changed})
        (target / "config.yaml").write_text(dump_config(changed_config))
    return target


def start_ranks(world: int, runs: Sequence[Path]) -> subprocess.Popen[str]:
    """Torchrun, training the runs one after the other in the same processes."""
    root = ROOT
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    script = Path(__file__).parent / "ranks_train.py"
    return subprocess.Popen(
        [*command, str(script), *map(str, runs)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def train_runs(world: int, runs: Sequence[Path]) -> str:
    """Trains to the end and returns what rank 0 said on the terminal; what stopped a run is in its
    `UserError.txt`, `Diverged.txt` or `Interrupted.txt`."""
    process = start_ranks(world, runs)
    try:
        terminal, _ = process.communicate(timeout=1200)
    finally:
        process.kill()
    logs = [p.read_text(errors="replace")[-3000:] for p in sorted(runs[0].glob("logs/rank-*.log"))]
    assert process.returncode == 0, "\n".join(logs)
    return terminal


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in metrics(run)], dtype=torch.float64)
