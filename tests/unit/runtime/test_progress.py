"""The progress line: tqdm on a terminal, plain lines in a log, silence on other ranks."""

from __future__ import annotations

import io

import pytest

from plast_train.runtime import progress
from plast_train.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    with Progress("train", 10, "steps", log) as line:
        line.add(3, "loss 1.5")
        assert log.getvalue() == ""  # not after every step
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        line.add(2, "loss 1.25")
    assert log.getvalue().startswith("train: 5/10 steps, loss 1.25, about ")
    assert log.getvalue().count("\n") == 1


def test_a_bar_on_a_terminal() -> None:
    terminal = Terminal()
    with Progress("collect", 4, "records", terminal, done=1) as line:
        line.add(3)
    assert "collect" in terminal.getvalue()
    assert "1/4" in terminal.getvalue()


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("collect", 4, "records", None) as line:
        line.add(4)
    assert capsys.readouterr() == ("", "")
