"""Texts that are no texts: JSON can escape half a surrogate pair, which no file and no tokenizer takes."""

from __future__ import annotations

HALF_PAIR = "has half a surrogate pair, which is no character; remove it"


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
