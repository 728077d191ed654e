"""When a stage is done, and when it and those after it must be redone. test_stages.py covers every option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plast_train.config import Config
from plast_train.run_folder import RunFolder
from plast_train.stages import STAGES, is_current, needed_by, record_hash, settings_of

CONFIG = Config.model_validate(
    {"model": {"path": "base"}, "data": {"questions": ["questions.jsonl"], "languages": ["en", "de"]}}
)


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("train", "gradient_clipping", 0.5),
        ("train", "learning_rate", 1e-3),
        ("train", "betas", (0.9, 0.99)),
        ("evaluate", "max_new_tokens", 3),
        ("select", "tolerance", 0.3),
        ("collect", "tokens_per_row", 777),
    ],
)
def test_a_changed_setting_changes_the_stage(stage: str, option: str, value: object) -> None:
    section = {"select": "selection", "collect": "probe"}.get(stage, stage)
    changed = getattr(CONFIG, section).model_copy(update={option: value})
    assert settings_of(stage, CONFIG.model_copy(update={section: changed})) != settings_of(stage, CONFIG)


def test_a_stage_is_done_only_with_its_own_settings_inputs_and_outputs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    output = tmp_path / "output.txt"
    output.write_text("as it was made")
    settings, inputs = {"seed": 0}, {"base": "hash"}
    assert not run.is_done("collect", settings, inputs)
    run.publish_record("collect", settings, inputs, [output])
    assert run.is_done("collect", settings, inputs)
    assert not run.is_done("collect", {"seed": 1}, inputs)
    assert not run.is_done("collect", settings, {"base": "another"})
    output.write_text("changed since")
    assert not run.is_done("collect", settings, inputs)


def test_a_stage_is_current_only_if_all_before_it_are(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for stage in STAGES:
        inputs = {needed: record_hash(run, needed) for needed in needed_by(stage)}
        run.publish_record(stage, {"seed": 0}, inputs, [])
    assert all(is_current(stage, run) for stage in STAGES)
    for changed in STAGES[:-1]:
        path = tmp_path / "stages" / f"{changed}.json"
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {"settings": {"seed": 1}}))
        later = {stage for stage in STAGES if _depends(stage, changed)}
        assert {stage for stage in STAGES if not is_current(stage, run)} == later and later
        path.write_text(text)


def _depends(stage: str, on: str) -> bool:
    return any(needed == on or _depends(needed, on) for needed in needed_by(stage))


def test_the_order_of_the_stages() -> None:
    """Each stage with all that it depends on, one after the other."""
    depends = {stage: {other for other in STAGES if _depends(stage, other)} for stage in STAGES}
    assert depends == {
        "collect": set(),
        "select": {"collect"},
        "train": {"collect", "select"},
        "export": {"collect", "select", "train"},
        "evaluate": {"collect", "select", "train", "export"},
        "analyse": {"collect", "select", "train", "export"},
        "report": set(STAGES) - {"report"},
    }
