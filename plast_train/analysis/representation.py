"""Where each language's representation lies relative to English: cosine of parallel questions by layer.

The hidden state is a decoder layer's output, before the final norm: at the last prompt position (`last`), and
as the mean over the question's own positions (`text`). All prompts end in the same words, and hidden states
of any two texts point in similar directions, so a control stands beside each cosine: the same language's
question with the English question of another record, the next one of those analysed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plast_train.analysis.models import MODELS, for_rows, load_weights_of, selected_layers
from plast_train.analysis.stability import analysed_records
from plast_train.context import Context
from plast_train.data.languages import ENGLISH
from plast_train.data.packing import PackedRow, shard_rows
from plast_train.errors import Interrupted
from plast_train.lvlm.forward import forward_ready, load_row, row_inputs
from plast_train.neurons.probing import probe_rows

POSITIONS = ("last", "text")


def representation(context: Context) -> dict[str, Any]:
    """Mean cosines with English per language, layer, position and model.

    Raises:
        Interrupted: a stop signal came.
    """
    numbers = analysed_records(context)
    for_rows(context)
    cosines: dict[str, Any] = {}
    for name in MODELS:
        load_weights_of(context, name)
        cosines[name] = _mean_cosines(context, _states(context, numbers, name), numbers)
    languages = [language for language in context.config.data.languages if language != ENGLISH]
    return {
        "records": len(numbers),
        "languages": languages,
        "layers": len(next(iter(cosines.values()))["last"]["parallel"][languages[0]]),
        "selected_layers": selected_layers(context),
        "positions": list(POSITIONS),
        "cosine": cosines,
    }


class StateReader:
    """Reads the decoder layers' outputs at the positions of a row's questions.

    After a forward pass with a row watched, `states` is float32 `[sequences, 2 positions, L layers, width]`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._row: PackedRow | None = None
        self._read: dict[int, torch.Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[StateReader]:
        handles = [layer.register_forward_hook(self._hook(i)) for i, layer in enumerate(self._layers)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def watch(self, row: PackedRow) -> None:
        self._row, self._read = row, {}

    @property
    def states(self) -> torch.Tensor:
        return torch.stack([self._read[i] for i in range(len(self._layers))], dim=2)

    def _hook(self, layer: int) -> Any:
        def read(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            assert self._row is not None
            hidden = output[0].float()
            per_sequence = []
            for placed in self._row.placed:
                text = hidden[placed.span(*placed.sequence.question)].mean(dim=0)
                per_sequence.append(
                    torch.stack([hidden[placed.at(placed.sequence.last_prompt_position)], text])
                )
            self._read[layer] = torch.stack(per_sequence).cpu()

        return read


@torch.no_grad()
def _states(context: Context, numbers: Sequence[int], name: str) -> dict[int, torch.Tensor]:
    """This rank's records: number → `[G languages, 2 positions, L layers, width]`."""
    config, ranks, lvlm = context.config, context.ranks, context.lvlm
    rows = probe_rows(context.prompter, context.records, numbers, config.analyse.tokens_per_row)
    reader, languages = StateReader(lvlm.family.layers(lvlm.model)), len(config.data.languages)
    found: dict[int, torch.Tensor] = {}
    progress = ranks.progress(f"analyse: representation, {name}", len(numbers), "records")
    body = lvlm.model.get_submodule("model")
    with forward_ready(body, context.deepspeed) as model, reader.attached(), progress:
        for rank_row in shard_rows(rows, ranks.rank, ranks.world):
            if ranks.should_stop():
                raise Interrupted(f"analyse: stopped by a signal in representation, {name}")
            row = load_row(rank_row.trees, lvlm)
            reader.watch(row)
            model(**row_inputs(model, row), use_cache=False)
            if rank_row.counts:
                # A tree holds one record in all languages, in their order.
                for tree, own in zip(rank_row.trees, reader.states.split(languages), strict=True):
                    found[tree.sequences[0].key.record] = own
            progress.add(min(ranks.world * len(rank_row.trees), len(numbers) - progress.done))
    return found


def _mean_cosines(
    context: Context, states: dict[int, torch.Tensor], numbers: Sequence[int]
) -> dict[str, Any]:
    """`{position: {parallel | control: {language: [mean cosine per layer]}}}`, the same on every rank.

    Each cosine is computed by the rank that has the record; the means are over all, in the records' order.
    """
    languages = context.config.data.languages
    english = languages.index(ENGLISH)
    ours = {number: own[english] for number, own in states.items()}
    all_english = {number: own for part in context.ranks.gather(ours) for number, own in part.items()}
    following = dict(zip(numbers, [*numbers[1:], numbers[0]], strict=True))
    mine = {
        number: {
            "parallel": _cosine(own, all_english[number]),
            "control": _cosine(own, all_english[following[number]]),
        }
        for number, own in states.items()
    }
    found = {number: own for part in context.ranks.gather(mine) for number, own in part.items()}

    def mean(kind: str, language: int, position: int) -> list[float]:
        columns = zip(*(found[n][kind][language, position].tolist() for n in numbers), strict=True)
        return [math.fsum(column) / len(numbers) for column in columns]

    return {
        name: {
            kind: {language: mean(kind, g, at) for g, language in enumerate(languages) if g != english}
            for kind in ("parallel", "control")
        }
        for at, name in enumerate(POSITIONS)
    }


def _cosine(own: torch.Tensor, english: torch.Tensor) -> torch.Tensor:
    """`[G, positions, L]` float64 from `[G, positions, L, width]` and `[positions, L, width]`."""
    return nn.functional.cosine_similarity(own.double(), english.double()[None], dim=-1)
