"""Packing must not change the maths: a packed row of several trees with images against one sequence at a
time, in float32 (hidden states, loss, gradients), and the tests must notice a broken mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.packed_rows import (
    LANGUAGES,
    TOLERANCE,
    alone,
    hidden_states,
    loss,
    relative,
    sequences_of,
    worst_hidden_state,
)

from plast_train.data.packing import pack_row
from plast_train.data.questions import Record
from plast_train.data.token_tree import build_tree
from plast_train.lvlm import attention
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import BATCH


def test_hidden_states_of_a_packed_row(lvlm: Lvlm, records: list[Record]) -> None:
    assert worst_hidden_state(lvlm, records) <= TOLERANCE


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
