"""`plast attention RUN`: the attention maps of one question, before and after training, drawn over its image.

One process, no ranks: the base is loaded, then what the run exported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plast_train.errors import UserError, nearest
from plast_train.run_folder import RunFolder, read_json

if TYPE_CHECKING:
    from plast_train.config import Config
    from plast_train.data.questions import Record


def draw_attention(
    out: Path, question: str, languages: Sequence[str], layers: Sequence[int], target: Path | None
) -> int:
    """Writes one picture (PNG and SVG) a language and layer, prints their paths and the replies. Returns 0.

    Without `languages` every language of the run, without `layers` the one that the run's pictures are of;
    `target` is the folder to write into, by default the run's `analysis/attention`.

    Raises:
        UserError: no finished run there, or it has no such question, language or layer.
    """
    run = RunFolder(out)
    if not run.config.is_file() or not run.export.is_dir():
        raise UserError(f"{out}: no run with an exported model; give the --out of a run that was trained")
    from plast_train.config import load_config

    config = load_config(str(run.config))
    records = _records(run)
    number = _find(records, question)
    for language in languages:
        if language not in config.data.languages:
            raise UserError(f"--language {language}: the run has {', '.join(config.data.languages)}")
        if language not in records[number].questions:
            there = ", ".join(records[number].questions)
            raise UserError(
                f"--language {language}: question {question} is there in {there}; give one of these"
            )
    base = read_json(run.base)
    layers = _checked_layers(config, base, layers)
    shown = list(languages) or list(records[number].questions)
    _draw(config, run, base, records, number, shown, layers, target)
    return 0


def _records(run: RunFolder) -> list[Record]:
    import json

    from plast_train.data.questions import Record

    with run.records.open(encoding="utf-8") as file:
        return [Record(**json.loads(line)) for line in file]


def _find(records: Sequence[Record], question: str) -> int:
    ids = [record.id for record in records]
    if question not in ids:
        raise UserError(
            f"--question {question}: no record of the run has this id{nearest(question, ids)} (they are in "
            "records.jsonl)"
        )
    number = ids.index(question)
    if records[number].image is None:
        raise UserError(f"--question {question}: the record has no image; give one that has")
    return number


def _checked_layers(config: Config, base: dict[str, Any], layers: Sequence[int]) -> list[int]:
    """The layers asked for, or the run's own."""
    from plast_train.lvlm.architectures import read_architecture

    count = read_architecture(Path(base["path"]), "")["text_config"]["num_hidden_layers"]
    for layer in layers:
        if layer > count - 2:
            raise UserError(
                f"--layer {layer}: layers 0 to {count - 2} have a map; nothing reads the last layer's "
                "output at the image"
            )
    return list(layers) or [config.analyse.map_layer(count)]


def _draw(
    config: Config,
    run: RunFolder,
    base: dict[str, Any],
    records: Sequence[Record],
    number: int,
    languages: Sequence[str],
    layers: Sequence[int],
    target: Path | None,
) -> None:
    import torch

    from plast_train.analysis.attention import Question, describe_question, draw_question, explain_record
    from plast_train.analysis.models import for_sequences
    from plast_train.lvlm.loading import load_lvlm
    from plast_train.scoring.accuracies import BASE, TRAINED

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # or importing deepspeed says at length that it found none
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    explained = {}
    for name, folder in ((BASE, base["path"]), (TRAINED, str(run.export))):
        print(f"loading {folder}", flush=True)
        lvlm = for_sequences(load_lvlm(base | {"path": folder}, config.model, device, None))
        prompter = lvlm.prompter(list(languages))
        explained[name] = explain_record(lvlm, prompter, records, number, config.evaluate.max_new_tokens)
    for at, language in enumerate(languages):
        question = Question(records[number], language)
        own = {name: found[at] for name, found in explained.items()}
        described = describe_question(lvlm, question, own)
        print(f"{language}: {described['question']}")
        for name, reply in described["reply"].items():
            print(f"  {name}: {reply}{_mass(described, name, layers)}")
        for layer in layers:
            folder = target or run.analysis / "attention"
            heats = {name: heat for name, (_, heat) in own.items()}
            png, _ = draw_question(lvlm, question, described["reply"], heats, layer, folder)
            print(f"  {os.path.relpath(png)}")


def _mass(described: dict[str, Any], name: str, layers: Sequence[int]) -> str:
    if described["box"] is None:
        return ""
    found = {layer: described["mass"][name][layer] for layer in layers}
    parts = [f"{100 * m:.1f} % at layer {n}" for n, m in found.items() if m is not None]
    return f"  (heat inside the box: {', '.join(parts) or 'none'}; its area {100 * described['area']:.1f} %)"
