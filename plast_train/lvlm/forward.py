"""Running packed rows through the model, whole or partitioned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from plast_train.data.images import load_image
from plast_train.data.packing import PackedRow, pack_row
from plast_train.data.token_tree import TokenTree
from plast_train.lvlm.attention import attention_mask
from plast_train.lvlm.loading import Lvlm


def load_row(trees: Sequence[TokenTree], lvlm: Lvlm) -> PackedRow:
    """The row's tensors, its images loaded. Raises UserError for an image that can no longer be read."""
    row = pack_row(trees)
    images = [load_image(path) for path in row.images]
    return replace(row, pixel_values=lvlm.pixel_values(images)) if images else row


def row_inputs(model: nn.Module, row: PackedRow) -> dict[str, Any]:
    """The keyword arguments with which a LLaVA model (with or without its head) takes one packed row."""
    config: Any = model.config
    device, dtype = model.device, model.dtype
    assert isinstance(device, torch.device) and isinstance(dtype, torch.dtype)
    implementation = config.get_text_config()._attn_implementation
    inputs = {
        "input_ids": row.input_ids[None].to(device),
        "position_ids": row.position_ids[None].to(device),
        "attention_mask": attention_mask(row, implementation, device, dtype),
    }
    if row.pixel_values is not None:
        inputs["pixel_values"] = row.pixel_values.to(device, dtype)
    return inputs


@contextmanager
def forward_ready(model: nn.Module, deepspeed_config: dict[str, Any]) -> Iterator[nn.Module]:
    """A model whose forward pass works although nothing trains: as it is when its weights are whole, with
    DeepSpeed gathering each layer's weights on the way when they are partitioned."""
    if deepspeed_config["zero_optimization"]["stage"] != 3:
        yield model
        return
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, config=deepspeed_config)
    try:
        yield engine.module
    finally:
        # The hooks must go, or the training engine's would gather everything twice.
        engine.optimizer.empty_partition_cache()
        engine.optimizer.destroy()
