"""Attention maps of a run: for some questions in every language, where the base's and the trained model's
replies come from, how much of the heat lies on the object asked about, and a few pictures."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from plast_train.analysis.attention_maps import box_share, explain, mass_inside, seen_box, seen_image
from plast_train.analysis.heat_picture import heat_picture
from plast_train.analysis.models import MODELS, for_sequences, load_weights_of
from plast_train.config import Config
from plast_train.context import Context
from plast_train.data.images import load_image
from plast_train.data.languages import ENGLISH
from plast_train.data.questions import Record, complete
from plast_train.data.sampling import split_records
from plast_train.errors import Interrupted
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.run_folder import publish_bytes

Heat = torch.Tensor  # `[L - 1 layers, rows, columns]` float32


@dataclass(frozen=True)
class Question:
    """A record's question in one language."""

    record: Record
    language: str


def attention(context: Context) -> dict[str, Any]:
    """Publishes `analysis/attention.safetensors` (each model's maps, `[questions, L - 1, rows, columns]`) and
    the pictures; returns replies, masses and where the pictures are.

    Raises:
        Interrupted: a stop signal came.
    """
    config, run, ranks = context.config, context.run, context.ranks
    chosen, held_back = chosen_records(context.records, config)
    questions = [
        Question(context.records[number], language) for number in chosen for language in config.data.languages
    ]
    layer = config.analyse.map_layer(len(context.lvlm.family.layers(context.lvlm.model)))
    tree = {"method": "LLaVA-CAM", "records": len(chosen), "held_back": held_back, "layer": layer}
    if not questions:
        return tree | {"questions": [], "mass": None, "pictures": []}
    for_sequences(context.lvlm)
    explained = {name: _explain_all(context, chosen, name) for name in MODELS}
    if ranks.is_first:
        maps = {name: torch.stack([heat for _, heat in own]) for name, own in explained.items()}
        publish_bytes(run.analysis / "attention.safetensors", save(maps))
    described = [
        describe_question(context.lvlm, question, {name: explained[name][i] for name in MODELS})
        for i, question in enumerate(questions)
    ]
    drawn = _drawn(len(chosen), config)
    pictures = ranks.on_first(
        lambda: [
            _draw(
                context.lvlm,
                questions[i],
                described[i],
                {n: explained[n][i][1] for n in MODELS},
                layer,
                run.analysis,
            )
            for i in drawn
        ]
    )
    return tree | {"questions": described, "mass": mean_mass(described), "pictures": pictures}


def chosen_records(records: Sequence[Record], config: Config) -> tuple[list[int], bool]:
    """The numbers of `analyse.attention_records` complete records with an image, drawn with the seed, and
    whether they were held back from training; only records with a box, if there are any."""
    whole = set(complete(records, config.data.languages))
    held_back = split_records(len(records), config.train.validation_records, config.seed)[1]

    def usable(numbers: Sequence[int]) -> list[int]:
        with_image = [n for n in numbers if n in whole and records[n].image is not None]
        return [number for number in with_image if records[number].box is not None] or with_image

    unseen = usable(held_back)
    pool = unseen or usable(range(len(records)))
    wanted = min(config.analyse.attention_records, len(pool))
    return sorted(random.Random(f"attention {config.seed}").sample(pool, wanted)), bool(unseen)


def explain_record(
    lvlm: Lvlm, prompter: Prompter, records: Sequence[Record], number: int, max_new_tokens: int
) -> list[tuple[str, Heat]]:
    """Reply and maps for the record's question in each of the prompter's languages."""
    (sequences,) = prompter.probes(records, [number])
    assert sequences[0].image is not None
    image = load_image(sequences[0].image)
    found = []
    for sequence in sequences:
        explanation = explain(lvlm, sequence.tokens, image, max_new_tokens)
        reply = lvlm.tokenizer.decode(explanation.reply, skip_special_tokens=True).strip()
        found.append((reply, explanation.heat))
    return found


