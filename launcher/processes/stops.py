"""Stop signals to the launcher while there are no ranks to pass them on to."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from plast_train.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stops:
    """Within its `with` block a stop signal only ends what runs inside `end_this`. After the ranks have
    ended, repeats of the signal that ended them must not keep the launcher from reporting it."""

    def __init__(self) -> None:
        self._came: signal.Signals | None = None
        self._ends = False
        self._before: dict[signal.Signals, Any] = {}

    @contextlib.contextmanager
    def end_this(self) -> Iterator[None]:
        """Raises Interrupted when a stop signal arrives inside, or arrived before."""
        self._ends = True
        try:
            self._end()
            yield
        finally:
            self._ends = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._came = signal.Signals(number)
        self._end()

    def _end(self) -> None:
        if self._ends and self._came is not None:
            raise Interrupted(f"{self._came.name} came before ranks were started")

    def __enter__(self) -> Stops:
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
