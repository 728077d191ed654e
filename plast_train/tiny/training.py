"""Training the tiny base model's decoder and projector on the drawn world.

Data-parallel over worker processes of one thread each: with matrices this small, threads inside an
operation gain little and wait for each other.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlavaForConditionalGeneration

from plast_train.tiny.rows import IGNORED, RowBuilder, Rows
from plast_train.tiny.samples import FIRST_MIX, SECOND_MIX, THIRD_MIX, Mix, sample
from plast_train.tiny.scenes import draw_scene
from plast_train.tiny.vision import pixels


@dataclass(frozen=True)
class Part:
    """Steps of one mixture of samples."""

    steps: int
    mix: Mix


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer, a cosine over all its parts. A `growing` one begins with pictures of one
    object."""

    parts: tuple[Part, ...]
    learning_rate: float
    growing: bool = False

    @property
    def mixes(self) -> Iterator[Mix]:
        """The mixture of each step."""
        return (part.mix for part in self.parts for _ in range(part.steps))

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """How the base is trained. `rows` pictures of `branches` samples each, a step and a worker."""

    tower_steps: int = 500
    stages: tuple[Stage, ...] = (
        Stage((Part(2400, FIRST_MIX), Part(3600, SECOND_MIX)), learning_rate=2e-3, growing=True),
        Stage((Part(1700, THIRD_MIX),), learning_rate=1.2e-3),
    )
    rows: int = 8
    branches: int = 8
    workers: int = 2


def draw_batch(
    rng: random.Random, builder: RowBuilder, plan: Plan, mix: Mix, most: int
) -> tuple[Tensor, Rows]:
    """Pixel values and rows for pictures of up to `most` objects."""
    scenes = [draw_scene(rng, "base", most) for _ in range(plan.rows)]
    samples = [[sample(rng, scene, mix) for _ in range(plan.branches)] for scene in scenes]
    return pixels(scenes), builder.rows(samples)


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in float32: on a CPU its backward pass is faster than bfloat16's."""
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask, is_causal=mask is None
        )
    return out.transpose(1, 2), None


AttentionInterface.register("float32_attention", _float32_attention)


def weighted_loss(model: LlavaForConditionalGeneration, images: Tensor, rows: Rows) -> Tensor:
    """Weighted cross-entropy over the labelled tokens, every sample counting the same."""
    bias = torch.zeros(rows.mask.shape).masked_fill_(~rows.mask, -1e9)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=rows.tokens,
            pixel_values=images,
            position_ids=rows.positions,
            attention_mask=bias,
            use_cache=False,
        ).last_hidden_state
        answered = rows.labels != IGNORED
        logits = model.lm_head(hidden[answered]).float()
    losses = F.cross_entropy(logits, rows.labels[answered], reduction="none")
    weights = rows.weights[answered]
    return (losses * weights).sum() / weights.sum()


def train_stage(
    model: LlavaForConditionalGeneration,
    builder: RowBuilder,
    plan: Plan,
    number: int,
    seed: int,
    rank: int,
    report: Callable[[int], None],
) -> None:
    """Train projector and decoder in place, the tower frozen; rank 0 calls `report(step)` every 500 steps.

    In a growing stage pictures go from one object to four over the first 18 % of the steps: which colour
    belongs to which shape is learned late when many objects are there from the start.
    """
    stage = plan.stages[number]
    rng = random.Random(f"tiny world, base, {seed}, {rank}" + (f", {number}" if number else ""))
    model.model.vision_tower.requires_grad_(False)
    model.model.language_model.set_attn_implementation("float32_attention")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, stage.steps))
    losses: list[float] = []
    start = time.monotonic()
    for step, mix in enumerate(stage.mixes, 1):
        most = min(4, 1 + step * 100 // (6 * stage.steps)) if stage.growing else 4
        images, rows = draw_batch(rng, builder, plan, mix, most)
        loss = weighted_loss(model, images, rows)
        optimizer.zero_grad()
        loss.backward()
        _average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if rank == 0 and step % 100 == 0:
            mean = sum(losses[-100:]) / 100
            seconds = time.monotonic() - start
            print(f"stage {number} step {step}/{stage.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
        if rank == 0 and step % 500 == 0:
            report(step)


def run_workers(work: Callable[[int], None], workers: int, meeting: Path) -> None:
    """Run `work(rank)` in `workers` processes joined by gloo; `meeting` is a file name that is free."""
    context = torch.multiprocessing.spawn(_join, (work, workers, meeting), nprocs=workers, join=False)
    while not context.join():
        pass


def _join(rank: int, work: Callable[[int], None], workers: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{meeting}", timeout=timedelta(minutes=30), world_size=workers, rank=rank
    )
    work(rank)
    dist.destroy_process_group()


def _average_gradients(weights: list[nn.Parameter]) -> None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _cosine(step: int, steps: int) -> float:
    """Warm-up over 3 % of the steps, then a cosine to a hundredth."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
