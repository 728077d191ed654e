"""Waiting for files that another machine has written and a shared file system shows late."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# NFS may show a folder as it was for up to 60 s (its `acdirmax`), Lustre and others for seconds; 10 s more
# are for the requests themselves.
SECONDS_TO_SEE = 70.0


class FileWait:
    """Waits for what a shared file system shows late, `SECONDS_TO_SEE` in all, however many files are waited
    for: if several are late, they are late together."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._left = say, SECONDS_TO_SEE

    def until(self, seen: Callable[[], bool], path: Path) -> bool:
        """Whether `seen` became true in time; `path` is the awaited file. Reports what it waits for."""
        if not seen() and self._left > 0:
            self._say(
                f"{path} is not complete yet; waiting up to {self._left:.0f} s, as a shared file system may "
                "show it late"
            )
            began = time.monotonic()
            while not seen() and time.monotonic() - began < self._left:
                time.sleep(min(0.2, self._left))
                with suppress(OSError):
                    list(path.parent.iterdir())  # opening the folder makes NFS look again
            self._left -= time.monotonic() - began
        return seen()


def has_bytes(path: Path, size: int) -> bool:
    """Whether the file exists and has at least that many bytes."""
    try:
        return path.is_file() and path.stat().st_size >= size
    except OSError:
        return False
