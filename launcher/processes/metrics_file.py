"""How far training came, from the end of metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TAIL = 65536  # bytes; many lines


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line; None before the first step."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):  # what follows the last newline is being written, or torn
        try:
            metrics: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        return metrics
    return None


class MetricsFile:
    """The metrics as they are before an attempt: training writes the file anew when its loop begins."""

    def __init__(self, path: Path) -> None:
        self.path, self._before = path, _inode(path)

    def last_step(self) -> int | None:
        """The last step that this attempt has finished or gone on from; None where its loop never began."""
        metrics = last_metrics(self.path) if _inode(self.path) != self._before else None
        return metrics["step"] if metrics else None


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
