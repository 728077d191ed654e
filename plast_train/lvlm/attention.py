"""Who may see whom in a packed row: its own tree's prefix and its own branch, up to itself."""

from __future__ import annotations

from typing import Any

import torch

from plast_train.data.packing import PackedRow


def implementation_for(device: torch.device) -> str:
    """The attention implementation rows are run with: block-sparse on CUDA, dense masks elsewhere."""
    return "flex_attention" if device.type == "cuda" else "sdpa"


def set_attention(model: Any, implementation: str) -> None:
    """Sets how the decoder attends: `implementation_for` packed rows, `sdpa` for single sequences, generation
    and gradients of inputs. The vision tower, whose images all have one length, always uses `sdpa`."""
    model.set_attn_implementation({"text_config": implementation, "vision_config": "sdpa"})


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
    """The one rule, elementwise over broadcast index tensors."""
    same_tree = tree[query] == tree[key]
    own_branch = (branch[key] == 0) | (branch[key] == branch[query])
    return same_tree & own_branch & (key <= query)
