"""What the tiny base model is trained on: an English-heavy mixture of tasks about drawn pictures, as text."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from plast_train.tiny.languages import KINDS, WORDINGS, ask
from plast_train.tiny.scenes import Query, Scene, any_query, draw_scene
from plast_train.tiny.words import LANGUAGES, PLACE_TEXTS, answer_text
from plast_train.tiny.world import letter, multiple_choice, option_rows

# LLaVA-1.5's format (METHOD §4).
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PREFIX = f"{SYSTEM} USER: <image>"
SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Mix:
    """Shares of the samples: of the languages, of the tasks in English, of the tasks in the others; and the
    kinds of question, drawn evenly."""

    languages: dict[str, float]
    english: dict[str, float]
    others: dict[str, float]
    kinds: tuple[str, ...]


_PLACE_KINDS = ("place of shape", "place of colour", "shape at place", "colour at place")
_MOSTLY_ENGLISH = {"en": 0.955, "zh": 0.009, "pt": 0.009, "ru": 0.008, "ar": 0.007, "tr": 0.007, "sw": 0.005}
_OTHERS = {"choice": 0.35, "short": 0.30, "to English": 0.25, "from English": 0.10}
# First reading options and finding letters, then mostly questions about the picture. Where things are is
# learned last, so it is asked more and more often.
FIRST_MIX = Mix(
    languages=_MOSTLY_ENGLISH,
    english={
        "choice": 0.36,
        "pick": 0.10,
        "letters": 0.12,
        "short": 0.30,
        "caption": 0.03,
        "rephrase": 0.05,
        "repeat": 0.04,
    },
    others=_OTHERS,
    kinds=(*KINDS, *_PLACE_KINDS),
)
SECOND_MIX = replace(
    FIRST_MIX,
    english={
        "choice": 0.48,
        "pick": 0.02,
        "letters": 0.02,
        "short": 0.36,
        "caption": 0.05,
        "rephrase": 0.04,
        "repeat": 0.03,
    },
)
THIRD_MIX = Mix(
    languages={"en": 0.92, "zh": 0.020, "pt": 0.015, "ru": 0.014, "ar": 0.012, "tr": 0.011, "sw": 0.008},
    english={"choice": 0.48, "short": 0.36, "caption": 0.09, "rephrase": 0.04, "repeat": 0.03},
    others={"choice": 0.50, "short": 0.30, "to English": 0.15, "from English": 0.05},
    kinds=(*KINDS, *_PLACE_KINDS, *_PLACE_KINDS, *_PLACE_KINDS),
)


def sample(rng: random.Random, scene: Scene, mix: Mix) -> tuple[str, str]:
    """One sample about the scene: what the user says, what the assistant answers."""
    language = _pick(rng, mix.languages)
    task = _pick(rng, mix.english if language == "en" else mix.others)
    if task == "caption":
        return "Describe the picture.", caption(scene)
    asked = any_query(rng, scene, mix.kinds)
    question = ask(language, asked.kind, asked.wording, asked.subject)
    if task in ("choice", "pick", "letters"):
        asked = _fewer_options(rng, asked)
    if task == "choice":
        return multiple_choice(language, asked), letter(asked)
    if task == "pick":  # reading options, without the picture
        asks = f"Which option is {answer_text(language, asked.answer)}?"
        return multiple_choice(language, asked, asks), letter(asked)
    if task == "letters":
        return _letters(rng, language, asked)
    if task == "short":
        text = f"{question}\n{SHORT_ANSWER}" if rng.random() < 0.25 else question
        return text, answer_text(language, asked.answer)
    english = ask("en", asked.kind, asked.wording, asked.subject)
    if task == "rephrase":
        return f"Rephrase the following question. {english}", _other_wording(asked)
    if task == "repeat":
        return f"Repeat the following question. {english}", english
    if task == "to English":
        return translation_prompt(language, question), english
    return f"Translate the following question from English to {LANGUAGES[language]}. {english}", question


def translation_prompt(language: str, question: str) -> str:
    """The instruction of METHOD §4."""
    return f"Translate the following question from {LANGUAGES[language]} to English. {question}"


def conversation(text: str, response: str | None = None) -> str:
    """The whole conversation with the image, up to the reply or with it."""
    prompt = f"{PREFIX}\n{text} ASSISTANT:"
    return prompt if response is None else f"{prompt} {response}</s>"


def caption(scene: Scene) -> str:
    """An English sentence that names all that the picture shows, in the picture's reading order."""
    places = PLACE_TEXTS["en"]
    things = sorted(scene.things, key=lambda thing: list(places).index(thing.place))
    parts = [f"a {thing.colour} {thing.shape} {places[thing.place]}" for thing in things]
    text = ", ".join(parts).replace("a orange", "an orange")
    return f"{text[0].upper()}{text[1:]}."


def _fewer_options(rng: random.Random, asked: Query) -> Query:
    """The question with two to all of its options: finding a letter is learned on the short lists."""
    wrong = [option for option in asked.options if option != asked.answer]
    kept = {asked.answer, *rng.sample(wrong, rng.randint(1, len(wrong)))}
    return replace(asked, options=tuple(option for option in asked.options if option in kept))


def _letters(rng: random.Random, language: str, asked: Query) -> tuple[str, str]:
    """Every option with its letter, in random order."""
    texts = list(option_rows(language, asked).items())
    listed = "".join(f"\n{letter}. {text}" for letter, text in texts)
    rng.shuffle(texts)
    said = ", ".join(f"{text} is {letter}" for letter, text in texts)
    return f"Name the letter of every option.{listed}", said


def _other_wording(asked: Query) -> str:
    return ask("en", asked.kind, (asked.wording + 1) % WORDINGS, asked.subject)


def _pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def tokenizer_texts(seed: int, count: int = 20_000) -> Iterator[str]:
    """Lines for the tokenizer: the system sentence, then samples of which 88 % are English."""
    shares = {language: 0.88 if language == "en" else 0.02 for language in LANGUAGES}
    rng = random.Random(f"tiny world, base tokenizer, {seed}")
    for number in range(count):
        text, response = sample(rng, draw_scene(rng, "base"), replace(FIRST_MIX, languages=shares))
        yield from f"{text} ASSISTANT: {response}".split("\n")
        if number % 50 == 0:
            yield f"{SYSTEM} USER: ASSISTANT:"
