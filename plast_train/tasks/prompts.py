"""The texts of questions: multiple choice as VLMEvalKit puts it to LLaVA, open ones as LLaVA-1.5 was taught.

Text alone: the model family's chat format and the image are put around it by whoever calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from plast_train.data.languages import language_name
from plast_train.errors import UserError
from plast_train.tasks.benchmark import Item

_CJK_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")

INSTRUCTIONS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接回答选项字母。",
    "pt": "Responda diretamente com a letra da opção correta entre as alternativas dadas.",
    "ar": "أجب مباشرة بحرف الخيار الصحيح من بين الخيارات المعطاة.",
    "tr": "Doğrudan, verilen seçeneklerden doğru olanın harfiyle yanıt verin.",
    "ru": "Ответьте сразу буквой правильного варианта из предложенных.",
    "sw": "Jibu moja kwa moja kwa herufi ya jibu sahihi kati ya machaguo yaliyotolewa.",
}


def ask_choice(item: Item, language: str, localised: bool) -> str:
    return multiple_choice_text(item.question, item.options, item.hint, language if localised else None)


def ask_english_answer(item: Item, language: str, _localised: bool) -> str:
    return open_text(item.question, language, "en")


def ask_local_answer(item: Item, language: str, _localised: bool) -> str:
    return open_text(item.question, language, language)


def multiple_choice_text(
    question: str, options: Mapping[str, str], hint: str = "", instruction_language: str | None = None
) -> str:
    """`[hint\\n]question\\nA. …\\nB. …\\ninstruction`.

    The instruction is English, or Chinese where the text has a CJK ideograph, as in VLMEvalKit;
    `instruction_language` asks for it in that language instead. Raises UserError for a language without one.
    """
    lines = [hint] if hint else []
    lines += [question, *(f"{letter}. {option}" for letter, option in options.items())]
    text = "\n".join(lines)
    language = instruction_language or ("zh" if _CJK_IDEOGRAPH.search(text) else "en")
    if language not in INSTRUCTIONS:
        raise UserError(
            f"no multiple-choice instruction in '{language}'; there is one in {', '.join(INSTRUCTIONS)}"
        )
    return f"{text}\n{INSTRUCTIONS[language]}"


def open_text(question: str, language: str, answered_in: str) -> str:
    """The question and LLaVA-1.5's instruction for short answers, which names the answer's language where it
    is another than English or than the question's."""
    where = "" if answered_in == language == "en" else f" in {language_name(answered_in)}"
    return f"{question}\nAnswer the question using a single word or phrase{where}."
