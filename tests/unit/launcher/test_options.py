"""`plast options` and the page made by it."""

from __future__ import annotations

import pytest
from support.paths import ROOT

from launcher.cli import main
from plast_train.config import options


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == capsys.readouterr().out, (
        "run `plast options > docs/options.md`"
    )


def test_every_option_is_described() -> None:
    assert [key for key, field in options() if not field.description] == []
