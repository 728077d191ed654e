"""What decides whether a stage is redone covers every option of the config."""

from __future__ import annotations

import pytest

from plast_train import stages
from plast_train.config import options
from plast_train.stages import CHANGES_NO_RESULT, stages_redone_by


def neither() -> list[str]:
    return [key for key, _ in options() if not stages_redone_by(key) and key not in CHANGES_NO_RESULT]


def test_every_option_redoes_a_stage_or_is_listed_with_the_reason() -> None:
    assert neither() == []
    assert [key for key in CHANGES_NO_RESULT if stages_redone_by(key)] == []
    assert set(CHANGES_NO_RESULT) <= {key for key, _ in options()}


@pytest.mark.parametrize("stage", ["collect", "train", "evaluate"])
def test_an_option_dropped_from_the_settings_is_found(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in stages._SETTINGS[stage]:
        with monkeypatch.context() as patch:
            without = {name: tuple(k for k in keys if k != key) for name, keys in stages._SETTINGS.items()}
            patch.setattr(stages, "_SETTINGS", without)
            assert any(left == key or left.startswith(f"{key}.") for left in neither()), key


def test_which_stages_an_option_redoes() -> None:
    assert stages_redone_by("train.gradient_clipping") == ["train"]
    assert stages_redone_by("selection.strategy") == ["select", "analyse"]
    assert stages_redone_by("evaluate.benchmarks") == ["evaluate", "analyse"]
    assert stages_redone_by("model.path") == ["collect", "train", "analyse"]
