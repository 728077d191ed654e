"""How much the token trees save when collecting: 100 records in 6 languages, each about an image.

    python benchmarks/collect.py [--image-size 336 --patch-size 14] [--threads 1]

Runs the same questions through a tiny LLaVA-1.5 with random weights twice, in one process: as packed rows of
token trees, and one question at a time. Prints processed tokens and seconds of both, and their ratios. With
the default sizes an image takes 576 tokens, as in LLaVA-1.5.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from launcher.checks.paths import tiny_world
from plast_train.config import DataConfig
from plast_train.data.images import load_image
from plast_train.data.packing import PackedRow, fill_rows, pack_row
from plast_train.data.questions import read_records
from plast_train.data.token_tree import build_tree
from plast_train.lvlm.families import family_of
from plast_train.lvlm.forward import row_inputs
from plast_train.lvlm.loading import Lvlm, load_text_side
from plast_train.run_folder import read_json
from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.base import make_tiny

LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru"]
RECORDS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image-size", type=int, default=336)
    parser.add_argument("--patch-size", type=int, default=14)
    # On a CPU the mask is dense, so long rows of several trees cost more attention than they save.
    parser.add_argument("--tokens-per-row", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        lvlm = load(Path(folder), TinySizes(image_size=arguments.image_size, patch_size=arguments.patch_size))
    config = DataConfig(questions=[str(tiny_world() / "questions.jsonl")], languages=LANGUAGES)
    records = [record for record in read_records(config) if record.image][:RECORDS]
    prompter = lvlm.prompter(LANGUAGES)
    groups = list(prompter.probes(records, range(len(records))))
    budget = arguments.tokens_per_row
    packed = [pack_row(trees) for trees in fill_rows([build_tree(group) for group in groups], budget)]
    single = [pack_row([build_tree([sequence])]) for group in groups for sequence in group]
    run(lvlm, packed[:1])  # warm-up
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s)")
    results = {name: measure(lvlm, rows) for name, rows in (("token trees", packed), ("one by one", single))}
    for name, (tokens, seconds) in results.items():
        print(f"{name:12} {tokens:9,} tokens {seconds:8.2f} s")
    (tokens, seconds), (plain_tokens, plain_seconds) = results.values()
    print(f"ratio        {plain_tokens / tokens:9.2f} x      {plain_seconds / seconds:8.2f} x")


def load(folder: Path, sizes: TinySizes) -> Lvlm:
    from transformers import AutoModelForImageTextToText

    make_tiny(folder, random_weights=True, sizes=sizes)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    tokenizer, images = load_text_side(folder, False)
    family = family_of(read_json(folder / "config.json"), str(folder))
    return Lvlm(model.eval(), tokenizer, images, family, folder, "")


def measure(lvlm: Lvlm, rows: Sequence[PackedRow]) -> tuple[int, float]:
    """Processed tokens and seconds."""
    began = time.perf_counter()
    run(lvlm, rows)
    return sum(len(row.input_ids) for row in rows), time.perf_counter() - began


@torch.no_grad()
def run(lvlm: Lvlm, rows: Sequence[PackedRow]) -> None:
    body = lvlm.model.get_submodule("model")
    for row in rows:
        pixels = lvlm.pixel_values([load_image(path) for path in row.images])
        body(**row_inputs(lvlm.model, replace(row, pixel_values=pixels)), use_cache=False)


if __name__ == "__main__":
    main()
