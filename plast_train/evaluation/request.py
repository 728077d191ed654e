"""What the launcher asks of the ranks for `plast evaluate MODEL --benchmarks …`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from plast_train.config import EvaluationConfig
from plast_train.run_folder import RunFolder


class EvaluationRequest(BaseModel):
    """DIR/evaluate.json: `models` by name as `describe_base` describes them, the base first where there are
    two; `benchmarks` are the hashes of files and their pictures by path."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, dict[str, Any]]
    config: EvaluationConfig
    benchmarks: dict[str, str]


def request_path(run: RunFolder) -> Path:
    return run.path / "evaluate.json"
