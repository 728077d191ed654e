"""Pretraining of the tiny CLIP tower: every patch learns to tell what its part of the picture shows.

LLaVA starts from a tower trained elsewhere and keeps it frozen; here "elsewhere" is supervision on the layer
that LLaVA reads (the last but one): shape, colour and place of what stands in each patch's cell.
"""

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from plast_train.tiny.scenes import Scene, draw_scene, render
from plast_train.tiny.words import COLOURS, PLACES, SHAPES

# CLIP's image statistics, as CLIPImageProcessor has them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CELLS = 3  # a side
NOTHING = len(SHAPES)  # the label of an empty cell, for shapes and colours alike


def pixels(scenes: list[Scene]) -> Tensor:
    """Normalised pixel values [images, 3, height, width], equal to the processor's."""
    raw = torch.stack([_bytes(scene) for scene in scenes]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (raw - mean) / std


def _bytes(scene: Scene) -> Tensor:
    image = render(scene)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def patch_labels(scenes: list[Scene], side: int) -> Tensor:
    """Labels [images, 3, side * side]: shape, colour and place of the cell that each patch lies in."""
    grid = torch.full((len(scenes), 3, CELLS, CELLS), NOTHING)
    grid[:, 2] = torch.arange(CELLS * CELLS).view(CELLS, CELLS)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = divmod(PLACES.index(thing.place), CELLS)
            grid[index, 0, row, column] = SHAPES.index(thing.shape)
            grid[index, 1, row, column] = COLOURS.index(thing.colour)
    part = torch.arange(side) * CELLS // side
    return grid[:, :, part[:, None], part[None, :]].flatten(2)


def features(tower: CLIPVisionModel, images: Tensor) -> Tensor:
    """What LLaVA reads, [images, patches, width]: the last but one hidden state without the class token."""
    return tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]


def pretrain_tower(
    tower: CLIPVisionModel, seed: int, steps: int, verbose: bool, batch: int = 128, peak: float = 2e-3
) -> float:
    """Train `tower` in place on freshly drawn pictures; returns the share of patches right at the end."""
    rng = random.Random(f"tiny world, base tower, {seed}")
    torch.manual_seed(seed)
    side = math.isqrt(tower.embeddings.num_patches)
    sizes = (len(SHAPES) + 1, len(COLOURS) + 1, len(PLACES))
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, size) for size in sizes)
    weights = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.05)
    right = []
    tower.train()
    for step in range(steps):
        scenes = [draw_scene(rng, "base") for _ in range(batch)]
        labels = patch_labels(scenes, side)
        with torch.autocast("cpu", torch.bfloat16):
            seen = features(tower, pixels(scenes))
            logits = [head(seen).transpose(1, 2).float() for head in heads]
        # Empty cells, most of the picture, count a tenth.
        weight = torch.where(labels[:, 0] == NOTHING, 0.1, 1.0)
        losses = [
            F.cross_entropy(each, labels[:, part], reduction="none") for part, each in enumerate(logits)
        ]
        loss = (torch.stack(losses).sum(0) * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        hits = torch.stack([each.argmax(1) == labels[:, part] for part, each in enumerate(logits)]).all(0)
        right.append(hits.float().mean().item())
        if verbose and step % 100 == 99:
            print(
                f"tower step {step + 1}/{steps} loss {loss.item():.4f} patches right {right[-1]:.4f}",
                flush=True,
            )
    tower.eval()
    return sum(right[-50:]) / len(right[-50:])
