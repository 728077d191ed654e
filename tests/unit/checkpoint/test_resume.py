"""What is decided about resuming: each verdict of the table, what happens then, and the user's sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkpoint_makers import ALONE, IDENTITY, SETTINGS, save

from plast_train.checkpoint import resume
from plast_train.checkpoint.format import MANIFEST, checkpoints, step_name
from plast_train.checkpoint.resume import TABLE, Action, Case, judge
from plast_train.errors import UserError
from plast_train.runtime import late_files
from plast_train.runtime.late_files import FileWait

OLD, NEW = step_name(5), step_name(10)
DAYS = "training starts from the base model; all checkpoints are now in {run}/checkpoints-before-1"
# Case → how this run differs from the one that saved, the action, the sentence, and what is left in
# `checkpoints`.
CASES: dict[Case, tuple[dict[str, Any], Action, str, list[str]]] = {
    Case.FITS: ({}, Action.RESUME, "", [NEW, OLD]),
    Case.OTHER_BASE: (
        {"base": "another-fingerprint"},
        Action.REFUSE,
        "{new} was made from another base model (SHA-256 base-fingerprint…, model.path has "
        "another-fingerpr…); set model.path to that base again, give another --out, or remove "
        "{run}/checkpoints to train from scratch",
        [NEW, OLD],
    ),
    Case.OTHER_LAYERS: (
        {"layers": [2]},
        Action.TRAIN_ANEW,
        "WARNING: {new} holds other trained weights than this run selects (layers [0, 1] → [2]); " + DAYS,
        [],
    ),
    Case.OTHER_SETTINGS: (
        {"settings": SETTINGS | {"seed": 1}},
        Action.TRAIN_ANEW,
        "WARNING: {new} was trained with other settings (seed 0 → 1); " + DAYS,
        [],
    ),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing does not come late."""
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (5, 10):
        save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def listening() -> tuple[Any, list[str]]:
    said: list[str] = []
    return SimpleNamespace(**vars(ALONE) | {"say": said.append}), said


def test_every_case_is_in_the_table() -> None:
    assert set(TABLE) == set(Case)


@pytest.mark.parametrize("case", CASES)
def test_a_whole_checkpoint(folder: Path, case: Case) -> None:
    changes, action, sentence, left = CASES[case]
    sentence = sentence.format(run=folder.parent, new=folder / NEW)
    wanted = replace(IDENTITY, **changes)
    verdict = judge(folder / NEW, vars(wanted), FileWait(print))
    assert (verdict.case, verdict.action) == (case, action)
    ranks, said = listening()
    if action is Action.REFUSE:
        with pytest.raises(UserError) as refused:
            resume.choose(folder, wanted, ranks)
        assert str(refused.value) == sentence
        with pytest.raises(UserError) as refused:
            resume.require_base(folder, wanted.base)
        assert str(refused.value) == sentence
    else:
        assert resume.choose(folder, wanted, ranks) == (folder / NEW if action is Action.RESUME else None)
        resume.require_base(folder, wanted.base)
        assert len(said) == bool(sentence) and all(line.startswith(sentence) for line in said)
    assert [path.name for path in checkpoints(folder)] == left
    if action is Action.TRAIN_ANEW:
        aside = folder.with_name("checkpoints-before-1")
        assert [path.name for path in checkpoints(aside)] == [NEW, OLD]


@pytest.mark.parametrize("change", [{"modules": "ffn"}, {"parameters": {"layers.0.weight": [40, 51]}}])
def test_other_weights_of_the_same_layers(folder: Path, change: dict[str, Any]) -> None:
    verdict = judge(folder / NEW, vars(replace(IDENTITY, **change)), FileWait(print))
    assert verdict.case is Case.OTHER_LAYERS


def test_only_what_is_asked_for_is_compared(folder: Path) -> None:
    """The analyses know the base and the layers, the launcher the base alone."""
    layers = {"base": IDENTITY.base, "layers": [2], "modules": "all"}
    assert judge(folder / NEW, layers, FileWait(print)).case is Case.OTHER_LAYERS
    for wanted in ({"base": IDENTITY.base}, layers | {"layers": IDENTITY.layers}):
        assert judge(folder / NEW, wanted, FileWait(print)).fits


def test_none(tmp_path: Path) -> None:
    ranks, said = listening()
    assert resume.choose(tmp_path / "checkpoints", IDENTITY, ranks) is None
    assert said == [f"{tmp_path}/checkpoints holds no checkpoint; training starts from the base model"]


def test_broken(folder: Path) -> None:
    (folder / NEW / MANIFEST).write_text("torn")
    ranks, said = listening()
    assert resume.choose(folder, IDENTITY, ranks) == folder / OLD
    assert said == [
        f"WARNING: checkpoint {folder / NEW} is broken: manifest.json is torn; it is set aside as "
        f"{folder.parent}/suspect/{NEW}, and the checkpoint before it is used"
    ]
    assert [path.name for path in checkpoints(folder)] == [OLD]


def test_a_broken_one_that_cannot_be_moved_is_skipped(folder: Path) -> None:
    (folder / NEW / "shard-00000-of-00001.safetensors").unlink()
    (folder.parent / "suspect").write_text("where a folder should be")
    ranks, said = listening()
    assert resume.choose(folder, IDENTITY, ranks) == folder / OLD
    assert (
        len(said) == 1 and "shard-00000-of-00001.safetensors is missing; it cannot be set aside (" in said[0]
    )


def test_failed_twice_here(folder: Path) -> None:
    assert resume.go_back(folder, "in the stage train, after step 12") == (
        f"the run failed twice in the stage train, after step 12; the newest checkpoint, {folder / NEW}, is "
        f"set aside as {folder.parent}/suspect/{NEW}, and training resumes from the one before it"
    )
    assert [path.name for path in checkpoints(folder)] == [OLD]
    assert resume.go_back(folder, "") and resume.go_back(folder, "") is None
