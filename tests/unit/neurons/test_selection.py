import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from plast_train.config import Config, SelectionConfig
from plast_train.errors import UserError
from plast_train.neurons.statistics import LayerStatistics, layer_statistics
from plast_train.neurons.strategies import FIXED, MEASURED, candidate_layers, layer_table, select_layers
from plast_train.run_folder import RunFolder
from plast_train.selection.select import select

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


def shaped(overlap: list[float], msd: list[float]) -> LayerStatistics:
    """Statistics of two languages whose overlap curve and MSD (from the mean) are the given lists."""
    curve, deviation = np.array(overlap), np.sqrt(np.array(msd))
    ones = np.ones(len(curve))
    ratios = np.stack([ones, curve], axis=1)
    return LayerStatistics(("en", "pt"), ratios, ratios, np.stack([100 + deviation, 100 - deviation], axis=1))


# Plateau 0.8 (median of layers 4–7); layers 0–2 lie more than 0.05 below it.
EIGHT = shaped([0.3, 0.4, 0.6, 0.76, 0.8, 0.8, 0.82, 0.5], [9.0, 1.0, 5.0, 49.0, 0.0, 0.0, 16.0, 64.0])


def test_msd_selects_candidates_above_their_mean():
    selection = select_layers(EIGHT, SelectionConfig(), seed=0)
    assert selection.candidates == (0, 1, 2)
    assert selection.plateau == pytest.approx(0.8)
    assert selection.threshold == pytest.approx(5.0)
    # Layer 2 lies on the threshold: rounding must not select it, so it is nudged to either side.
    for msd, selected in ((4.9, (0,)), (6.0, (0, 2))):
        nudged = shaped(EIGHT.overlap[:, 1].tolist(), [9.0, 1.0, msd, 49.0, 0.0, 0.0, 16.0, 64.0])
        assert select_layers(nudged, SelectionConfig(), seed=0).selected == selected


def test_threshold_over_all_layers():
    statistics = shaped(EIGHT.overlap[:, 1].tolist(), [9.0, 1.0, 5.0, 3.0, 0.0, 0.0, 2.0, 4.0])
    selection = select_layers(statistics, SelectionConfig(threshold="all_layers"), seed=0)
    assert selection.threshold == pytest.approx(3.0)
    assert selection.selected == (0, 2)


def test_tolerance_moves_the_end_of_the_candidates():
    for tolerance, candidates in ((0.0, (0, 1, 2, 3)), (0.25, (0, 1))):
        config = SelectionConfig(strategy="all", tolerance=tolerance)
        assert select_layers(EIGHT, config, seed=0).candidates == candidates


@pytest.mark.parametrize(
    ("strategy", "selected"),
    [("top_k", (3, 6, 7)), ("shallowest", (0, 1, 2)), ("middle", (2, 3, 4)), ("deepest", (5, 6, 7))],
)
def test_strategies_with_a_number(strategy, selected):
    assert select_layers(EIGHT, SelectionConfig(strategy=strategy, k=3), seed=0).selected == selected
    with pytest.raises(UserError, match="k=9: the decoder has 8 layers"):
        select_layers(EIGHT, SelectionConfig(strategy=strategy, k=9), seed=0)


def test_every_strategy_of_the_config_has_one_rule():
    names = get_args(SelectionConfig.model_fields["strategy"].annotation)
    assert sorted(names) == sorted([*FIXED, *MEASURED])


def test_top_k_prefers_the_shallower_of_equals():
    assert select_layers(EIGHT, SelectionConfig(strategy="top_k", k=7), seed=0).selected == (
        0,
        1,
        2,
        3,
        4,
        6,
        7,
    )


def test_random_is_seeded_and_without_replacement():
    config = SelectionConfig(strategy="random", k=5)
    draws = [select_layers(EIGHT, config, seed).selected for seed in range(20)]
    assert draws == [select_layers(EIGHT, config, seed).selected for seed in range(20)]
    assert all(len(set(draw)) == 5 and draw == tuple(sorted(draw)) for draw in draws)
    assert len(set(draws)) > 5


def test_layers_by_hand():
    def choose(layers):
        return select_layers(EIGHT, SelectionConfig(strategy="layers", layers=layers), seed=0).selected

    assert choose([5, 0]) == (0, 5)
    for layers, message in (([8], "no layer 8; layers are 0 to 7"), ([-1], "no layer -1")):
        with pytest.raises(UserError, match=message):
            choose(layers)


def test_all_selects_every_layer():
    assert select_layers(EIGHT, SelectionConfig(strategy="all"), seed=0).selected == tuple(range(8))


@pytest.mark.parametrize(
    ("statistics", "config", "reason"),
    [
        (shaped([0.8] * 8, [1.0] * 8), {}, "no candidate"),
        (shaped([0.1] + [0.8] * 7, [4.0] * 8), {}, "no candidate's MSD exceeds the threshold"),
        (
            shaped([0.1, 0.2] + [0.8] * 6, [9.0, 8.0] + [1.0] * 6),
            {"threshold": "all_layers"},
            "every candidate selected",
        ),
    ],
)
def test_nothing_and_everything_are_errors_that_help(statistics, config, reason):
    with pytest.raises(UserError, match=reason) as error:
        select_layers(statistics, SelectionConfig(**config), seed=0)
    message = str(error.value)
    table = [line.split() for line in message.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line[0]) for line in table] == list(range(8))
    assert "selection.reference=english: " in message
    assert "selection.strategy=top_k selection.k=1: [0]" in message


