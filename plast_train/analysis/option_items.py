"""A subset of benchmark items in packed rows, scored by the option letter with the highest next-token logit.

An item's languages are branches of one token tree wherever they share the image, so one forward pass over few
rows scores all of them.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from plast_train.data.images import to_rgb
from plast_train.data.packing import fill_rows, pack_row
from plast_train.data.token_tree import Key, TokenTree, build_tree, split_tree
from plast_train.lvlm.forward import row_inputs
from plast_train.lvlm.loading import Lvlm
from plast_train.scoring.questions import Question, letter_tokens, questions_of
from plast_train.scoring.records import option_logits_right
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.vlmevalkit_table import CIRCULAR_STEP


def same_items(benchmarks: Sequence[Benchmark], wanted: int, seed: int) -> list[Benchmark]:
    """The benchmarks with at most `wanted` items each, drawn with the seed among those that a benchmark of
    this name has in every language. Of a circular benchmark, items in their first order of options alone.
    Items without an image, benchmarks of open questions, and those whose languages have no item in common are
    left out."""
    named: dict[str, list[Benchmark]] = defaultdict(list)
    for benchmark in benchmarks:
        if any(item.options for item in benchmark.items):
            named[benchmark.name].append(benchmark)
    kept = []
    for name, versions in named.items():
        indices = [{i.index for i in v.items if i.index < CIRCULAR_STEP and i.image_bytes} for v in versions]
        common = sorted(set.intersection(*indices))
        chosen = set(random.Random(f"items {seed} {name}").sample(common, min(wanted, len(common))))
        for version in versions:
            items = sorted((i for i in version.items if i.index in chosen), key=lambda item: item.index)
            if items:
                kept.append(replace(version, items=items))
    return kept


@dataclass(frozen=True)
class ItemRow:
    """What a forward pass over a row takes, and the numbers of its questions."""

    inputs: dict[str, Any]
    questions: list[int]


@dataclass(frozen=True)
class OptionItems:
    """The questions of the items, and their rows. A sequence's `key.record` is its question's number."""

    questions: list[Question]
    letters: dict[str, int]
    rows: list[list[TokenTree]]
    images: dict[str, bytes]

    @classmethod
    def of(
        cls, lvlm: Lvlm, benchmarks: Sequence[Benchmark], localised: bool, tokens_per_row: int
    ) -> OptionItems:
        """`localised` puts the instruction in each benchmark's language. A row has more than `tokens_per_row`
        tokens only where a single prompt has.

        Raises:
            UserError: the tokenizer has no token of its own for an option letter.
        """
        prompter = lvlm.prompter([])
        questions = questions_of(benchmarks, prompter.chat, localised)
        pictures = [question.item.image_bytes or b"" for question in questions]
        names = [hashlib.sha256(picture).hexdigest() for picture in pictures]
        prompts = [
            (Key(n, 0), q.prompt, name) for n, (q, name) in enumerate(zip(questions, names, strict=True))
        ]
        by_image = defaultdict(list)
        for sequence in prompter.prompts(prompts):
            by_image[sequence.image].append(sequence)
        trees = [build_tree(sequences) for sequences in by_image.values()]
        longest = max((s.length for tree in trees for s in tree.sequences), default=0)
        budget = max(tokens_per_row, longest)
        parts = [part for tree in trees for part in split_tree(tree, budget)]
        images = dict(zip(names, pictures, strict=True))
        return cls(questions, letter_tokens(prompter, questions), fill_rows(parts, budget), images)

    def row(self, lvlm: Lvlm, model: nn.Module, trees: Sequence[TokenTree]) -> ItemRow:
        """One row, ready for `model`, which is the LVLM as it runs."""
        row = pack_row(trees)
        pictures = [to_rgb(Image.open(io.BytesIO(self.images[name]))) for name in row.images]
        row = replace(row, pixel_values=lvlm.pixel_values(pictures))
        inputs = row_inputs(model, row)
        read = [placed.at(placed.sequence.last_prompt_position) for placed in row.placed]
        inputs["logits_to_keep"] = torch.tensor(read, device=inputs["input_ids"].device)
        return ItemRow(inputs, [placed.sequence.key.record for placed in row.placed])

    @torch.no_grad()
    def right(self, model: nn.Module, row: ItemRow) -> dict[int, int]:
        """Question number → 1 where its right option's letter has the highest next-token logit, else 0."""
        logits = model(**row.inputs, use_cache=False).logits[0].float().cpu()
        found = {}
        for number, line in zip(row.questions, logits, strict=True):
            item = self.questions[number].item
            option_logits = {letter: line[self.letters[letter]].item() for letter in item.options}
            found[number] = int(option_logits_right({"option_logits": option_logits, "answer": item.answer}))
        return found
