"""Token trees and packed rows: shapes, splits, dealing (no model)."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from plast_train.data.packing import balance_rows, fill_rows, pack_row, shard_rows, shard_step
from plast_train.data.questions import Record
from plast_train.data.sampling import Step, plan_training, probe_records, split_records
from plast_train.data.token_tree import Key, TokenSequence, TokenTree, build_tree, split_tree
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.lvlm.prompts import Prompter


def sequence(record: int, language: int, body: list[int], labels: int = 0, image: str | None = None):
    return TokenSequence.of(Key(record, language), body, (0, 1), labels, image)


def test_prefix_is_the_longest_common_run() -> None:
    tree = build_tree([sequence(0, 0, [1, 2, 3, 4, 5]), sequence(0, 1, [1, 2, 3, 9, 5, 6])])
    assert tree.prefix == 3
    assert tree.tokens == 3 + 2 + 3


def test_prefix_never_swallows_a_position_that_is_read() -> None:
    same = [sequence(0, 0, [1, 2, 3]), sequence(0, 1, [1, 2, 3])]
    assert build_tree(same).prefix == 2
    translations = [sequence(0, 0, [1, 2, 3, 7, 8], labels=2), sequence(0, 1, [1, 2, 3, 7, 8], labels=2)]
    assert build_tree(translations).prefix == 2  # position 2 predicts the first label


def test_row_positions_restart_and_lead_back_to_the_tokens() -> None:
    trees = [
        build_tree([sequence(0, 0, [1, 2, 3, 4]), sequence(0, 1, [1, 2, 5, 6, 7])]),
        build_tree([sequence(1, 0, [8, 9])]),
    ]
    row = pack_row(trees)
    for placed in row.placed:
        where = placed.span(0, len(placed.sequence.tokens))
        assert row.input_ids[where].tolist() == list(placed.sequence.tokens)
        assert row.position_ids[where].tolist() == list(range(len(where)))
    assert len(row.input_ids) == sum(t.tokens for t in trees)


def test_targets_are_the_labels_and_the_positions_before_them() -> None:
    row = pack_row([build_tree([sequence(0, 0, [1, 2, 3, 7, 8], 2), sequence(0, 1, [1, 4, 5, 6, 9], 1)])])
    indices, labels = row.targets()
    assert labels.tolist() == [7, 8, 9]
    assert row.input_ids[indices].tolist() == [3, 7, 6]


def test_split_keeps_every_sequence_within_the_budget() -> None:
    tree = build_tree([sequence(0, i, [1, 2, 3, 10 + i, 20 + i]) for i in range(5)])
    parts = split_tree(tree, 9)
    assert [s for part in parts for s in part.sequences] == list(tree.sequences)
    assert max(part.tokens for part in parts) <= 9
    with pytest.raises(ValueError, match="does not fit"):
        split_tree(tree, 4)


def test_a_sequence_takes_little_memory() -> None:
    """A translation about an image of LLaVA-1.5: 576 tokens for it, 80 of text, as tuples more than 8 kB."""
    rng = random.Random(0)
    made = [[*range(1, 36), *[32000] * 576, *(rng.randrange(32000) for _ in range(45))] for _ in range(500)]
    tracemalloc.start()
    sequences = [
        TokenSequence.of(Key(1000 + i, 300), tokens, (620, 640), 15, "x.png") for i, tokens in enumerate(made)
    ]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(sequences) < 1000
    assert [list(s.tokens) for s in sequences] == made
    assert {s.length for s in sequences} == {656} and {s.last_prompt_position for s in sequences} == {640}


def random_trees(count: int, seed: int) -> list[TokenTree]:
    rng = random.Random(seed)
    return [
        build_tree([sequence(i, 0, [1] * rng.randint(3, 40), image="x" if rng.random() < 0.5 else None)])
        for i in range(count)
    ]


def test_rows_hold_every_tree_once_within_the_budget_and_of_one_kind() -> None:
    trees = random_trees(200, 0)
    rows = fill_rows(trees, 100)
    placed = sorted(t.sequences[0].key for row in rows for t in row)
    assert placed == sorted(t.sequences[0].key for t in trees)
    assert all(sum(t.tokens for t in row) <= 100 for row in rows)
    assert all(len({t.image is None for t in row}) == 1 for row in rows)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_sharding_covers_each_row_once_and_ranks_are_alike(world: int) -> None:
    rows = fill_rows(random_trees(120, 1), 100)
    shares = [shard_rows(rows, rank, world) for rank in range(world)]
    assert sorted(r.number for share in shares for r in share if r.counts) == list(range(len(rows)))
    for round_ in zip(*shares, strict=True):
        assert len({rank_row.trees[0].image is None for rank_row in round_}) == 1
    step = balance_rows([t for t in random_trees(30, 2) if t.image], 5)
    shares = [shard_step(step, rank, world) for rank in range(world)]
    assert sorted(d.number for share in shares for d in share if d.counts) == [i for i in range(5) if step[i]]
    assert len({len(share) for share in shares}) == 1


def training_records(count: int):
    return [
        [sequence(i, lang, [1, 2, 3, 10 + i, lang, 5], 2, "x" if i % 3 else None) for lang in range(1, 4)]
        for i in range(count)
    ]


def test_plan_visits_every_sample_once_an_epoch() -> None:
    plan = plan_training(training_records(20), 8, 64, seed=0, epochs=1, max_steps=None)
    keys = [s.key for step in plan.steps for row in step.rows for tree in row for s in tree.sequences]
    assert sorted(keys) == sorted(Key(i, lang) for i in range(20) for lang in range(1, 4))
    assert {len(step.rows) for step in plan.steps} == {plan.rows_per_step}
    for step in plan.steps:
        trees = [tree for row in step.rows for tree in row]
        assert len({tree.image is None for tree in trees}) == 1
        assert step.labels == sum(s.labels for tree in trees for s in tree.sequences)


def test_plan_depends_on_the_seed_alone_and_max_steps_decides() -> None:
    plans = [plan_training(training_records(20), 8, 64, seed, 1, 11) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert len(plans[0].steps) == 11


def test_held_back_records_are_disjoint() -> None:
    train, held = split_records(50, 10, seed=3)
    assert not set(train) & set(held) and sorted(train + held) == list(range(50)) and len(held) == 10


def test_only_complete_records_are_probed() -> None:
    questions = [{"en": "Who?", "pt": "Quem?"}, {"en": "Who?"}] * 3
    records = [Record(str(n), asked, None, None, "") for n, asked in enumerate(questions)]
    assert probe_records(records, ["en"], 10, 0) == [0, 1, 2, 3, 4, 5]
    assert probe_records(records, ["en", "pt"], 10, 0) == [0, 2, 4]
    assert len(probe_records(records, ["en", "pt"], 2, 0)) == 2


def test_sharing_the_prefix_saves_two_thirds_of_the_tokens(shared: Path) -> None:
    """100 real records in 6 languages, each about an image of 576 tokens as in LLaVA-1.5."""
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(shared / "data" / "tokenizer")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image = tokenizer.convert_tokens_to_ids("<image>")
    languages = ["en", "de", "pt", "ru", "id", "zh"]
    prompter = Prompter(tokenizer, LLAVA_CHAT, image, 576, tuple(languages))
    lines = (shared / "data" / "xgqa.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    records = [Record("", json.loads(line)["questions"], "image.png", None, "") for line in lines]
    trees = [build_tree(group) for group in prompter.probes(records, range(len(records)))]
    one_by_one = sum(len(s.tokens) for tree in trees for s in tree.sequences)
    assert one_by_one >= 3 * sum(tree.tokens for tree in trees)


def test_what_the_middle_sequence_does_not_share_is_no_prefix() -> None:
    tree = build_tree([sequence(0, 0, [1, 2, 3]), sequence(0, 1, [1, 9, 9]), sequence(0, 2, [1, 2, 4])])
    assert tree.prefix == 1


def test_a_tree_of_the_budget_is_not_split() -> None:
    tree = build_tree([sequence(0, 0, [1, 2, 3, 4]), sequence(0, 1, [1, 2, 5, 6])])
    assert split_tree(tree, tree.tokens) == [tree]


def tree_of(tokens: int) -> TokenTree:
    return build_tree([sequence(tokens, 0, list(range(tokens)))])


def test_rows_are_balanced_longest_first() -> None:
    rows = balance_rows([tree_of(n) for n in (1, 1, 1, 1, 4)], 2)
    assert sorted(sum(tree.tokens for tree in row) for row in rows) == [4, 4]


def test_an_empty_row_is_replaced_by_one_that_does_not_count() -> None:
    rows = [[tree_of(2)], [tree_of(5)], []]
    found = [shard_step(rows, rank, 3) for rank in range(3)]
    assert [(row.number, row.counts) for (row,) in found] == [(0, True), (1, True), (1, False)]


def test_at_least_one_record_is_left_to_train_on() -> None:
    assert [len(part) for part in split_records(3, 5, seed=0)] == [1, 2]


def order_of(steps: Sequence[Step]) -> list[Key]:
    return [s.key for step in steps for row in step.rows for tree in row for s in tree.sequences]


def test_each_epoch_has_an_order_of_its_own() -> None:
    plan = plan_training(training_records(20), 4, 64, seed=0, epochs=2, max_steps=None)
    half = len(plan.steps) // 2
    first, second = order_of(plan.steps[:half]), order_of(plan.steps[half:])
    assert sorted(first) == sorted(second) and first != second


def test_a_part_of_a_step_is_a_step() -> None:
    records = [[sequence(number, 1, [1, 2, 3], labels=1)] for number in range(5)]  # three steps of two
    for epochs, steps in ((0.1, 1), (0.5, 2), (1.0, 3), (1.1, 4)):
        assert len(plan_training(records, 2, 64, 0, epochs, None).steps) == steps


def test_every_step_has_rows_for_the_longest() -> None:
    """Also where most steps would need fewer."""
    lengths = [3] * 8 + [60] * 4
    records = [[sequence(n, 1, list(range(length)), labels=1)] for n, length in enumerate(lengths)]
    for seed in range(5):
        plan = plan_training(records, 4, 64, seed, 1.0, None)
        assert all(sum(tree.tokens for tree in row) <= 64 for step in plan.steps for row in step.rows)
        assert {len(step.rows) for step in plan.steps} == {plan.rows_per_step}
