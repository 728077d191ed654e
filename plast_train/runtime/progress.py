"""One progress line per stage: tqdm on a terminal, a plain line every 20 s in a log, and the file that `plast
status` reads."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from plast_train.runtime.watchdog import Watchdog

SECONDS_BETWEEN_LINES = 20.0
# In the run folder's logs: the progress of the current or last loop.
PROGRESS = "progress.json"
# Often enough for `plast status`, seldom enough for a shared file system.
SECONDS_BETWEEN_FILES = 5.0

log = logging.getLogger(__name__)


class Progress:
    """Counts work done. Without a console and a file (ranks other than the first) it stays silent. Inside the
    `with` block only `add` counts as progress for the watchdog."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        console: TextIO | None,
        done: int = 0,
        watchdog: Watchdog | None = None,
        file: Path | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.console, self.done = label, total, unit, console, done
        self.watchdog, self.file = watchdog, file
        self._began = self._said = time.monotonic()
        self._filed = -SECONDS_BETWEEN_FILES
        self._first = done
        self._bar: tqdm | None = None
        if console is not None and console.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit=" " + unit, file=console, leave=False
            )

    def add(self, amount: int, note: str = "") -> None:
        self.done += amount
        if self.watchdog is not None:
            self.watchdog.alive()
        if time.monotonic() - self._filed >= SECONDS_BETWEEN_FILES:
            self._write()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif self.console is not None and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(self._line(note), file=self.console, flush=True)

    def _line(self, note: str) -> str:
        seconds = time.monotonic() - self._began
        left = seconds / max(1, self.done - self._first) * (self.total - self.done)
        tail = f", {note}" if note else ""
        return f"{self.label}: {self.done}/{self.total} {self.unit}{tail}, about {left:.0f} s left"

    def _write(self) -> None:
        if self.file is None:
            return
        self._filed = time.monotonic()
        rate = (self.done - self._first) / max(1e-9, self._filed - self._began)
        tree = {"label": self.label, "done": self.done, "total": self.total, "unit": self.unit}
        temporary = self.file.with_name(f".{self.file.name}.tmp")
        try:
            temporary.write_text(json.dumps(tree | {"per_second": rate, "time": time.time()}))
            temporary.replace(self.file)
        except OSError as error:  # the run does not depend on it; what does will fail on the same disk
            log.warning("%s: %s", self.file, error)

    def __enter__(self) -> Progress:
        if self.watchdog is not None:
            self.watchdog.enter_loop()
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self.watchdog is not None:
            self.watchdog.leave_loop()
        if self._bar is not None:
            self._bar.close()