def _explain_all(context: Context, chosen: Sequence[int], name: str) -> list[tuple[str, Heat]]:
    """Of the model called `name`, record after record, language after language, on every rank."""
    config, ranks = context.config, context.ranks
    lvlm = load_weights_of(context, name)
    mine: dict[int, list[tuple[str, Heat]]] = {}
    with ranks.progress(f"analyse: attention, {name}", len(chosen), "records") as progress:
        for start in range(0, len(chosen), ranks.world):
            if ranks.should_stop():
                raise Interrupted(f"analyse: stopped by a signal in attention, {name}")
            for number in chosen[start + ranks.rank : start + ranks.rank + 1]:
                mine[number] = explain_record(
                    lvlm, context.prompter, context.records, number, config.evaluate.max_new_tokens
                )
            progress.add(min(ranks.world, len(chosen) - progress.done))
    found = {number: own for part in ranks.gather(mine) for number, own in part.items()}
    return [one for number in chosen for one in found[number]]


def describe_question(
    lvlm: Lvlm, question: Question, explained: dict[str, tuple[str, Heat]]
) -> dict[str, Any]:
    """What the JSON holds of one question: `area` is the share of the image that the box covers, `mass` the
    share of each layer's heat inside it (None for a map without heat)."""
    record = question.record
    described: dict[str, Any] = {
        "id": record.id,
        "language": question.language,
        "question": record.questions[question.language],
        "image": record.image,
        "answer": record.answer,
        "reply": {name: reply for name, (reply, _) in explained.items()},
        "box": record.box,
    }
    if record.box is not None:
        assert record.image is not None
        share = box_share(lvlm, load_image(record.image).size, record.box)
        described["area"] = float(share.mean())
        described["mass"] = {name: mass_inside(heat, share) for name, (_, heat) in explained.items()}
    return described


def mean_mass(described: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Over the questions with a box: their number, the mean `area`, and for each model and language the mean
    mass per layer (None where no map of that layer has heat). None without boxes."""
    boxed = [question for question in described if question["box"] is not None]
    if not boxed:
        return None
    languages = list(dict.fromkeys(question["language"] for question in boxed))

    def mean(name: str, language: str) -> list[float | None]:
        own = [question["mass"][name] for question in boxed if question["language"] == language]
        columns = [[value for value in column if value is not None] for column in zip(*own, strict=True)]
        return [fmean(column) if column else None for column in columns]

    return {
        "questions": len(boxed),
        "area": fmean(question["area"] for question in boxed),
        **{name: {language: mean(name, language) for language in languages} for name in MODELS},
    }


def _drawn(records: int, config: Config) -> list[int]:
    """Which questions are drawn: one of each record in turn, in the other languages in turn."""
    languages = config.data.languages
    others = [g for g, language in enumerate(languages) if language != ENGLISH]
    number = min(config.analyse.pictures, records)
    return [i * len(languages) + others[i % len(others)] for i in range(number)]


def _draw(
    lvlm: Lvlm,
    question: Question,
    described: dict[str, Any],
    heats: dict[str, Heat],
    layer: int,
    folder: Path,
) -> dict[str, Any]:
    files = draw_question(lvlm, question, described["reply"], heats, layer, folder / "attention")
    return {
        "id": question.record.id,
        "language": question.language,
        "layer": layer,
        "files": [str(path.relative_to(folder)) for path in files],
    }


def draw_question(
    lvlm: Lvlm,
    question: Question,
    replies: dict[str, str],
    heats: dict[str, Heat],
    layer: int,
    folder: Path,
) -> list[Path]:
    """Writes the picture of one layer's maps before and after, PNG and SVG, and returns the paths."""
    record = question.record
    assert record.image is not None
    image: Image.Image = load_image(record.image)
    box = None if record.box is None else seen_box(lvlm, image.size, record.box)
    return heat_picture(
        seen_image(lvlm, image),
        {name: heat[layer].numpy() for name, heat in heats.items()},
        box,
        question=record.questions[question.language],
        english=record.questions[ENGLISH],
        language=question.language,
        replies=replies,
        layer=layer,
        stem=folder / f"{file_name(record.id)}.{question.language}.layer-{layer}",
    )


def file_name(text: str) -> str:
    """An id as part of a file's name, with its hash where it cannot stand there as it is."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)[:80]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
