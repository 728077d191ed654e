"""One progress line a stage: tqdm on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Counts work done. Without a console (ranks other than the first) it stays silent."""

    def __init__(self, label: str, total: int, unit: str, console: TextIO | None, done: int = 0) -> None:
        self.label, self.total, self.unit, self.console, self.done = label, total, unit, console, done
        self._began = self._said = time.monotonic()
        self._first = done
        self._bar: tqdm | None = None
        if console is not None and console.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit=" " + unit, file=console, leave=False
            )

    def add(self, amount: int, note: str = "") -> None:
        self.done += amount
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

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
