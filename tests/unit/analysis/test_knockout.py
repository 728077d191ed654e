"""Knock-out: skipping a layer is running a model without it; rows of items are items one at a time."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import pytest
import torch

from plast_train.analysis.knockout import compare, recorded_inputs, skipped_layer
from plast_train.analysis.option_items import OptionItems, same_items
from plast_train.analysis.stability import rank_correlation
from plast_train.config import ModelConfig
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.tasks.benchmark import Benchmark, Item
from plast_train.tasks.registry import read_benchmark
from plast_train.tasks.vlmevalkit_table import FORMAT
from plast_train.tiny.scenes import Scene, draw_scene
from plast_train.tiny.world import png

LAYERS = 8


@pytest.fixture(scope="module")
def lvlm(tiny_folder: Path) -> Lvlm:
    config = ModelConfig(path=str(tiny_folder), dtype="float32")
    made = load_lvlm(describe_base(tiny_folder), config, torch.device("cpu"), None)
    for layer in made.family.layers(made.model):
        for parameter in layer.parameters():
            parameter.mul_(1.5)  # fresh layers change little
    return made


def scenes(number: int) -> list[Scene]:
    rng = random.Random(7)
    return [draw_scene(rng, "evaluation") for _ in range(number)]


@pytest.fixture(scope="module")
def benchmarks() -> list[Benchmark]:
    """Nine items in two languages; one language lacks the last, one circular row is to be left out."""
    made = []
    for language, stem in (("en", "What is at place"), ("pt", "O que está no lugar")):
        items = [
            Item(
                index=10 * number if number < 9 else 10**6,
                question=f"{stem} {number}?",
                hint="",
                options={"A": "a star", "B": "a moon", "C": "a heart"},
                answer="ABC"[number % 3],
                category="",
                l2_category="",
                image_bytes=png(scene),
                group=None,
            )
            for number, scene in enumerate(scenes(10))
        ]
        made.append(Benchmark(Path(f"b_{language}.tsv"), "b", language, items, FORMAT))
    del made[1].items[8]
    return made


@pytest.fixture(scope="module")
def items(lvlm: Lvlm, benchmarks: list[Benchmark]) -> OptionItems:
    return OptionItems.of(lvlm, same_items(benchmarks, 6, 0), False, 400)


def test_the_same_items_in_each_language(benchmarks: list[Benchmark]) -> None:
    english, portuguese = same_items(benchmarks, 100, 0)
    indices = [item.index for item in english.items]
    assert indices == [item.index for item in portuguese.items] == [10 * n for n in range(8)]
    few = [[item.index for item in b.items] for b in same_items(benchmarks, 3, 1)]
    assert few[0] == few[1] and len(few[0]) == 3
    assert few != [[item.index for item in b.items] for b in same_items(benchmarks, 3, 2)]


def alone(model: torch.nn.Module, lvlm: Lvlm, items: OptionItems) -> dict[int, int]:
    """Which questions the model has right, one plain sequence at a time."""
    found = {}
    for number, question in enumerate(items.questions):
        item = question.item
        lines = "".join(f"\n{letter}. {text}" for letter, text in item.options.items())
        ask = "\nAnswer with the option's letter from the given choices directly."
        prompt = LLAVA_CHAT.prompt(item.question + lines + ask, True)
        patches = prompt.replace("<image>", "<image>" * lvlm.prompter(["en"]).num_image_tokens)
        tokens = lvlm.tokenizer(patches, return_tensors="pt").input_ids
        pixels = lvlm.pixel_values([item.image])
        with torch.no_grad():
            logits = model(input_ids=tokens, pixel_values=pixels, use_cache=False).logits[0, -1]
        letters = {x: lvlm.tokenizer(f"{prompt} {x}").input_ids[-1] for x in item.options}
        found[number] = int(max(letters, key=lambda x: float(logits[letters[x]])) == item.answer)
    return found


def in_rows(lvlm: Lvlm, items: OptionItems, layer: int | None) -> dict[int, int]:
    found: dict[int, int] = {}
    decoder = lvlm.family.layers(lvlm.model)
    for trees in items.rows:
        row = items.row(lvlm, lvlm.model, trees)
        with recorded_inputs(decoder) as inputs:
            right = items.right(lvlm.model, row)
        if layer is not None:
            with skipped_layer(decoder, layer, inputs[layer]):
                right = items.right(lvlm.model, row)
        found |= right
    return found


def without(lvlm: Lvlm, layer: int) -> torch.nn.Module:
    """A copy of the model that was built with one layer less."""
    model = copy.deepcopy(lvlm.model)
    decoder = model.model.language_model
    decoder.layers = torch.nn.ModuleList(kept for i, kept in enumerate(decoder.layers) if i != layer)
    decoder.config.num_hidden_layers -= 1
    model.config.text_config.num_hidden_layers = decoder.config.num_hidden_layers
    return model


def test_rows_score_as_single_questions_do(lvlm: Lvlm, items: OptionItems) -> None:
    assert len(items.rows) > 1 and len(items.questions) == 12
    assert in_rows(lvlm, items, None) == alone(lvlm.model, lvlm, items)


@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
def test_skipping_a_layer_is_a_model_without_it(lvlm: Lvlm, items: OptionItems, layer: int) -> None:
    decoder, row = lvlm.family.layers(lvlm.model), items.row(lvlm, lvlm.model, items.rows[0])
    with torch.no_grad():
        with recorded_inputs(decoder) as inputs:
            intact = lvlm.model(**row.inputs, use_cache=False).logits
        with skipped_layer(decoder, layer, inputs[layer]):
            skipped = lvlm.model(**row.inputs, use_cache=False).logits
        removed = without(lvlm, layer)(**row.inputs, use_cache=False).logits
        assert torch.equal(skipped, removed)
        assert not torch.allclose(skipped, intact, atol=1e-3)
        assert torch.equal(lvlm.model(**row.inputs, use_cache=False).logits, intact)  # all is as it was
    assert in_rows(lvlm, items, layer) == alone(without(lvlm, layer), lvlm, items)


def test_another_layer_than_the_one_removed_is_noticed(lvlm: Lvlm, items: OptionItems) -> None:
    decoder, row = lvlm.family.layers(lvlm.model), items.row(lvlm, lvlm.model, items.rows[0])
    with torch.no_grad(), recorded_inputs(decoder) as inputs:
        lvlm.model(**row.inputs, use_cache=False)
    with torch.no_grad(), skipped_layer(decoder, 3, inputs[4]):  # so nothing is skipped
        skipped = lvlm.model(**row.inputs, use_cache=False).logits
    assert not torch.allclose(skipped, without(lvlm, 3)(**row.inputs, use_cache=False).logits, atol=1e-3)


def test_what_is_lost_and_gained() -> None:
    def bools(text: str) -> torch.Tensor:
        return torch.tensor([c == "1" for c in text])

    found = compare(bools("1111100"), bools("0000010"))
    assert (found["right"], found["lost"], found["gained"]) == (1, 5, 1)
    assert math.isclose(found["p"], 2 * (1 + 6) / 2**6)
    assert compare(bools("10"), bools("10"))["p"] == 1.0


def test_rank_correlation() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]) == pytest.approx(0.5)
    assert rank_correlation([1.0, 2.0, 2.0, 4.0], [1.0, 2.0, 2.0, 4.0]) == pytest.approx(1.0)
    # Ranks 1 2.5 2.5 4 5 and 2 1 3.5 3.5 5.
    assert rank_correlation([1.0, 2.0, 2.0, 4.0, 5.0], [2.0, 1.0, 3.0, 3.0, 9.0]) == pytest.approx(7.25 / 9.5)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None


def test_a_benchmark_file_can_be_read_for_it(shared: Path, lvlm: Lvlm) -> None:
    files = [shared / "data" / "benchmarks" / f"mmbench_style_{language}.tsv" for language in ("en", "cn")]
    kept = same_items([read_benchmark(path) for path in files], 5, 0)
    assert [len(benchmark.items) for benchmark in kept] == [5, 5]
