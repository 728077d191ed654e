"""`plast attention RUN`: the attention maps of one question, before and after training, drawn over its image.

One process, no ranks: the base is loaded, then what the run exported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.arguments import PATH, Command
from plast_train.errors import UserError, nearest
from plast_train.run_folder import RunFolder, read_json

if TYPE_CHECKING:
    from plast_train.config import Config
    from plast_train.data.questions import Record


@click.command(cls=Command, epilog="RUN is the folder of a trained run.")
@click.argument("run", metavar="RUN", type=PATH)
@click.option("--question", metavar="ID", required=True, help="a record's id (RUN/records.jsonl)")
@click.option(
    "--layer",
    metavar="L...",
    type=click.IntRange(min=0),
    multiple=True,
    help="decoder layers, 0-based (the middle one)",
)
@click.option("--language", metavar="LANG...", multiple=True, help="languages (all of the run)")
@click.option("--out", metavar="DIR", type=PATH, help="folder for the pictures (RUN/analysis/attention)")
def attention(
    run: Path, question: str, layer: tuple[int, ...], language: tuple[str, ...], out: Path | None
) -> int:
    return draw_attention(run, question, language, layer, out)


def draw_attention(
    out: Path, question: str, languages: Sequence[str], layers: Sequence[int], target: Path | None
) -> int:
    """Writes one picture (PNG and SVG) a language and layer, prints their paths and the replies. Returns 0.

    Without `languages` every language of the run, without `layers` the one that the run's pictures show;
    `target` is the folder to write into, by default the run's `analysis/attention`.

    Raises:
        UserError: no finished run there, or it has no such question, language or layer.
    """
    run = RunFolder(out)
    if not run.config.is_file() or not run.export.is_dir():
        raise UserError(f"{out} is not a run with an exported model; give the --out of a trained run")
    from plast_train.config import load_config
    from plast_train.data.questions import Record
    from plast_train.lvlm.architectures import read_architecture

    config, base = load_config(str(run.config)), read_json(run.base)
    with run.records.open(encoding="utf-8") as file:
        records = [Record(**json.loads(line)) for line in file]
    ids = [record.id for record in records]
    if question not in ids:
        raise UserError(
            f"--question {question}: no record of the run has this id{nearest(question, ids)} (see "
            f"{run.records})"
        )
    number = ids.index(question)
    if records[number].image is None:
        raise UserError(f"--question {question}: the record has no image; give one that has")
    for language in languages:
        if language not in config.data.languages:
            raise UserError(f"--language {language}: the run has {', '.join(config.data.languages)}")
        if language not in records[number].questions:
            raise UserError(
                f"--language {language}: question {question} exists only in "
                f"{', '.join(records[number].questions)}; give one of these"
            )
    num_layers = read_architecture(Path(base["path"]), "")["text_config"]["num_hidden_layers"]
    for layer in layers:
        if layer > num_layers - 2:
            raise UserError(
                f"--layer {layer}: layers 0 to {num_layers - 2} have a map; nothing reads the last layer's "
                "output at the image"
            )
    _draw(
        config,
        run,
        base,
        records,
        number,
        list(languages) or list(records[number].questions),
        list(layers) or [config.analyse.map_layer(num_layers)],
        target,
    )
    return 0


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
    from plast_train.analysis.attention import Question, describe_question, draw_question, explain_record
    from plast_train.analysis.models import for_sequences
    from plast_train.lvlm.loading import load_lvlm
    from plast_train.runtime.devices import single_device
    from plast_train.scoring.accuracies import BASE, TRAINED

    device = single_device()
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
