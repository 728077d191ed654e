"""DeepSpeed's settings: what is always set, and the batch that DeepSpeed counts in packed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plast_train.config import Config
from plast_train.errors import UserError
from plast_train.runtime.deepspeed_config import deepspeed_names, load_deepspeed_config, with_batch


def config(deepspeed: str, dtype: str = "float32", **train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "base", "dtype": dtype},
            "data": {"questions": ["questions.jsonl"], "languages": ["en", "de"]},
            "train": {"deepspeed": deepspeed, **train},
        }
    )


@pytest.mark.parametrize("name", deepspeed_names())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("clipping", [0.0, 0.25])
def test_the_config_decides(name: str, dtype: str, clipping: float) -> None:
    settings = load_deepspeed_config(config(name, dtype, gradient_clipping=clipping))
    assert settings["gradient_clipping"] == clipping
    assert settings["bf16"]["enabled"] is (dtype == "bfloat16")
    assert settings["bf16"]["check_grad_overflow"] is True
    assert settings["train_micro_batch_size_per_gpu"] == 1
    assert "auto" not in json.dumps(settings)


@pytest.mark.parametrize(("world", "micro_steps"), [(1, 1), (1, 4), (3, 1), (2, 5)])
def test_a_step_is_so_many_rows_on_all_ranks(world: int, micro_steps: int) -> None:
    settings = with_batch(load_deepspeed_config(config("zero2")), world, micro_steps)
    assert settings["gradient_accumulation_steps"] == micro_steps
    assert settings["train_batch_size"] == world * micro_steps * settings["train_micro_batch_size_per_gpu"]


@pytest.mark.parametrize(
    ("stage", "dtype", "refused"), [(1, "bfloat16", True), (1, "float32", False), (2, "bfloat16", False)]
)
def test_fp32_accumulation_under_zero_1(tmp_path: Path, stage: int, dtype: str, refused: bool) -> None:
    """DeepSpeed would take another optimizer class, which keeps its states elsewhere."""
    path = tmp_path / "mine.json"
    tree = {"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": "fp32"}}
    path.write_text(json.dumps(tree))
    if refused:
        with pytest.raises(UserError, match="grad_accum_dtype"):
            load_deepspeed_config(config(str(path), dtype))
    else:
        load_deepspeed_config(config(str(path), dtype))
