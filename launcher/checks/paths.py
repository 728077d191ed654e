"""Makes a config's paths absolute, so that a run can be resumed from any working directory."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from plast_train.config import Config
from plast_train.errors import UserError
from plast_train.run_folder import cache_folder, sync_folder

# A path with this prefix is in the tiny model's drawn world, which is made when it is first needed.
TINY_WORLD = "tiny-world/"
# The drawn world's folder in the cache. Whenever the drawing changes, so must the name, or an older world
# would be used in its place; tests/unit/tiny compares what is drawn with the digest recorded for this name.
WORLD = "tiny-world-3243a0b627cd5d1d"
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*=")


def resolve_paths(config: Config) -> Config:
    """The same config with absolute paths; the tiny world is drawn if a path leads into it.

    Names that are not paths (`tiny`, a hub's `owner/model`, `hf:NAME`, a name in ds_configs/) stay.
    """
    data = config.data.model_copy(
        update={
            "questions": [_question_source(entry) for entry in config.data.questions],
            "image_root": config.data.image_root and _absolute(config.data.image_root),
        }
    )
    model, train = config.model, config.train
    if Path(model.path).expanduser().is_dir() and model.path != "tiny":
        model = model.model_copy(update={"path": _absolute(model.path)})
    if train.deepspeed.endswith(".json"):
        train = train.model_copy(update={"deepspeed": _absolute(train.deepspeed)})
    benchmarks = [_absolute(path) for path in config.evaluate.benchmarks]
    evaluate = config.evaluate.model_copy(
        update={
            "benchmarks": benchmarks,
            "image_root": config.evaluate.image_root and _absolute(config.evaluate.image_root),
        }
    )
    return config.model_copy(update={"data": data, "model": model, "train": train, "evaluate": evaluate})


def tiny_world() -> Path:
    """The folder of the drawn world, drawn now (a few seconds) if this machine does not have it."""
    from plast_train.tiny.world import draw_world

    folder = cache_folder() / WORLD
    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            draw_world(unfinished, seed=0)
        except OSError as error:
            raise UserError(f"{unfinished}: {error}; set PLAST_CACHE to another cache folder") from None
        try:
            unfinished.rename(folder)
        except OSError:  # another process finished first, with the same files
            shutil.rmtree(unfinished)
        sync_folder(folder.parent)
    return folder


def _question_source(entry: str) -> str:
    if entry.startswith("hf:"):
        return entry
    match = _LANGUAGE.match(entry)
    prefix = match[0] if match else ""
    return prefix + _absolute(entry.removeprefix(prefix))


def _absolute(path: str) -> str:
    if path.startswith(TINY_WORLD):
        return str(tiny_world() / path.removeprefix(TINY_WORLD))
    return str(Path(path).expanduser().absolute())
