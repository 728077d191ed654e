"""Attention maps: LLaVA-CAM against finite differences, boxes on the patch grid, the tiny LVLM's objects."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plast_train.analysis import attention_maps
from plast_train.analysis.attention_maps import (
    box_share,
    explain,
    features_and_score,
    generate,
    layer_heat,
    mass_inside,
    seen_image,
)
from plast_train.analysis.heat_picture import drawable
from plast_train.config import DataConfig, ModelConfig
from plast_train.data.questions import Record, read_records
from plast_train.errors import UserError
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.base import SHIPPED, make_tiny
from plast_train.tiny.languages import ask
from plast_train.tiny.scenes import any_query, asked_about, bounds, draw_scene, render

SIZES = TinySizes(
    image_size=16, vision_width=16, vision_layers=2, vision_heads=2, width=24, layers=3, heads=2, ffn_width=40
)
STEP = 1e-4


def load(folder: Path) -> Lvlm:
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_lvlm(describe_base(folder), config, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def lvlm(tmp_path_factory: pytest.TempPathFactory) -> Lvlm:
    """A LLaVA of 3 layers, 4 patches and random weights, in float64 throughout."""
    folder = tmp_path_factory.mktemp("models") / "small"
    make_tiny(folder, seed=2, random_weights=True, sizes=SIZES)
    made = load(folder)
    made.model.double()
    for module in made.model.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # it computes in float32 whatever it is given
            module.forward = partial(rms_norm, module)
    return made


def rms_norm(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def prompt(lvlm: Lvlm, question: str = "Where is the star?") -> list[int]:
    record = Record("a", {"en": question}, "x.png", None, "test")
    ((sequence,),) = lvlm.prompter(["en"]).probes([record], [0])
    return list(sequence.tokens)


def picture() -> Image.Image:
    return render(draw_scene(random.Random(1), "base"))


@contextmanager
def perturbed(norm: torch.nn.Module, position: int, channel: int, by: float) -> Iterator[None]:
    def perturb(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, position, channel] += by
        return changed

    handle = norm.register_forward_hook(perturb)
    try:
        yield
    finally:
        handle.remove()


def score(lvlm: Lvlm, tokens: list[int], reply: list[int], pixels: torch.Tensor) -> float:
    """The sum of the generated tokens' logits, from all logits of the whole sequence."""
    whole = torch.tensor([tokens + reply])
    with torch.no_grad():
        logits = lvlm.model(input_ids=whole, pixel_values=pixels.double()).logits[0]
    return sum(float(logits[len(tokens) - 1 + i, token]) for i, token in enumerate(reply))


def by_finite_differences(lvlm: Lvlm, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """F and ∂S/∂F `[image tokens, channels]`, each element moved by itself."""
    tokens, pixels = prompt(lvlm), lvlm.pixel_values([picture()])
    reply = generate(lvlm, tokens, pixels, 3)
    norm = lvlm.model.model.language_model.layers[layer].post_attention_layernorm
    where = [i for i, token in enumerate(tokens) if token == lvlm.model.config.image_token_id]
    kept: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _m, _i, out: kept.append(out[0, where].detach()))
    score(lvlm, tokens, reply, pixels)
    handle.remove()
    gradient = np.zeros((len(where), SIZES.width))
    for row, position in enumerate(where):
        for channel in range(SIZES.width):
            ends = []
            for by in (STEP, -STEP):
                with perturbed(norm, position, channel, by):
                    ends.append(score(lvlm, tokens, reply, pixels))
            gradient[row, channel] = (ends[0] - ends[1]) / (2 * STEP)
    return kept[0].numpy(), gradient


