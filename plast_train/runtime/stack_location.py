"""Where a thread is in the program, and whether it waits for other ranks there."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import FrameType, TracebackType

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
# A thread inside one of these, called from anywhere in the program, exchanges something with other ranks.
_EXCHANGES = (f"torch{os.sep}distributed{os.sep}", f"plast_train{os.sep}runtime{os.sep}distributed.py")


def stack_location(frame: FrameType) -> tuple[bool, str]:
    """Whether the thread is in an exchange, and its innermost place in the program, as
    `training/loop.py:82 in run_loop`."""
    frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_stack(frame)]
    return _judge(frames)


def raised_in_exchange(trace: TracebackType | None) -> bool:
    """Whether an exception came out of an exchange with other ranks."""
    frames = [(f.f_code.co_filename, line, "") for f, line in traceback.walk_tb(trace)]
    return _judge(frames[::-1])[0]


def _judge(frames: list[tuple[str, int, str]]) -> tuple[bool, str]:
    """`frames` are file, line and function, innermost first."""
    exchange = False
    for file, line, function in frames:
        exchange = exchange or any(place in file for place in _EXCHANGES)
        if file.startswith(_PACKAGE) and not file.endswith(_EXCHANGES[1]):
            return exchange, f"{file.removeprefix(_PACKAGE)}:{line} in {function}"
    return exchange, "outside the program"
