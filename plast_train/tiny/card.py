"""The model card of a trained tiny LVLM, written from what was measured."""

from pathlib import Path

from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.training import Plan
from plast_train.tiny.words import LANGUAGES


def write_card(
    out: Path,
    sizes: TinySizes,
    plan: Plan,
    seed: int,
    minutes: float,
    tower_right: float,
    found: dict[str, tuple[float, float]],
) -> None:
    """Write `out/README.md`; `found` holds each language's accuracy, generated and by option logits."""
    (out / "README.md").write_text(_card(sizes, plan, seed, minutes, tower_right, found), encoding="utf-8")


def _card(
    sizes: TinySizes,
    plan: Plan,
    seed: int,
    minutes: float,
    tower_right: float,
    found: dict[str, tuple[float, float]],
) -> str:
    languages = "\n".join(
        f"| {LANGUAGES[code]} | {100 * share:.1f} % | "
        f"{100 * found[code][0]:.1f} % | {100 * found[code][1]:.1f} % |"
        for code, share in plan.stages[-1].parts[-1].mix.languages.items()
    )
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
language: [{", ".join(LANGUAGES)}]
---
# A tiny LVLM

A LLaVA-1.5 (CLIP tower, two-layer projector, Llama decoder) trained from scratch on a small world of drawn
pictures, to show PLAST at work without a download. It knows ten shapes, ten colours, nine places and the
numbers to four, and nothing else.

- Decoder: {sizes.layers} layers, width {sizes.width}, {sizes.heads} heads, FFN {sizes.ffn_width}; input and \
output embeddings are separate.
- Tower: {sizes.vision_layers} layers, width {sizes.vision_width}; {sizes.image_size} pixels squared in \
patches of {sizes.patch_size}: {sizes.image_tokens} image tokens. LLaVA reads the last but one layer.
- Tokenizer: SentencePiece BPE with byte fallback, trained on the world's texts, 88 % English.

## Training
1. Tower: {plan.tower_steps} steps, supervised: every patch tells shape, colour and place of its cell \
({100 * tower_right:.2f} % of patches all right at the end). Then it is frozen.
2. Projector and decoder with AdamW, loss on the responses and, with 0.3 of the weight, on the prompts: \
{_samples(plan)}

The other languages are weak because they are rare, and for no other reason.

Made in {minutes:.0f} minutes on {plan.workers} CPU cores by `plast make-tiny --out DIR --seed {seed}`.

## Held-out multiple choice
{_items(found)}

| language | share of the samples | generated answer | option logits |
|---|---|---|---|
{languages}

No picture of the evaluation can be among those trained on: the background's red level modulo 3 tells what a \
picture is for.
"""


def _samples(plan: Plan) -> str:
    batch = plan.workers * plan.rows * plan.branches
    lines = [f"{sum(stage.steps for stage in plan.stages)} steps of {batch} samples."]
    for number, stage in enumerate(plan.stages, 1):
        lines.append(f"   - Stage {number}, learning rate {stage.learning_rate:g}, cosine:")
        lines += [
            f"     - {part.steps * batch:,} samples; languages: {_shares(part.mix.languages)}; "
            f"English: {_shares(part.mix.english)}; each other language: {_shares(part.mix.others)}."
            for part in stage.parts
        ]
    return "\n".join(lines)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares.items())


def _items(found: dict[str, tuple[float, float]]) -> str:
    others = [pair for code, pair in found.items() if code != "en"]
    mean = [100 * sum(pair[way] for pair in others) / len(others) for way in (0, 1)]
    return (
        f"The same 288 items in every language; guessing gives 27.8 %. "
        f"Mean of all but English: {mean[0]:.1f} % and {mean[1]:.1f} %."
    )
