"""`plast make-tiny`: a model like the embedded one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from plast_train.errors import UserError
from plast_train.run_folder import publish_folder


def make(out: Path, seed: int, tokenizer: Path | None, random_weights: bool) -> int:
    """Writes the model to the new folder `out`, whole or not at all, and prints the path.

    Raises:
        UserError: `out` exists, or a tokenizer is given for trained weights.
    """
    if out.exists():
        raise UserError(f"{out} already exists; give a new folder")
    if tokenizer and not random_weights:
        raise UserError("--tokenizer needs --random-weights: the trained model has its own tokenizer")
    from plast_train.tiny.base import make_tiny

    # Beside `out`, so that publishing is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".make-tiny-") as folder:
        unfinished = Path(folder) / "model"
        make_tiny(unfinished, seed, tokenizer, random_weights)
        publish_folder(unfinished, out)
    print(out)
    return 0
