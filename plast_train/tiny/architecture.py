"""The tiny LVLM's architecture: a real LLaVA-1.5 (CLIP tower, projector, Llama decoder), only small."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from plast_train.lvlm.original_llava import CHAT_TEMPLATE
from plast_train.tiny.tokenizer import IMAGE_TOKEN


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a tiny LVLM; the defaults are the shipped model's. Widths in features, images in pixels."""

    image_size: int = 48
    patch_size: int = 8
    vision_width: int = 64
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 96
    layers: int = 8
    heads: int = 3
    ffn_width: int = 256
    max_positions: int = 2048

    @property
    def image_tokens(self) -> int:
        """Image tokens in a prompt: one a patch (LLaVA drops the class token)."""
        return (self.image_size // self.patch_size) ** 2


def llava_config(sizes: TinySizes, tokenizer: LlamaTokenizer) -> LlavaConfig:
    """The configuration for `sizes` and the vocabulary of `tokenizer`."""
    vision = CLIPVisionConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        projection_dim=sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=1e-5,
        initializer_range=0.1,  # near 1 / sqrt(width); the usual 0.02 is for wide models
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=sizes.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model(sizes: TinySizes, tokenizer: LlamaTokenizer, seed: int) -> LlavaForConditionalGeneration:
    """A model with random float32 weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(llava_config(sizes, tokenizer))
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def build_processor(sizes: TinySizes, tokenizer: LlamaTokenizer) -> LlavaProcessor:
    """LLaVA-1.5's processor with CLIP's image statistics, for images of `sizes.image_size` pixels squared."""
    images = CLIPImageProcessor(
        size={"shortest_edge": sizes.image_size},
        crop_size={"height": sizes.image_size, "width": sizes.image_size},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )


def save_model(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write the Hugging Face folder: weights (safetensors), configuration, processor and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
