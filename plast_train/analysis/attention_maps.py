"""Attention maps: where in the image a reply comes from, by LLaVA-CAM (Zhang et al. 2024, arXiv 2406.06579),
a Grad-CAM (Selvaraju et al. 2017) for decoders with image tokens.

For a decoder layer let F `[T image tokens, C channels]` be the output of the norm after its attention at the
image-token positions, S the sum of the logits of the generated tokens (each at the position that predicts
it), G = ∂S/∂F. With weights w_c = 1/T · Σ_t ReLU(G_tc) the heat of token t is ReLU(Σ_c w_c · F_tc), divided
by its maximum over the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from plast_train.lvlm.loading import Lvlm


@dataclass(frozen=True)
class Explanation:
    """The generated tokens of a reply, and the heat of each layer `[L - 1, rows, columns]` float32, 0 to 1,
    on the grid of image patches. The last layer has none: nothing reads its output at image positions."""

    reply: list[int]
    heat: torch.Tensor


def explain(lvlm: Lvlm, prompt: Sequence[int], image: Image.Image, max_new_tokens: int) -> Explanation:
    """The model's greedy reply to the prompt (tokens, the image's placeholder expanded) and where it comes
    from. The model must attend in a way that single sequences and gradients can use (`sdpa`, `eager`)."""
    pixels = lvlm.pixel_values([image])
    reply = generate(lvlm, prompt, pixels, max_new_tokens)
    features, score = features_and_score(lvlm, prompt, reply, pixels)
    gradients = torch.autograd.grad(score, features)
    where = _image_positions(lvlm, prompt)
    maps = [
        layer_heat(f[0, where].detach().float(), g[0, where].float())
        for f, g in zip(features[:-1], gradients[:-1], strict=True)
    ]
    return Explanation(reply, on_grid(lvlm, torch.stack(maps)).cpu())


def layer_heat(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """`[T]`, 0 to 1, from F and G, both `[T, C]`; all 0 where nothing speaks for the reply."""
    weights = gradients.relu().mean(dim=0)
    heat = (features @ weights).relu()
    largest = heat.max()
    return heat / largest if largest > 0 else heat


@torch.no_grad()
def generate(lvlm: Lvlm, prompt: Sequence[int], pixels: torch.Tensor, max_new_tokens: int) -> list[int]:
    """The tokens of the greedy reply, the end-of-sequence token included where it comes in time."""
    model: Any = lvlm.model
    tokens = torch.tensor([list(prompt)], device=model.device)
    made = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        pixel_values=pixels.to(model.device, model.dtype),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # some families' own settings raise it
        max_new_tokens=max_new_tokens,
    )
    reply: list[int] = made[0, len(prompt) :].tolist()
    return reply


def features_and_score(
    lvlm: Lvlm, prompt: Sequence[int], reply: Sequence[int], pixels: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each layer's features at all positions `[1, tokens, C]`, and the score S that they lead to."""
    model: Any = lvlm.model
    tokens = torch.tensor([[*prompt, *reply[:-1]]], device=model.device)
    predicts = torch.arange(len(prompt) - 1, tokens.shape[1], device=model.device)
    with torch.enable_grad(), _recorded(lvlm) as features:
        logits = model(
            input_ids=tokens,
            pixel_values=pixels.to(model.device, model.dtype),
            logits_to_keep=predicts,
            use_cache=False,
        ).logits[0]
        chosen = logits[torch.arange(len(reply)), torch.tensor(reply, device=model.device)]
        return features, chosen.double().sum()


@contextmanager
def _recorded(lvlm: Lvlm) -> Iterator[list[torch.Tensor]]:
    """The outputs of the layers' attention norms, in order. Weights are frozen, so the graph begins there."""
    features: list[torch.Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_(True)
        features.append(output)

    handles = [
        lvlm.family.attention_norm(layer).register_forward_hook(record)
        for layer in lvlm.family.layers(lvlm.model)
    ]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def on_grid(lvlm: Lvlm, maps: torch.Tensor) -> torch.Tensor:
    """`[…, T]` → `[…, rows, columns]`; a class token before the patches is left out."""
    side = patch_grid(lvlm)
    return maps[..., maps.shape[-1] - side * side :].unflatten(-1, (side, side))


def patch_grid(lvlm: Lvlm) -> int:
    """Patches along each side of the image as the model sees it."""
    vision = lvlm.config["vision_config"]
    return int(vision["image_size"] // vision["patch_size"])


def _image_positions(lvlm: Lvlm, prompt: Sequence[int]) -> list[int]:
    image_token = lvlm.config["image_token_index"]
    return [position for position, token in enumerate(prompt) if token == image_token]


def seen_image(lvlm: Lvlm, image: Image.Image) -> NDArray[np.float64]:
    """`[height, width, 3]`, 0 to 1: the image as the model sees it, scaled and cropped by its processor, so
    that the patches' grid lies on it exactly."""
    processor = lvlm.image_processor
    pixels = lvlm.pixel_values([image])[0].double().permute(1, 2, 0).numpy()
    if processor.do_normalize:
        pixels = pixels * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    return np.clip(pixels, 0.0, 1.0)


def box_share(lvlm: Lvlm, size: tuple[int, int], box: Sequence[float]) -> NDArray[np.float64]:
    """`[rows, columns]`: the share of each patch that a box covers. `box` is left, top, right, bottom in
    pixels of the image file, `size` that file's width and height. The box goes through the processor as a
    picture, so scaling and cropping are the image's own."""
    side = patch_grid(lvlm)
    seen = seen_image(lvlm, _box_picture(size, box)).mean(axis=-1)
    height, width = seen.shape
    return seen.reshape(side, height // side, side, width // side).mean(axis=(1, 3))


def seen_box(lvlm: Lvlm, size: tuple[int, int], box: Sequence[float]) -> NDArray[np.float64]:
    """`[height, width]`, 1 inside the box and 0 outside, as the model would see it."""
    return seen_image(lvlm, _box_picture(size, box)).mean(axis=-1)


def _box_picture(size: tuple[int, int], box: Sequence[float]) -> Image.Image:
    left, top, right, bottom = (round(edge) for edge in box)
    picture = Image.new("RGB", size, "black")
    picture.paste((255, 255, 255), (left, top, right, bottom))
    return picture


def mass_inside(heat: torch.Tensor, share: NDArray[np.float64]) -> list[float | None]:
    """For each map of `[maps, rows, columns]` the share of its heat that lies inside the box; None for a map
    without heat."""
    inside = torch.from_numpy(share)
    found: list[float | None] = []
    for one in heat.double():
        total = one.sum()
        found.append(float((one * inside).sum() / total) if total > 0 else None)
    return found
