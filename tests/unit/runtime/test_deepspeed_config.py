"""DeepSpeed's settings: what is always set, and the batch that DeepSpeed counts in packed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import make_config as training_config

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


CONTRADICTIONS = [
    ({"train_batch_size": 64}, "train_batch_size is 64, but train.global_batch is 8"),
    ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4"),
    ({"train_micro_batch_size_per_gpu": 2}, "train_micro_batch_size_per_gpu is 2"),
    ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0, but train.gradient_clipping is 0.5"),
    ({"bf16": {"enabled": True}}, "bf16.enabled is true, but model.dtype is float32"),
    ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow is false"),
    ({"fp16": {"enabled": True}}, "fp16.enabled is true, but model.dtype is float32"),
    ({"optimizer": {"type": "Lion"}}, 'optimizer.type is "Lion"'),
    ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "optimizer.params.lr is 0.0001"),
    ({"scheduler": {"type": "WarmupLR"}}, 'scheduler is "WarmupLR"'),
    ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is 0"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, 'device is "nvme"'),
    ({"communication_data_type": "auto"}, 'communication_data_type is "auto"'),
]


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS)
def test_contradicting_json_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **change}))
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as caught:
        load_deepspeed_config(training_config(deepspeed=str(path)))
    assert str(path) in str(caught.value)


def test_auto_and_agreeing_values_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e6}
    optimizer = {
        "type": "AdamW",
        "params": {"lr": 5e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": "auto"},
    }
    tree = {
        "zero_optimization": zero,
        "optimizer": optimizer,
        "train_batch_size": 8,
        "bf16": {"enabled": "auto"},
    }
    path.write_text(json.dumps(tree))
    settings = load_deepspeed_config(training_config(deepspeed=str(path)))
    assert settings["zero_optimization"] == {"stage": 3, "stage3_max_live_parameters": 1e6}
    assert settings["gradient_clipping"] == 0.5 and settings["bf16"]["enabled"] is False
    assert "optimizer" not in settings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero22", "did you mean 'zero2'"),
        ("none.json", "cannot be read"),
        ("torn.json", "line 1: not valid JSON"),
    ],
)
def test_unreadable_json_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "torn.json").write_text('{"zero_optimization": ')
    with pytest.raises(UserError, match=message):
        load_deepspeed_config(training_config(deepspeed=str(tmp_path / name) if "." in name else name))
