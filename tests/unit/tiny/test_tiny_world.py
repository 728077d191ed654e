"""The tiny world: deterministic files, disjoint pictures, right grammar, a tokenizer that loses nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import random
from pathlib import Path
from statistics import fmean

import pytest
import torch

from launcher.checks.paths import WORLD
from plast_train.errors import UserError
from plast_train.tiny.architecture import TinySizes, build_model
from plast_train.tiny.base import SHIPPED, make_tiny
from plast_train.tiny.languages import KINDS, WORDINGS, ask
from plast_train.tiny.measure import accuracy
from plast_train.tiny.rows import RowBuilder
from plast_train.tiny.samples import FIRST_MIX, PREFIX, conversation, sample
from plast_train.tiny.scenes import PURPOSES, any_query, draw_scene, render
from plast_train.tiny.tokenizer import load_tokenizer
from plast_train.tiny.training import weighted_loss
from plast_train.tiny.vision import pixels
from plast_train.tiny.words import LANGUAGES, answer_text
from plast_train.tiny.world import benchmark_items, draw_world, letter, multiple_choice

# SHA-256 over all files of the world drawn with seed 0, by the name its folder in the cache has.
DIGESTS = {
    "tiny-world-3243a0b627cd5d1d": "3df4b83c95dcc3b6977d72d5ec26f3de9f9059b2f01b7f73bbfb3fd0e9d4c8e7",
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    draw_world(folder, seed=0)
    return folder


def benchmark(world: Path, language: str, name: str = "tiny") -> list[dict[str, str]]:
    with (world / f"{name}_{language}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_drawn_is_what_the_cache_folder_is_named_for(world: Path) -> None:
    """An older world of the same name would be taken for the new one. Also: the same seed, the same files."""
    digest = hashlib.sha256()
    for name, content in hashes(world).items():
        digest.update(name.encode() + b"\0" + bytes.fromhex(content))
    assert digest.hexdigest() == DIGESTS.get(WORLD), (
        "the drawing changed: give WORLD a new name and record this digest"
    )


def test_another_seed_draws_other_files(world: Path, tmp_path: Path) -> None:
    draw_world(tmp_path, seed=4)
    assert hashes(tmp_path)["tiny_sw.tsv"] != hashes(world)["tiny_sw.tsv"]


def test_records_are_parallel_and_complete(world: Path) -> None:
    records = [json.loads(line) for line in (world / "questions.jsonl").open(encoding="utf-8")]
    assert len({record["id"] for record in records}) == len(records) == 900
    for record in records:
        assert set(record["questions"]) == set(LANGUAGES)
        assert (world / record["image"]).is_file()
    assert {record["answer"] for record in records} > {"red", "circle", "yes", "two", "in the centre"}


def test_benchmark_items_are_the_same_in_every_language(world: Path) -> None:
    english = benchmark(world, "en")
    assert len(english) == 288
    for language in LANGUAGES:
        rows = benchmark(world, language)
        for row, like in zip(rows, english, strict=True):
            assert {key: row[key] for key in ("index", "answer", "image", "category")} == {
                key: like[key] for key in ("index", "answer", "image", "category")
            }
            options = [row[each] for each in "ABCD" if row[each]]
            assert len(set(options)) == len(options) == sum(bool(like[each]) for each in "ABCD")
            assert row[row["answer"]]


def test_english_options_beside_the_translated_questions(world: Path) -> None:
    for language in LANGUAGES:
        rows = benchmark(world, language, "tiny-english-options")
        for row, asked, like in zip(rows, benchmark(world, language), benchmark(world, "en"), strict=True):
            assert row == asked | {each: like[each] for each in "ABCD"}


def test_answers_are_spread_over_the_letters(world: Path) -> None:
    four = [row["answer"] for row in benchmark(world, "en") if row["D"]]
    assert all(0.15 < four.count(each) / len(four) < 0.35 for each in "ABCD")


def test_no_evaluated_picture_is_trained_on(world: Path) -> None:
    evaluated = {base64.b64decode(row["image"]) for row in benchmark(world, "en")}
    assert len(evaluated) == 288
    tuned = {path.read_bytes() for path in (world / "images").iterdir()}
    assert len(tuned) == 450
    assert not evaluated & tuned


def test_the_background_tells_what_a_picture_is_for() -> None:
    # With this, pictures of different purposes differ for any seeds, the base's training included.
    for number, purpose in enumerate(PURPOSES):
        rng = random.Random(purpose)
        for _ in range(50):
            image = render(draw_scene(rng, purpose))
            assert image.getpixel((0, 0))[0] % len(PURPOSES) == number


@pytest.mark.parametrize(
    ("language", "kind", "wording", "subject", "text"),
    [
        ("en", "exists", 0, ("orange", "star"), "Is there an orange star?"),
        ("en", "count check", 0, "1", "Is there exactly one object?"),
        ("zh", "exists", 0, ("red", "star"), "有一颗红色的星星吗？"),
        ("pt", "colour of shape", 1, "star", "Qual é a cor da estrela?"),
        ("pt", "exists", 0, ("yellow", "cross"), "Há uma cruz amarela?"),
        ("pt", "count colour", 0, "blue", "Quantos objetos azuis há?"),
        ("ar", "exists", 0, ("red", "circle"), "هل توجد دائرة حمراء؟"),
        ("ar", "exists", 0, ("red", "heart"), "هل يوجد قلب أحمر؟"),
        ("tr", "colour of shape", 1, "heart", "Kalbin rengi nedir?"),
        ("tr", "shape at place", 0, "top left", "Sol üstte hangi şekil var?"),
        ("ru", "exists", 0, ("blue", "heart"), "Есть ли здесь синее сердце?"),
        ("ru", "colour of shape", 1, "star", "Какой цвет у звезды?"),
        ("ru", "count colour", 0, "blue", "Сколько здесь синих предметов?"),
        ("sw", "exists", 0, ("red", "circle"), "Je, kuna duara jekundu?"),
        ("sw", "exists", 0, ("green", "square"), "Je, kuna mraba wa kijani?"),
        ("sw", "place of shape", 0, "heart", "Moyo uko wapi?"),
    ],
)
def test_grammar(language: str, kind: str, wording: int, subject: str, text: str) -> None:
    assert ask(language, kind, wording, subject) == text


def test_words_of_options_occur_in_questions() -> None:
    rng = random.Random(0)
    queries = [any_query(rng, draw_scene(rng, "base")) for _ in range(4000)]
    for language in LANGUAGES:
        asked = " ".join(ask(language, each.kind, each.wording, each.subject) for each in queries).lower()
        unseen = {
            word
            for each in queries
            for word in answer_text(language, each.answer).lower().split()
            if word not in asked
        }
        # Arabic says two objects in the dual, Portuguese asks for shapes in the feminine and plural.
        assert len(unseen) <= 3, (language, unseen)


def test_tokenizer_gives_back_its_text_and_knows_every_character() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    rng = random.Random(1)
    for _ in range(200):
        asked = any_query(rng, draw_scene(rng, "base"))
        for language in LANGUAGES:
            text = multiple_choice(language, asked)
            tokens = tokenizer(text).input_ids
            assert tokens[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in tokens
            assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer("日本 ñ", add_special_tokens=False).input_ids) == "日本 ñ"  # bytes


def test_a_branch_is_the_conversation_as_the_tokenizer_splits_it() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    builder = RowBuilder(tokenizer, image_tokens=36)
    rng = random.Random(2)
    for _ in range(100):
        text, response = sample(rng, draw_scene(rng, "base"), FIRST_MIX)
        whole = tokenizer(conversation(text, response).replace("<image>", "<image>" * 36)).input_ids
        branch, answered = builder.branch(text, response)
        assert builder.prefix + branch == whole
        assert tokenizer.decode(branch[-answered:]) in (f"{response}</s>", f" {response}</s>")
    assert PREFIX.endswith("USER: <image>")


def test_a_row_of_branches_has_the_loss_of_its_conversations() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    sizes = TinySizes(layers=2)
    model = build_model(sizes, tokenizer, seed=0).eval()
    builder = RowBuilder(tokenizer, sizes.image_tokens)
    rng = random.Random(3)
    scene = draw_scene(rng, "base")
    samples = [sample(rng, scene, FIRST_MIX) for _ in range(4)]
    images = pixels([scene])
    packed = builder.rows([samples])
    alone = [builder.rows([[each]]) for each in samples]
    expected = torch.stack([weighted_loss(model, images, each) for each in alone]).mean()
    assert torch.allclose(weighted_loss(model, images, packed), expected, rtol=2e-3)  # bf16


def test_pixels_are_the_processors(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    make_tiny(tmp_path, random_weights=True)
    scene = draw_scene(random.Random(4), "base")
    processor = AutoProcessor.from_pretrained(tmp_path)
    made = processor(images=render(scene), text="<image>", return_tensors="pt").pixel_values
    assert torch.allclose(pixels([scene]), made, atol=1e-6)


def test_another_tokenizer_makes_a_model_of_its_vocabulary(shared: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    make_tiny(tmp_path, tokenizer=shared / "data" / "tokenizer", random_weights=True)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert model.lm_head.weight.shape[0] == len(processor.tokenizer) == 32002
    assert processor.tokenizer.pad_token == "<pad>"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        make_tiny(tmp_path / "out", tokenizer=tmp_path, random_weights=True)


def test_the_shipped_model_loads_and_sees() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 10_000_000
    model = AutoModelForImageTextToText.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(SHIPPED)
    items = benchmark_items(seed=11)[:72]
    builder = RowBuilder(load_tokenizer(SHIPPED), image_tokens=36)
    found = accuracy(model, builder, items)
    others = fmean(pair[0] for language, pair in found.items() if language != "en")
    assert found["en"][0] >= 0.9 and 0.4 < others < 0.7  # guessing gives 0.28
    # The same reply by plain generation.
    scene, asked = items[0]
    prompt = conversation(multiple_choice("en", asked))
    batch = processor(images=render(scene), text=prompt, return_tensors="pt")
    reply = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch.input_ids.shape[1] :]
    assert processor.decode(reply, skip_special_tokens=True).strip() in set("ABCD")


def test_letters_are_where_the_answer_is() -> None:
    rng = random.Random(5)
    for _ in range(100):
        asked = any_query(rng, draw_scene(rng, "base"))
        line = f"\n{letter(asked)}. {answer_text('en', asked.answer)}\n"
        assert line in multiple_choice("en", asked)
        assert asked.kind in KINDS
        assert 0 <= asked.wording < WORDINGS
