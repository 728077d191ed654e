"""One file in several run folders. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from plast_train.run_folder import sync_file


def link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no hard links. Only for
    files that are replaced as a whole, never written into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        sync_file(temporary)
    temporary.replace(target)
