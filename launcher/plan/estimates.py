"""Stand-ins for data or a tokenizer that do not exist yet; a plan names those it used."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from typing import Any

from plast_train.data.questions import Record

# One question of ordinary length, about as long as xGQA's in each language.
_QUESTION = {
    "en": "Is the small cup on the left side of the table?",
    "zh": "小杯子是在桌子的左边吗？",
    "pt": "A xícara pequena está do lado esquerdo da mesa?",
    "ar": "هل الكوب الصغير على الجانب الأيسر من الطاولة؟",
    "tr": "Küçük fincan masanın sol tarafında mı duruyor?",
    "ru": "Маленькая чашка стоит на левой стороне стола?",
}
# Bytes per token of a LLaMA-like 32k tokenizer, by the highest character of the word: ASCII, other Latin,
# Greek, Cyrillic, the rest. Fitted to xGQA and XQuAD: within 25 % of a real tokenizer's count for each
# language there except Indonesian (half). An image has ten times the tokens of a question, so little depends
# on it.
_BYTES_PER_TOKEN = (("\x7f", 6.0), ("\u024f", 2.0), ("\u03ff", 2.2), ("\u052f", 4.5), ("\U0010ffff", 2.2))
_FIRST_ID = 10**6  # above every real vocabulary, the image token included
_WORD = re.compile(r"\s*<image>|</s>|\s*\w+|\s*[^\w\s]")


class EstimatingTokenizer:
    """Cuts text into about as many pieces as a LLaMA tokenizer would. Equal words give equal ids, so that
    prefixes are shared as with a real one."""

    def __init__(self, image_token: int) -> None:
        self._image_token = image_token

    def __call__(self, texts: list[str], return_offsets_mapping: bool = True) -> dict[str, list[Any]]:
        encoded = [self._encode(text) for text in texts]
        return {"input_ids": [ids for ids, _ in encoded], "offset_mapping": [places for _, places in encoded]}

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = [1]
        offsets = [(0, 0)]
        for match in _WORD.finditer(text):
            start, word = match.start(), match.group()
            pieces = 1 if word.strip() in ("<image>", "</s>") else _pieces(word.strip())
            for piece in range(pieces):
                ids.append(
                    self._image_token
                    if word.strip() == "<image>"
                    else _FIRST_ID + zlib.crc32(word.encode()) % 10**9 + piece
                )
                offsets.append(
                    (start + len(word) * piece // pieces, start + len(word) * (piece + 1) // pieces)
                )
        return ids, offsets


@functools.cache
def _pieces(word: str) -> int:
    rate = next(rate for last, rate in _BYTES_PER_TOKEN if max(word) <= last)
    return max(1, round(len(word.encode()) / rate))


def assumed_records(num_records: int, languages: Sequence[str]) -> list[Record]:
    """Records of one ordinary question each, each about a different image."""
    questions = {language: _QUESTION.get(language, _QUESTION["pt"]) for language in languages}
    return [
        Record(f"assumed-{n}", questions, f"assumed-{n}.jpg", None, "assumed") for n in range(num_records)
    ]
