"""Accuracy of a tiny LVLM on the drawn world's multiple choice: generated answers and option logits."""

import torch
from transformers import LlavaForConditionalGeneration

from plast_train.tiny.rows import RowBuilder
from plast_train.tiny.scenes import Query, Scene
from plast_train.tiny.vision import pixels
from plast_train.tiny.words import LANGUAGES
from plast_train.tiny.world import letter, multiple_choice


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration,
    builder: RowBuilder,
    items: list[tuple[Scene, Query]],
    batch: int = 48,
) -> dict[str, tuple[float, float]]:
    """Per language, the shares answered right: by the greedy first token, and by the best option letter.

    A reply is one letter, so its greedy first token decides whether the generated answer is right.
    """
    letters = torch.tensor([builder.branch("", each)[0][-2] for each in "ABCD"])
    images = [pixels([scene for scene, _ in items[at : at + batch]]) for at in range(0, len(items), batch)]
    found = {}
    for language in LANGUAGES:
        generated = scored = 0
        for number, at in enumerate(range(0, len(items), batch)):
            asked = [query for _, query in items[at : at + batch]]
            logits = _next_logits(
                model, builder, images[number], [multiple_choice(language, q) for q in asked]
            )
            right = torch.tensor(["ABCD".index(letter(query)) for query in asked])
            offered = torch.tensor([[index < len(query.options) for index in range(4)] for query in asked])
            generated += int((logits.argmax(1) == letters[right]).sum())
            scored += int((logits[:, letters].masked_fill(~offered, -1e9).argmax(1) == right).sum())
        found[language] = (generated / len(items), scored / len(items))
    return found


def _next_logits(
    model: LlavaForConditionalGeneration, builder: RowBuilder, images: torch.Tensor, texts: list[str]
) -> torch.Tensor:
    """Logits [texts, vocabulary] of the token after each prompt; prompts are padded on the right."""
    prompts = [builder.prompt(text) for text in texts]
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([prompt + [builder.pad] * (longest - len(prompt)) for prompt in prompts])
    hidden = model.model(input_ids=tokens, pixel_values=images, use_cache=False).last_hidden_state
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return model.lm_head(hidden[torch.arange(len(texts)), last])


def describe(found: dict[str, tuple[float, float]]) -> str:
    """One line: each language's generated and scored accuracy in per cent, and the others' mean."""
    others = [pair for language, pair in found.items() if language != "en"]
    mean = [100 * sum(pair[way] for pair in others) / len(others) for way in (0, 1)]
    parts = [f"{language} {100 * one:.1f}/{100 * two:.1f}" for language, (one, two) in found.items()]
    return f"{' '.join(parts)} | others {mean[0]:.1f}/{mean[1]:.1f}"
