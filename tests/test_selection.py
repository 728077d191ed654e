import itertools
import math

import numpy as np
import pytest

from plast_train.selection.statistics import LayerStatistics, layer_statistics

LANGUAGES = ("pt", "en", "zh")  # English deliberately not first


def tables_of(active: np.ndarray) -> dict[str, np.ndarray]:
    """Integer tables from booleans `[S, L, G, N]`, as collecting writes them (one text position a record)."""
    english = active[:, :, 1:2]
    return {
        "active": active.sum(-1).astype(np.int32),
        "shared_with_english": (active & english).sum(-1).astype(np.int32),
        "token_counts": active.sum(0).transpose(1, 0, 2).astype(np.int64),
        "tokens": np.full(active.shape[2], active.shape[0], dtype=np.int64),
    }


@pytest.fixture
def activations() -> np.ndarray:
    random = np.random.default_rng(7)
    density = random.uniform(0.1, 0.9, size=(1, 4, 3, 1))
    return random.random((9, 4, 3, 50)) < density


def test_last_position_equals_sets_counted_one_by_one(activations):
    found = layer_statistics(tables_of(activations), LANGUAGES, "last")
    records, layers, languages, _ = activations.shape
    for layer, language in itertools.product(range(layers), range(languages)):
        overlaps, indices, sizes = [], [], []
        for record in range(records):
            a = set(np.flatnonzero(activations[record, layer, language]).tolist())
            b = set(np.flatnonzero(activations[record, layer, 1]).tolist())
            overlaps.append(len(a & b) / len(b))
            indices.append(len(a & b) / len(a | b))
            sizes.append(len(a))
        assert found.overlap[layer, language] == pytest.approx(np.mean(overlaps), rel=1e-14)
        assert found.jaccard[layer, language] == pytest.approx(np.mean(indices), rel=1e-14)
        assert found.active[layer, language] == pytest.approx(np.mean(sizes), rel=1e-14)
    assert (found.overlap[:, 1] == 1).all()
    assert (found.jaccard[:, 1] == 1).all()


def test_question_text_equals_frequencies_summed_one_by_one():
    random = np.random.default_rng(3)
    tokens = np.array([40, 31, 57])
    counts = random.integers(0, tokens[:, None, None] + 1, size=(3, 2, 20))
    found = layer_statistics({"token_counts": counts, "tokens": tokens}, LANGUAGES, "text")
    for layer, language in itertools.product(range(2), range(3)):
        p = [c / tokens[language] for c in counts[language, layer].tolist()]
        q = [c / tokens[1] for c in counts[1, layer].tolist()]
        smaller, larger = sum(map(min, p, q)), sum(map(max, p, q))
        assert found.overlap[layer, language] == pytest.approx(smaller / sum(q), rel=1e-12)
        assert found.jaccard[layer, language] == pytest.approx(smaller / larger, rel=1e-12)
        assert found.active[layer, language] == pytest.approx(sum(p), rel=1e-12)


def test_both_positions_agree_on_one_record_with_one_position(activations):
    tables = tables_of(activations[:1])
    last, text = (layer_statistics(tables, LANGUAGES, position) for position in ("last", "text"))
    np.testing.assert_allclose(text.overlap, last.overlap, rtol=1e-15)
    np.testing.assert_allclose(text.jaccard, last.jaccard, rtol=1e-15)
    np.testing.assert_array_equal(text.active, last.active)


def test_msd_by_hand():
    statistics = LayerStatistics(
        LANGUAGES, np.ones((1, 3)), np.ones((1, 3)), active=np.array([[10.0, 16.0, 13.0]])
    )
    assert statistics.msd("mean").tolist() == [(9 + 9 + 0) / 3]
    assert statistics.msd("english").tolist() == [(36 + 9) / 2]


def test_order_of_records_changes_no_bit(activations):
    order = np.random.default_rng(1).permutation(len(activations))
    one = layer_statistics(tables_of(activations), LANGUAGES, "last")
    two = layer_statistics(tables_of(activations[order]), LANGUAGES, "last")
    for name in ("overlap", "jaccard", "active"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_curve_leaves_english_out(activations):
    found = layer_statistics(tables_of(activations), LANGUAGES, "last")
    expected = [math.fsum(row[[0, 2]].tolist()) / 2 for row in found.jaccard]
    assert found.curve("jaccard").tolist() == expected
    assert found.curve("english")[0] == (found.overlap[0, 0] + found.overlap[0, 2]) / 2


def test_empty_sets_share_all_of_nothing():
    active = np.zeros((2, 1, 3, 4), dtype=bool)
    active[:, :, 0, 0] = True  # Portuguese alone fires
    found = layer_statistics(tables_of(active), LANGUAGES, "last")
    assert found.overlap.tolist() == [[1.0, 1.0, 1.0]]
    assert found.jaccard.tolist() == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["shared_with_english"].__iadd__(100), "larger than one of its sets"),
        (lambda t: t.update(active=t["active"][:, :, :2]), "not \\[S, L, 3\\]"),
        (lambda t: t.update(active=t["active"][:0], shared_with_english=t["active"][:0]), "no record"),
    ],
)
def test_contradicting_tables_are_refused(activations, change, message):
    tables = tables_of(activations)
    change(tables)
    with pytest.raises(ValueError, match=message):
        layer_statistics(tables, LANGUAGES, "last")
