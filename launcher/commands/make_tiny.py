"""`plast make-tiny`: a model like the embedded one, from another seed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from launcher.arguments import PATH, Command
from plast_train.errors import UserError


@click.command("make-tiny", cls=Command)
@click.option("--out", metavar="DIR", type=PATH, required=True, help="the new model's folder")
@click.option("--seed", metavar="N", type=int, default=0, help="of its weights (0)")
@click.option(
    "--tokenizer", metavar="DIR", type=PATH, help="folder of another tokenizer.model (with --random-weights)"
)
@click.option("--random-weights", is_flag=True, help="do not train; ready in seconds")
def make_tiny(out: Path, seed: int, tokenizer: Path | None, random_weights: bool) -> int:
    if out.exists():
        raise UserError(f"{out} exists already; give a new folder")
    if tokenizer and not random_weights:
        raise UserError("--tokenizer needs --random-weights: the trained model has its own tokenizer")
    from plast_train.run_folder import publish_folder
    from plast_train.tiny import base

    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".make-tiny-") as folder:
        unfinished = Path(folder) / "model"
        base.make_tiny(unfinished, seed, tokenizer, random_weights)
        publish_folder(unfinished, out)
    print(out)
    return 0
