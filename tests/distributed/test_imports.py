"""What a new interpreter does not import: torch where the launcher asks, nothing slow for `plast status`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

READ = (
    "from plast_train.config import DataConfig; from plast_train.data.questions import read_records; "
    "assert len(read_records(DataConfig(questions=[{questions!r}], languages=['en', 'pt']))) == 1"
)
STATUS = "from launcher.cli import main; assert main(['status', {run!r}, '--json']) == 0"
PROGRAMS = {
    "reading questions": (READ, {"torch", "datasets"}),
    "deciding about a checkpoint": ("import plast_train.checkpoint.resume", {"torch"}),
    "status": (STATUS, {"torch", "pydantic", "numpy", "yaml", "PIL"}),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_imported(program: str, tmp_path: Path) -> None:
    questions, run = tmp_path / "q.jsonl", tmp_path / "RUN"
    questions.write_text('{"id": "1", "image": null, "questions": {"en": "Why?", "pt": "Por quê?"}}\n')
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    code, heavy = PROGRAMS[program]
    code = code.format(questions=str(questions), run=str(run))
    code += f"\nimport sys; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
