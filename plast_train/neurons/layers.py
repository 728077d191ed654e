"""What is known of the layers to train before anything is measured. Imports no numpy, for `plast plan`."""

from __future__ import annotations

from plast_train.config import SelectionConfig
from plast_train.errors import UserError


def fixed_layers(config: SelectionConfig, count: int) -> list[int] | None:
    """The layers, ascending, of a strategy that needs neither statistics nor chance; None for the others.
    `count` is the decoder's number of layers.

    Raises:
        UserError: a layer, or a number of layers, that the decoder does not have.
    """
    outside = [layer for layer in config.layers if not 0 <= layer < count]
    if outside:
        raise UserError(
            f"selection.layers={config.layers}: no layer {outside[0]}; layers are 0 to {count - 1}"
        )
    k = config.k or 0
    if k > count:
        raise UserError(f"selection.k={k}: the decoder has {count} layers; give 1 to {count}")
    known = {
        "layers": sorted(config.layers),
        "all": list(range(count)),
        "shallowest": list(range(k)),
        "middle": list(range((count - k) // 2, (count - k) // 2 + k)),
        "deepest": list(range(count - k, count)),
    }
    return known.get(config.strategy)


def usual_number(count: int) -> int:
    """How many of `count` layers would be the paper's share: 5 of 32 (arXiv 2508.18381)."""
    return max(1, round(count * 5 / 32))
