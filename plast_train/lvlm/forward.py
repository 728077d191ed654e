"""Running packed rows through the model, whole or partitioned: inputs, who may see whom, weights in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plast_train.data.packing import PackedRow


def implementation_for(device: torch.device) -> str:
    """The attention implementation rows are run with: block-sparse on CUDA, dense masks elsewhere."""
    return "flex_attention" if device.type == "cuda" else "sdpa"


def row_inputs(model: nn.Module, row: PackedRow, pixels: torch.Tensor | None) -> dict[str, Any]:
    """The keyword arguments with which a LLaVA model (with or without its head) takes one packed row.

    `pixels` are the row's images in order, `[images, 3, height, width]`; None for a row without any.
    """
    config: Any = model.config
    device, dtype = model.device, model.dtype
    assert isinstance(device, torch.device) and isinstance(dtype, torch.dtype)
    implementation = config.get_text_config()._attn_implementation
    inputs = {
        "input_ids": row.input_ids[None].to(device),
        "position_ids": row.position_ids[None].to(device),
        "attention_mask": attention_mask(row, implementation, device, dtype),
    }
    if pixels is not None:
        inputs["pixel_values"] = pixels.to(device, dtype)
    return inputs


def attention_mask(row: PackedRow, implementation: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The row's mask in the form the model's attention implementation takes.

    For `flex_attention` a `BlockMask`; otherwise an additive mask `[1, 1, tokens, tokens]` of `dtype`, 0
    where a query (third axis) may see a key (fourth axis) and the dtype's minimum where it may not.
    """
    tree, branch = row.tree.to(device), row.branch.to(device)
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return _visible(tree, branch, query, key)

        length = len(tree)
        return create_block_mask(visible, None, None, length, length, device=str(device))
    index = torch.arange(len(tree), device=device)
    seen = _visible(tree, branch, index[:, None], index[None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[None, None]


def _visible(
    tree: torch.Tensor, branch: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """The one rule, elementwise over broadcast index tensors: a token sees its own tree's prefix (branch 0)
    and its own branch, up to itself."""
    same_tree = tree[query] == tree[key]
    own_branch = (branch[key] == 0) | (branch[key] == branch[query])
    return same_tree & own_branch & (key <= query)


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
