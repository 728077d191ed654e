"""Which neurons are counted, against gates that are written down by hand."""

from __future__ import annotations

import torch

from plast_train.data.packing import PackedRow, pack_row
from plast_train.data.token_tree import Key, TokenSequence, build_tree
from plast_train.neurons.counts import ActivationCounts, GateCounter, index_row

ENGLISH, GERMAN, CHINESE = 1, 0, 2  # English is not the first of the languages
CPU = torch.device("cpu")
NUM_LAYERS, NUM_NEURONS = 2, 5


def row_of_two_records() -> PackedRow:
    """Record 7 in three languages, record 4 in two; each begins with a shared prefix of three tokens."""

    def sequence(record: int, language: int, words: int) -> TokenSequence:
        text = [100 * record + 10 * language + i for i in range(words)]
        return TokenSequence.of(Key(record, language), (1, 2, 3, *text, 9), (3, 3 + words))

    first = [sequence(7, GERMAN, 2), sequence(7, ENGLISH, 1), sequence(7, CHINESE, 3)]
    return pack_row([build_tree(first), build_tree([sequence(4, GERMAN, 2), sequence(4, ENGLISH, 2)])])


def counted(gates: torch.Tensor, row: PackedRow) -> ActivationCounts:
    """`gates` are `[layers, tokens, neurons]`."""
    counts = ActivationCounts.zeros(2, NUM_LAYERS, 3, NUM_NEURONS, CPU)
    counter = GateCounter(counts)
    modules = [torch.nn.Identity() for _ in range(NUM_LAYERS)]
    slots = {4: 0, 7: 1}
    with counter.attached(modules):
        with counter.watch(index_row(row, slots, ENGLISH, CPU)):
            for module, gate in zip(modules, gates, strict=True):
                module(gate[None])
        with counter.watch(None):  # a repeated row, which does not count
            for module, gate in zip(modules, gates, strict=True):
                module(gate[None])
    return counts


def test_sets_are_those_of_the_gates_above_zero() -> None:
    row = row_of_two_records()
    # Every third gate is 0, which is closed.
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_LAYERS, len(row.input_ids), NUM_NEURONS)
    gates = torch.randint(-1, 2, shape, generator=generator).float()
    counts = counted(gates, row)
    slots = {4: 0, 7: 1}
    expected = ActivationCounts.zeros(2, NUM_LAYERS, 3, NUM_NEURONS, CPU)
    for layer in range(NUM_LAYERS):
        fires = {
            placed.sequence.key: {
                n for n in range(NUM_NEURONS) if gates[layer, placed.at(placed.sequence.length - 1), n] > 0
            }
            for placed in row.placed
        }
        for key, neurons in fires.items():
            expected.active[slots[key.record], layer, key.language] = len(neurons)
            english = fires[Key(key.record, ENGLISH)]
            expected.shared_with_english[slots[key.record], layer, key.language] = len(neurons & english)
            for n in neurons:
                expected.neuron_counts[key.language, layer, n] += 1
        for placed in row.placed:
            for position in range(*placed.sequence.question):
                at = placed.branch_at + position - placed.prefix
                for n in range(NUM_NEURONS):
                    expected.token_counts[placed.sequence.key.language, layer, n] += int(
                        gates[layer, at, n] > 0
                    )
    for placed in row.placed:
        start, stop = placed.sequence.question
        expected.tokens[placed.sequence.key.language] += stop - start
    assert expected.tokens.tolist() == [4, 3, 3]
    for name, table in expected.state_dict().items():
        assert torch.equal(counts.state_dict()[name], table), name


def test_tables_of_other_rows_are_added() -> None:
    row = row_of_two_records()
    gates = torch.ones(NUM_LAYERS, len(row.input_ids), NUM_NEURONS)
    one, other = counted(gates, row), counted(gates, row)
    one.add(other.state_dict())
    for name, table in one.state_dict().items():
        assert torch.equal(table, 2 * other.state_dict()[name]) and table.any(), name
