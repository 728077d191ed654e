"""Which option a free-text reply names, without a judge: two public versions of one rule.

Both read the reply word by word for an option letter, then for an option's text. They are VLMEvalKit's
`can_infer` as two code bases published it: Parrot (2024), which the published numbers of the multilingual
benchmarks rest on, and VLMEvalKit (2026), which is stricter about where the letter stands. Written anew
from what the rules answer; `tests/test_matching.py` holds them to 2,276 recorded answers of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

Rule = Literal["parrot2024", "vlmevalkit2026"]
RULES: tuple[Rule, ...] = get_args(Rule)

REFUSAL = "Z"  # the letter both rules give to a reply that declines to answer

_FAILED_CALL = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4
# The public rule knows four letters here, ignores case and asks for no word boundary after the letter:
# "the answer is a cat" is A. Kept, because being that rule is its purpose.
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def match_reply(reply: str, options: Mapping[str, str], rule: Rule = "parrot2024") -> str | None:
    """The letter of the option that `reply` names.

    `options` maps each letter to its text. Returns the letter, "Z" for a refusal, or None where nothing or
    more than one option matches.
    """
    if _FAILED_CALL in reply:
        return None
    if any(refusal in reply for refusal in _REFUSALS):
        return REFUSAL
    return _letter_in(reply, options, rule) or _text_in(reply, options, rule)


def _letter_in(reply: str, options: Mapping[str, str], rule: Rule) -> str | None:
    words = reply.translate(_PUNCTUATION).split()
    letters = [letter for letter in options if letter in words]
    if not letters and REFUSAL in words:
        return REFUSAL
    if rule == "parrot2024":
        return letters[0] if len(letters) == 1 else None
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    said = _ANSWER_IS.search(reply)
    return said[1].upper() if said and said[1].upper() in options else None


def _text_in(reply: str, options: Mapping[str, str], rule: Rule) -> str | None:
    reply = reply.lower()
    if rule == "vlmevalkit2026" and len(reply) > 2 * sum(map(len, options.values())):
        return None
    letters = [letter for letter, text in options.items() if text.lower() in reply]
    return letters[0] if len(letters) == 1 else None
