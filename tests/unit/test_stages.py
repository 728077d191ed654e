"""Which option redoes which stage: none is forgotten, and the page that lists them is up to date."""

from __future__ import annotations

from support.paths import ROOT

from launcher.commands.options import options_page
from plast_train.config import load_config, options_of
from plast_train.stages import NOT_IN_A_STAGE, STAGES, redone_by, settings_of


def test_every_option_redoes_a_stage_or_says_why_not() -> None:
    for name, _ in options_of():
        assert bool(redone_by(name)) != (name in NOT_IN_A_STAGE), name
    assert set(NOT_IN_A_STAGE) <= {name for name, _ in options_of()}


def test_settings_are_of_existing_options() -> None:
    config = load_config("tiny")
    keys = {key for stage in STAGES for key in settings_of(stage, config)}
    names = [name for name, _ in options_of()]
    assert all(any(name == key or name.startswith(f"{key}.") for name in names) for key in keys)


def test_every_option_has_a_description() -> None:
    assert [name for name, field in options_of() if not field.description] == []


def test_the_page_of_options_is_up_to_date() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options_page(), "run: plast options > docs/options.md"
