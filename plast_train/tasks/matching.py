"""Whether a free-text reply is right, without a judge.

Multiple choice, which option a reply names: two public versions of one rule.
Both read the reply word by word for an option letter, then for an option's text. They are VLMEvalKit's
`can_infer` as two code bases published it: Parrot (2024), which the published numbers of the multilingual
benchmarks rest on, and VLMEvalKit (2026), which is stricter about where the letter may be. Reimplemented
from the rules' answers; `tests/unit/tasks/test_matching.py` compares 2,276 recorded answers of each.

Open questions, whether a reply is one of the right texts: xGQA's exact match without case and punctuation
(arXiv 2109.06082), MaXM's exact match (arXiv 2209.05401), here of texts in Unicode's composed form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from plast_train.tasks.benchmark import Item

Rule = Literal["parrot2024", "vlmevalkit2026"]
RULES: tuple[Rule, ...] = get_args(Rule)

OpenRule = Literal["xgqa", "maxm"]
_OPEN_RULES: tuple[OpenRule, ...] = get_args(OpenRule)

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


def match_choice(item: Item, reply: str) -> dict[str, str | None]:
    """Rule → the letter that the reply names; `evaluate.matching` chooses the rule that counts."""
    return {rule: match_reply(reply, item.options, rule) for rule in RULES}


def match_english_answer(item: Item, reply: str) -> dict[str, str | None]:
    """Rule → the answer that the reply is, xGQA's rule first: those benchmarks are scored by it."""
    return {rule: match_open(reply, item.answers, rule) for rule in _OPEN_RULES}


def match_local_answer(item: Item, reply: str) -> dict[str, str | None]:
    """Rule → the answer that the reply is, MaXM's rule first: those benchmarks are scored by it."""
    return {rule: match_open(reply, item.answers, rule) for rule in reversed(_OPEN_RULES)}


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


def match_open(reply: str, answers: Sequence[str], rule: OpenRule) -> str | None:
    """The first of the right answers that equals the reply by the rule; None where none does, or where
    nothing is left of the reply to compare."""
    form = _folded if rule == "xgqa" else _composed
    said = form(reply)
    return next((answer for answer in answers if said and form(answer) == said), None)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _folded(text: str) -> str:
    """Without case, punctuation (Unicode categories P*) and surplus white space."""
    bare = "".join(" " if unicodedata.category(c).startswith("P") else c for c in _composed(text).casefold())
    return " ".join(bare.split())
