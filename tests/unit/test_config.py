"""Reading a config: what its file may leave empty, and what it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.training_runs import make_config

from plast_train.config import Config, load_config
from plast_train.errors import UserError

FILE = "model:\n  path: tiny\ndata:\n  questions: [a.jsonl]\n  languages: [en, pt]\n"


def written(folder: Path, text: str) -> str:
    (folder / "own.yaml").write_text(FILE + text)
    return str(folder / "own.yaml")


def test_an_empty_section_is_one_of_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "selection:\ntrain:\n  # max_steps: 5\n")
    plain = load_config(path)
    assert (plain.selection.strategy, plain.train.max_steps) == ("msd", None)
    config = load_config(path, ["selection.strategy=all", "train.max_steps=3"])
    assert (config.selection.strategy, config.train.max_steps) == ("all", 3)


@pytest.mark.parametrize("value", ["msd", "[0, 1]", "3"])
def test_a_value_where_a_section_belongs(value: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"selection: {value}\n")
    for overrides in ([], ["selection.strategy=all"]):
        with pytest.raises(UserError, match=r"own\.yaml, line 6: 'selection' is .* where a section belongs"):
            load_config(path, overrides)


def test_an_empty_section_that_needs_a_key(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(FILE.replace("  path: tiny\n", ""))
    with pytest.raises(UserError, match=r"line 1: 'model\.path' is missing"):
        load_config(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"method": "lora"}, "needs train.lora_rank"),
        ({"lora_rank": 4}, "no meaning with train.method 'layers'"),
        ({"method": "full"}, "add selection.strategy=all"),
    ],
)
def test_contradicting_options_are_refused(train: dict[str, Any], message: str) -> None:
    tree = make_config().model_dump(mode="json")
    tree["train"] |= train
    with pytest.raises(ValueError, match=message):
        Config.model_validate(tree)
