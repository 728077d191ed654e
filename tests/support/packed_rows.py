"""Packed rows of a tiny LVLM beside one sequence at a time.
`lvlm` and `records` are fixtures, known to every test through `conftest.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from plast_train.config import TrainConfig
from plast_train.data.packing import PackedRow, pack_row
from plast_train.data.questions import Record
from plast_train.data.token_tree import TokenSequence, build_tree
from plast_train.lvlm.families import family_of
from plast_train.lvlm.forward import row_inputs
from plast_train.lvlm.loading import Lvlm, load_text_side
from plast_train.run_folder import read_json

LANGUAGES = ["en", "pt", "zh"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def lvlm(tiny_folder: Path) -> Lvlm:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    tokenizer, images = load_text_side(tiny_folder, False)
    config = read_json(tiny_folder / "config.json")
    return Lvlm(model.eval(), tokenizer, images, family_of(config, ""), tiny_folder, "")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number, colour in enumerate(["red", "blue", None, "green"]):
        path = folder / f"{colour}.png"
        if colour:
            Image.new("RGB", (60, 50), colour).save(path)
        questions = {
            "en": f"What color is circle {number}?",
            "pt": f"De que cor é o círculo {number}?",
            "zh": "圆形是什么颜色的?",
        }
        made.append(Record(str(number), questions, str(path) if colour else None, None, "test"))
    return made


def sequences_of(lvlm: Lvlm, records: list[Record], training: bool) -> list[list[TokenSequence]]:
    prompter = lvlm.prompter(LANGUAGES)
    numbers = range(len(records))
    return list(
        prompter.translations(records, numbers, TrainConfig())
        if training
        else prompter.probes(records, numbers)
    )


def pixels(lvlm: Lvlm, row: PackedRow) -> torch.Tensor | None:
    images = [Image.open(path).convert("RGB") for path in row.images]
    return lvlm.pixel_values(images) if images else None


def alone(sequence: TokenSequence) -> PackedRow:
    return pack_row([build_tree([sequence])])


def hidden_states(lvlm: Lvlm, row: PackedRow) -> torch.Tensor:
    with torch.no_grad():
        body = lvlm.model.get_submodule("model")
        inputs = row_inputs(lvlm.model, replace(row, pixel_values=pixels(lvlm, row)))
        out = body(**inputs, output_hidden_states=True, use_cache=False)
    return torch.stack(out.hidden_states)[:, 0]


def loss(lvlm: Lvlm, row: PackedRow) -> torch.Tensor:
    indices, labels = row.targets()
    inputs = row_inputs(lvlm.model, replace(row, pixel_values=pixels(lvlm, row)))
    logits = lvlm.model(**inputs, logits_to_keep=indices, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def worst_hidden_state(lvlm: Lvlm, records: list[Record]) -> float:
    groups = sequences_of(lvlm, records, training=False)
    row = pack_row([build_tree(group) for group in groups])
    packed = hidden_states(lvlm, row)
    errors = []
    for placed in row.placed:
        single = hidden_states(lvlm, alone(placed.sequence))
        where = placed.span(0, len(placed.sequence.tokens))
        errors.append(relative(packed[:, where], single))
    return max(errors)
