"""Packing must not change the maths: a packed row of several trees with images against one sequence at a
time, in float32 (hidden states, loss, gradients), and the tests must notice a broken mask."""

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
from plast_train.lvlm import attention
from plast_train.lvlm.families import family_of
from plast_train.lvlm.forward import row_inputs
from plast_train.lvlm.loading import Lvlm, load_text_side
from plast_train.lvlm.prompts import BATCH
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


def test_hidden_states_of_a_packed_row(lvlm: Lvlm, records: list[Record]) -> None:
    assert worst_hidden_state(lvlm, records) <= TOLERANCE


@pytest.mark.slow  # compiles
def test_hidden_states_under_flex_attention(lvlm: Lvlm, records: list[Record]) -> None:
    """The mask used on CUDA: the same rule as a `BlockMask`."""
    lvlm.model.set_attn_implementation({"text_config": "flex_attention", "vision_config": "sdpa"})
    try:
        assert worst_hidden_state(lvlm, records[:2]) <= TOLERANCE
    finally:
        lvlm.model.set_attn_implementation("sdpa")


def test_loss_and_gradients_of_a_packed_row(lvlm: Lvlm, records: list[Record]) -> None:
    parameters = [p for layer in lvlm.family.layers(lvlm.model)[:2] for p in layer.parameters()]
    groups = sequences_of(lvlm, records, training=True)
    packed = loss(lvlm, pack_row([build_tree(group) for group in groups]))
    packed_gradients = torch.autograd.grad(packed, parameters)
    singles = [loss(lvlm, alone(s)) for group in groups for s in group]
    single_gradients = torch.autograd.grad(sum(singles), parameters)
    assert relative(packed.detach(), sum(singles).detach()) <= TOLERANCE
    for ours, plain in zip(packed_gradients, single_gradients, strict=True):
        assert relative(ours, plain) <= TOLERANCE


MUTATIONS = {
    "branches see each other": lambda tree, branch, q, k: (tree[q] == tree[k]) & (k <= q),
    "trees see each other": lambda tree, branch, q, k: (
        ((branch[k] == 0) | (branch[k] == branch[q])) & (k <= q)
    ),
    "the prefix is unseen": lambda tree, branch, q, k: (
        (tree[q] == tree[k]) & (branch[k] == branch[q]) & (k <= q)
    ),
    "the future is seen": lambda tree, branch, q, k: (
        (tree[q] == tree[k]) & ((branch[k] == 0) | (branch[k] == branch[q]))
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_mask_is_noticed(
    lvlm: Lvlm, records: list[Record], mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = sequences_of(lvlm, records, training=False)
    row = pack_row([build_tree(group) for group in groups])
    singles = [hidden_states(lvlm, alone(placed.sequence)) for placed in row.placed]
    monkeypatch.setattr(attention, "_visible", MUTATIONS[mutation])
    packed = hidden_states(lvlm, row)
    errors = [
        relative(packed[:, placed.span(0, len(placed.sequence.tokens))], single)
        for placed, single in zip(row.placed, singles, strict=True)
    ]
    assert max(errors) > 100 * TOLERANCE


def test_prompts_are_the_processors_own_tokens(lvlm: Lvlm, records: list[Record], tiny_folder: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_folder)
    # More records than are tokenised at a time.
    groups = sequences_of(lvlm, records * (BATCH // 4 + 1), training=False)
    assert len(groups) > BATCH and [s.tokens for s in groups[-4]] == [s.tokens for s in groups[0]]
    for group, record in zip(groups, records, strict=False):
        for sequence, language in zip(group, LANGUAGES, strict=True):
            text = lvlm.family.chat.prompt(record.questions[language], record.image is not None)
            images = [Image.open(record.image).convert("RGB")] if record.image else None
            plain = processor(images=images, text=text, return_tensors="pt")["input_ids"][0].tolist()
            assert list(sequence.tokens) == plain
            start, stop = sequence.question
            asked = lvlm.tokenizer.decode(sequence.tokens[start:stop])
            assert asked.replace(" ", "") == record.questions[language].replace(" ", "")


def test_labels_are_the_reply_and_the_end(lvlm: Lvlm, records: list[Record]) -> None:
    english = LANGUAGES.index("en")
    for group in sequences_of(lvlm, records, training=True):
        assert {sequence.key.language for sequence in group} == {0, 1, 2} - {english}
        for sequence in group:
            reply = lvlm.tokenizer.decode(sequence.tokens[-sequence.labels :])
            question = records[sequence.key.record].questions["en"]
            assert reply.replace(" ", "") == question.replace(" ", "") + "</s>"
