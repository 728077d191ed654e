"""Files in the run folder by which machines see each other before, and apart from, any connection.

Each machine keeps `RUN/.doctor/node-N.json` and rewrites it every second. Another machine counts as there
when its file appears or changes: a file that a killed doctor left does neither, and no clock is needed.

Machines end in any order, so what is removed does not depend on it: each takes its own file away, the first
one those of killed doctors, and the last one the folder. `RUN/.doctor/made-run` says that a doctor has made
RUN; only one machine can remove that file, and that one then removes RUN.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_BEATS = 1.0
LAST_WORD_SECONDS = 5.0
MADE_RUN = "made-run"


class Heartbeat:
    """This machine's file, and what was seen of the others'. Begins when made, ends with the `with` block.

    `error` says why the folder cannot be written, else is empty; `nonce` is what others must read to have
    seen this machine; `alive` maps each machine that was seen to the content of its file.
    """

    def __init__(self, run: Path, node: int, nodes: int, host: str) -> None:
        self.folder, self.node, self.nodes = run / ".doctor", node, nodes
        self.nonce, self.error = secrets.token_hex(8), ""
        self.alive: dict[int, dict[str, Any]] = {}
        self._content: dict[str, Any] = {
            "node": node,
            "host": host,
            "nonce": self.nonce,
            "problem": "",
            "open": False,
        }
        self._first: dict[int, str | None] = {}
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._look()  # what was there before
        self._write_first()
        self._thread = threading.Thread(target=self._beat_until_end, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Removes this machine's file, and what nobody else uses any more."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # never written, or another machine still uses the folder
            self._file(self.node).unlink(missing_ok=True)
            if self.node == 0:
                self._remove_stale()
            made_run = [path.name for path in self.folder.iterdir()] == [MADE_RUN]
            if made_run:
                (self.folder / MADE_RUN).unlink()
            with contextlib.suppress(FileNotFoundError):  # another machine was quicker
                self.folder.rmdir()
            if made_run:
                self.folder.parent.rmdir()

    def has(self, problem: str) -> None:
        """Lets the others read why this machine cannot join them; stays until they have looked."""
        self._content["problem"] = problem
        self._end.wait(LAST_WORD_SECONDS if self.nodes > 1 else 0)

    def opens(self) -> None:
        """Lets the others read that this machine can be connected to."""
        self._content["open"] = True

    def is_open(self, node: int) -> bool:
        return bool(self.alive.get(node, {}).get("open"))

    def problem_of(self, node: int) -> str:
        return str(self.alive.get(node, {}).get("problem", ""))

    def find(self, nonces: Mapping[int, str], seconds: float) -> list[int]:
        """Those of the machines whose file is seen here; a file system may show it late."""
        end = time.monotonic() + seconds
        while True:
            found = [node for node, nonce in nonces.items() if self._nonce(node) == nonce]
            if len(found) == len(nonces) or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def _write_first(self) -> None:
        try:
            made_run = self._make_run()
            self.folder.mkdir(exist_ok=True)
            if made_run:
                (self.folder / MADE_RUN).touch()
            self._write()
        except OSError as error:
            self.error = f"{error.strerror} ({error.filename})"

    def _make_run(self) -> bool:
        """Whether it was this machine that made the run folder, of several that may try at once."""
        try:
            self.folder.parent.mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def _remove_stale(self) -> None:
        """The files of machines that were not seen alive."""
        self._look()
        alive = [self._file(node) for node in self.alive]
        for path in self.folder.iterdir():
            if path.name != MADE_RUN and path.with_suffix(".json") not in alive:
                path.unlink(missing_ok=True)

    def _beat_until_end(self) -> None:
        while not self._end.wait(SECONDS_BETWEEN_BEATS):
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            self._look()
            with contextlib.suppress(OSError):  # told by `error`, or the first machine has tidied up
                self._write()

    def _write(self) -> None:
        self._content["beat"] = self._content.get("beat", 0) + 1
        temporary = self._file(self.node).with_suffix(".tmp")
        temporary.write_text(json.dumps(self._content), encoding="utf-8")
        temporary.replace(self._file(self.node))

    def _look(self) -> None:
        for node in range(self.nodes):
            text = self._read(node)
            if self._first.setdefault(node, text) != text and text is not None:
                self.alive[node] = json.loads(text)

    def _read(self, node: int) -> str | None:
        try:
            return self._file(node).read_text(encoding="utf-8")
        except OSError:
            return None

    def _nonce(self, node: int) -> Any:
        text = self._read(node)
        return json.loads(text)["nonce"] if text else None

    def _file(self, node: int) -> Path:
        return self.folder / f"node-{node}.json"