def plain_heat(features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The formula of METHOD §6.3, element by element."""
    tokens, channels = features.shape
    weights = [sum(max(0.0, gradient[t, c]) for t in range(tokens)) / tokens for c in range(channels)]
    heat = [max(0.0, sum(weights[c] * features[t, c] for c in range(channels))) for t in range(tokens)]
    return np.array(heat) / max(heat)


@pytest.fixture(scope="module")
def expected(lvlm: Lvlm) -> np.ndarray:
    """`[2 layers, 4 image tokens]`."""
    return np.array([plain_heat(*by_finite_differences(lvlm, layer)) for layer in (0, 1)])


def explained(lvlm: Lvlm) -> np.ndarray:
    return explain(lvlm, prompt(lvlm), picture(), 3).heat.flatten(1).numpy()


def test_heat_is_that_of_finite_differences(lvlm: Lvlm, expected: np.ndarray) -> None:
    assert np.abs(explained(lvlm) - expected).max() < 1e-5
    assert (expected.max(axis=1) == 1).all()


def signed_weights(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    heat = (features @ gradients.mean(dim=0)).relu()
    return heat / heat.max()


def token_weights(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    heat = (features * gradients.relu()).sum(dim=1).relu()
    return heat / heat.max()


def first_token_alone(*arguments: object) -> tuple[list[torch.Tensor], torch.Tensor]:
    lvlm, tokens, reply, pixels = arguments
    return features_and_score(lvlm, tokens, reply[:1], pixels)


MUTATIONS: dict[str, tuple[str, Callable]] = {
    "gradients keep their sign": ("layer_heat", signed_weights),
    "each token has its own weights": ("layer_heat", token_weights),
    "only the first token is scored": ("features_and_score", first_token_alone),
    "positions are off by one": (
        "_image_positions",
        lambda lvlm, tokens: [
            i + 1 for i, token in enumerate(tokens) if token == lvlm.config["image_token_index"]
        ],
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_formula_is_noticed(
    mutation: str, lvlm: Lvlm, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_maps, *MUTATIONS[mutation])
    assert np.abs(explained(lvlm) - expected).max() > 1e-3


def test_nothing_reads_the_last_layer_at_image_positions(lvlm: Lvlm) -> None:
    tokens, pixels = prompt(lvlm), lvlm.pixel_values([picture()])
    features, total = features_and_score(lvlm, tokens, [5, 6], pixels)
    gradient = torch.autograd.grad(total, features[-1])[0]
    where = [i for i, token in enumerate(tokens) if token == lvlm.config["image_token_index"]]
    assert not gradient[0, where].any() and gradient.any()


def test_a_map_without_heat() -> None:
    assert not layer_heat(torch.ones(4, 3), torch.zeros(4, 3)).any()
    assert mass_inside(torch.zeros(1, 2, 2), np.ones((2, 2))) == [None]


def test_a_box_is_scaled_and_cropped_as_its_image_is(lvlm: Lvlm) -> None:
    """100 x 50 becomes 32 x 16, of which the middle 16 x 16 are seen: columns 25 to 75 of the file."""
    share = box_share(lvlm, (100, 50), (25, 0, 50, 50))
    assert np.allclose(share, [[1, 0], [1, 0]], atol=0.05)
    assert np.allclose(box_share(lvlm, (100, 50), (0, 0, 20, 50)), 0)
    assert np.allclose(box_share(lvlm, (64, 64), (0, 0, 64, 32)), [[1, 1], [0, 0]], atol=0.05)
    heat = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    assert mass_inside(heat, np.array([[1.0, 0.0], [0.5, 0.0]])) == pytest.approx([0.5])


def test_the_seen_image_is_the_image(lvlm: Lvlm) -> None:
    image = picture().resize((16, 16))
    assert np.abs(seen_image(lvlm, image) * 255 - np.asarray(image)).max() < 1.5


def test_boxes_hold_the_thing_asked_about() -> None:
    rng, asked_kinds = random.Random(2), set()
    for _ in range(300):
        scene = draw_scene(rng, "tuning")
        asked = any_query(rng, scene)
        thing = asked_about(scene, asked)
        if thing is None:
            assert asked.kind.startswith("count") or asked.answer == "no"
            continue
        asked_kinds.add(asked.kind)
        assert asked.answer in (thing.shape, thing.colour, thing.place, "yes")
        left, top, right, bottom = bounds(scene, thing)
        cell = np.asarray(render(scene))[top:bottom, left:right]
        assert cell.size and (np.abs(cell.astype(int) - thing.rgb).sum(axis=-1) < 10).any()
        assert right - left <= 16 and bottom - top <= 16
    assert len(asked_kinds) == 7


def test_the_tiny_lvlm_looks_at_what_it_is_asked_about() -> None:
    """Heat of the shipped model, for English questions about one of several objects: more of it on the object
    than the object's share of the image, at the layer where most is."""
    lvlm, rng, masses, areas = load(SHIPPED), random.Random(5), [], []
    while len(masses) < 12:
        scene = draw_scene(rng, "evaluation")
        asked = any_query(rng, scene)
        thing = asked_about(scene, asked)
        if thing is None or len(scene.things) < 2:
            continue
        text = ask("en", asked.kind, asked.wording, asked.subject)
        image = render(scene)
        share = box_share(lvlm, image.size, bounds(scene, thing))
        heat = explain(lvlm, prompt(lvlm, text), image, 4).heat
        masses.append([m or 0.0 for m in mass_inside(heat, share)])
        areas.append(share.mean())
    assert np.mean(masses, axis=0).max() > np.mean(areas)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("[0, 0, 1]", "left, top, right, bottom"),
        ("[0, 0, 1, NaN]", "left, top, right, bottom"),
        ('"top"', "left, top, right, bottom"),
        ("[2, 0, 1, 1]", "no area"),
        ("[0, 0, 61, 10]", "leaves its image of 60x40"),
    ],
)
def test_wrong_boxes_are_named(box: str, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "x.png")
    config = DataConfig(questions=[str(tmp_path / "q.jsonl")], languages=["en", "pt"])

    def write(box: str, image: str) -> None:
        questions = '"questions": {"en": "Where?", "pt": "Onde?"}'
        (tmp_path / "q.jsonl").write_text(f'{{"id": "a", "image": {image}, {questions}, "box": {box}}}\n')

    write("[0, 0, 60, 40]", '"x.png"')
    assert read_records(config)[0].box == (0, 0, 60, 40)
    write(box, '"x.png"')
    with pytest.raises(UserError, match=f"line 1, id 'a': 'box' .*{message}"):
        read_records(config)
    write("[0, 0, 1, 1]", "null")
    with pytest.raises(UserError, match="no image; remove it"):
        read_records(config)


def test_text_is_drawn_only_where_the_font_can() -> None:
    assert drawable("Où est l'étoile ? Где звезда? Yıldız nerede?")
    assert not drawable("星星在哪里？") and not drawable("أين النجمة؟")


def test_the_chat_format_is_the_one_explained(lvlm: Lvlm) -> None:
    text = lvlm.tokenizer.decode([t for t in prompt(lvlm) if t != lvlm.config["image_token_index"]])
    assert "Where is the star?" in text and text.endswith(LLAVA_CHAT.prompt("", True)[-10:])
