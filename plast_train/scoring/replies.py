"""What kind of text a reply is: in which language, and whether it repeats the question instead of answering.

Rough on purpose: scripts and stop words, and likeness of word sequences; no model judges. A word or two in
Latin letters seldom shows its language, and is then counted as undetermined.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher

UNDETERMINED = "und"  # BCP 47's code for it

# First word of a character's Unicode name → the languages written so here, the most usual one first.
_SCRIPTS = {
    "CJK": ("zh", "yue"),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "HANGUL": ("ko",),
    "ARABIC": ("ar", "fa", "ur", "ckb", "ps", "sd", "ug", "arz"),
    "CYRILLIC": ("ru", "uk", "bg", "sr", "kk", "ky", "mk", "mn", "tg", "be"),
    "DEVANAGARI": ("hi", "mr", "ne", "sa", "kok", "mai", "bho"),
    "BENGALI": ("bn", "as"),
    "HEBREW": ("he", "yi"),
    "THAI": ("th",),
    "GREEK": ("el",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "GEORGIAN": ("ka",),
    "ARMENIAN": ("hy",),
    "ETHIOPIC": ("am", "ti"),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "SINHALA": ("si",),
    "MYANMAR": ("my",),
    "KHMER": ("km",),
    "LAO": ("lo",),
}
_STOP_WORDS = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the a an is are was of and to in on it this that there not with what which how does",
        "de": "der die das ein eine ist sind und zu im auf nicht mit von es den dem welche was wie",
        "es": "el la los las un una es son y de en del que no con por qué cuál está hay",
        "fr": "le la les un une est sont et de des du en dans que ne pas avec il elle quel quelle",
        "id": "yang dan di ini itu adalah ada tidak dengan untuk dari apa apakah tersebut atau mana ke pada",
        "it": "il lo la gli un una è sono e di del della che non con per quale cosa nella",
        "nl": "de het een is zijn en van in op niet met dat dit wat welke er",
        "pl": "jest są i w na nie z to co jaki jaka czy się do",
        "pt": "o a os as um uma é são e de do da em no na que não com qual há está",
        "ro": "un o este sunt și de în la nu cu pe care ce din",
        "sv": "en ett är och i på som inte med det den vad",
        "sw": "ya wa na ni kwa katika la za hii hiyo hapana ndiyo nini gani cha",
        "tr": "bir ve bu şu ile mi mı için var yok ne hangi değil olan da de",
        "vi": "là và của có không một những trong này cái gì được",
    }.items()
}
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
_QUESTION_MARKS = tuple("?？؟;")

# Likeness to the question (Ratcliff and Obershelp, 1 for equal sequences) from which a reply repeats it; a
# reply that is itself a question needs less, for a translation may choose other words.
ALIKE, QUESTION_ALIKE = 0.8, 0.5
_FEWEST_TOKENS = 3


def reply_language(reply: str, expected: str) -> str:
    """BCP 47 code of the language that the reply is in, as far as its script and stop words show it.

    `expected` is the question's language: among languages of one script, or with equally many stop words,
    it is taken. A single letter is an option's name and no language.
    """
    primary = expected.partition("-")[0].lower()
    scripts = Counter(unicodedata.name(c, "?").partition(" ")[0] for c in reply if c.isalpha())
    if scripts.total() < 2:
        return UNDETERMINED
    script = scripts.most_common(1)[0][0]
    if script == "CJK" and scripts.keys() & {"HIRAGANA", "KATAKANA"}:
        script = "HIRAGANA"
    if script in _SCRIPTS:
        languages = _SCRIPTS[script]
        return expected if primary in languages else languages[0]
    words = set(re.findall(r"[^\W\d_]+", reply.lower()))
    hits = {code: len(words & stop_words) for code, stop_words in _STOP_WORDS.items()}
    most = max(hits.values())
    best = [code for code, count in hits.items() if count == most]
    if not most or (len(best) > 1 and primary not in best):
        return UNDETERMINED
    return expected if primary in best else best[0]


def repeats_question(reply: str, question: str, english: str | None) -> bool:
    """Whether the reply is the question's English text, or the question itself, instead of an answer."""
    tokens = _tokens(reply)
    if len(tokens) < _FEWEST_TOKENS:
        return False
    enough = QUESTION_ALIKE if reply.rstrip().endswith(_QUESTION_MARKS) else ALIKE
    return any(
        SequenceMatcher(None, tokens, _tokens(text), autojunk=False).ratio() >= enough
        for text in (question, english)
        if text is not None
    )


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.casefold())