def test_other_rules_named_by_the_error_are_what_they_choose():
    statistics = shaped([0.1, 0.2] + [0.8] * 6, [9.0, 8.0] + [1.0] * 6)
    with pytest.raises(UserError) as error:
        select_layers(statistics, SelectionConfig(threshold="all_layers"), seed=0)
    line = next(li for li in str(error.value).splitlines() if "selection.threshold=candidates" in li)
    chosen = select_layers(statistics, SelectionConfig(threshold="candidates"), seed=0).selected
    assert line.split(": ")[1] == str(list(chosen)) == "[0]"


def test_table_marks_candidates_and_selected():
    selection = select_layers(EIGHT, SelectionConfig(strategy="layers", layers=[0, 7]), seed=0)
    lines = layer_table(EIGHT, selection).splitlines()
    assert lines[0].split() == ["layer", "pt", "mean", "MSD", "candidate", "selected"]
    assert [line.count("*") for line in lines[1:9]] == [2, 1, 1, 0, 0, 0, 0, 1]
    assert lines[1].split() == ["0", "0.300", "0.300", "9", "*", "*"]


WIDTH, FFN = 8, 50
LAYER_PARAMETERS = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN + 2 * WIDTH


class OneRank:
    """The part of `Ranks` that selecting uses, for one process."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_first(self, action):
        return action()

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def context(tmp_path: Path, activations) -> SimpleNamespace:
    """A run whose statistics have been collected, over a base of which only the config is there."""
    vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1)
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=FFN, num_hidden_layers=4, num_attention_heads=1, vocab_size=40
    )
    base = LlavaConfig(
        vision_config=vision, text_config=text, architectures=["LlavaForConditionalGeneration"]
    )
    base.save_pretrained(tmp_path / "base")
    run = RunFolder(tmp_path / "run")
    run.statistics.parent.mkdir(parents=True)
    save_file(tables_of(activations) | {"record_index": np.arange(9)}, run.statistics)

    def make(**selection) -> SimpleNamespace:
        config = Config.model_validate(
            {
                "model": {"path": "base"},
                "data": {"questions": ["q.jsonl"], "languages": list(LANGUAGES)},
                "selection": selection,
            }
        )
        described = {"path": str(tmp_path / "base")}
        return SimpleNamespace(
            config=config, run=run, ranks=OneRank(), base=described, trains_projector=False
        )

    return SimpleNamespace(make=make, run=run)


def test_stage_writes_what_the_design_names(context, activations):
    stage = context.make(strategy="shallowest", k=2)
    outputs = select(stage)
    summary, selection = (
        json.loads(path.read_text()) for path in (context.run.summary, context.run.selection)
    )
    found = layer_statistics(tables_of(activations), LANGUAGES, "last")
    for key in ("overlap", "jaccard", "active"):
        assert list(summary[key]) == list(LANGUAGES)
        np.testing.assert_array_equal(np.array([summary[key][g] for g in LANGUAGES]).T, getattr(found, key))
    np.testing.assert_array_equal(summary["msd"], found.msd("mean"))
    assert summary["languages"] == list(LANGUAGES)
    assert (summary["layers"], summary["records"]) == (4, 9)
    assert selection["selected_layers"] == [0, 1]
    assert selection["trainable_parameters"] == 2 * LAYER_PARAMETERS
    assert selection["trainable_fraction"] == 2 * LAYER_PARAMETERS / selection["total_parameters"]
    assert selection["options"]["position"] == "last"
    assert "layers [0, 1] (shallowest" in stage.ranks.said[1]
    assert all(path.is_file() for path in outputs)
    assert {path.name for path in outputs} >= {"overlap.png", "overlap.svg", "msd.png", "msd.svg"}
    with Image.open(context.run.report / "overlap.png") as picture:
        assert picture.width > 900


def test_stage_counts_the_modules_that_are_trained(context):
    select(context.make(strategy="layers", layers=[3], modules="ffn"))
    assert json.loads(context.run.selection.read_text())["trainable_parameters"] == 3 * WIDTH * FFN


def test_stage_repeats_to_the_byte(context):
    first = [path.read_bytes() for path in select(context.make(strategy="all"))]
    assert [path.read_bytes() for path in select(context.make(strategy="all"))] == first


def test_refused_selection_leaves_the_summary_but_no_selection(context):
    with pytest.raises(UserError, match="no layer 4"):
        select(context.make(strategy="layers", layers=[4]))
    assert context.run.summary.exists()
    assert not context.run.selection.exists()


@pytest.mark.parametrize(
    ("curve", "plateau"), [([0.0, 0.2, 0.5, 0.9], 0.7), ([0.0, 0.2, 0.5, 0.9, 0.6], 0.6), ([0.3], 0.3)]
)
def test_the_plateau_is_the_median_of_the_deeper_half(curve, plateau):
    assert candidate_layers(np.array(curve), 0.0)[1] == pytest.approx(plateau)
