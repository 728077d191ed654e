"""Unit tests start no process: that is what makes them quick, and alike on every machine."""

from __future__ import annotations

import multiprocessing.process
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

FOLDER = Path(__file__).parent


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this unit test starts a process: move it to the same folder in tests/distributed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around fixtures of every scope too."""
    if not item.path.is_relative_to(FOLDER):  # pytest calls this hook for the tests of other folders too
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _refuse)
        patch.setattr(subprocess.Popen, "__del__", lambda self: None)  # of one that was never made
        patch.setattr(multiprocessing.process.BaseProcess, "start", _refuse)
        patch.setattr(os, "fork", _refuse)
        return (yield)
