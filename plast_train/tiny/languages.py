"""The tiny world's questions: ten kinds, two wordings each, in seven languages.

A question is asked by `ask(language, kind, wording, subject)`; `subject` is what the kind asks about:
a shape, a colour, a place, a number, `(colour, shape)`, or None.
"""

from collections.abc import Callable

from plast_train.tiny.words import (
    COLOUR_FORMS,
    NUMBER_TEXTS,
    PLACE_TEXTS,
    SHAPE_FORMS,
    SW_HAS,
    SW_IS_AT,
    swahili_colour,
)

KINDS = (
    "colour of shape",
    "shape of colour",
    "shape at place",
    "colour at place",
    "place of shape",
    "place of colour",
    "count all",
    "count colour",
    "exists",
    "count check",
)
WORDINGS = 2
Subject = str | tuple[str, str] | None
Wordings = tuple[str, str]


def _english(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    at = PLACE_TEXTS["en"].get(place, "")
    a = "an" if colour == "orange" else "a"
    is_there = (
        "Is there exactly one object"
        if number == "1"
        else (f"Are there exactly {NUMBER_TEXTS['en'].get(number)} objects")
    )
    return {
        "colour of shape": (f"What colour is the {shape}?", f"Which colour does the {shape} have?"),
        "shape of colour": (f"Which shape is {colour}?", f"What is the {colour} shape?"),
        "shape at place": (f"Which shape is {at}?", f"What shape do you see {at}?"),
        "colour at place": (f"What colour is the shape {at}?", f"Which colour do you see {at}?"),
        "place of shape": (f"Where is the {shape}?", f"Where do you see the {shape}?"),
        "place of colour": (f"Where is the {colour} shape?", f"Where do you see the {colour} shape?"),
        "count all": ("How many objects are there?", "How many objects do you see in the picture?"),
        "count colour": (f"How many {colour} objects are there?", f"How many {colour} objects do you see?"),
        "exists": (f"Is there {a} {colour} {shape}?", f"Is there {a} {colour} {shape}, yes or no?"),
        "count check": (f"{is_there}?", f"{is_there}, yes or no?"),
    }[kind]


def _chinese(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, measure = SHAPE_FORMS["zh"].get(shape, ("", ""))
    (c,) = COLOUR_FORMS["zh"].get(colour, ("",))
    at = PLACE_TEXTS["zh"].get(place, "")
    n = NUMBER_TEXTS["zh"].get(number, "")
    return {
        "colour of shape": (f"{s}是什么颜色的？", f"图中的{s}是什么颜色？"),
        "shape of colour": (f"哪个形状是{c}的？", f"{c}的形状是什么？"),
        "shape at place": (f"{at}是什么形状？", f"在{at}的是哪个形状？"),
        "colour at place": (f"{at}的形状是什么颜色的？", f"{at}是什么颜色？"),
        "place of shape": (f"{s}在哪里？", f"你在哪里看到{s}？"),
        "place of colour": (f"{c}的形状在哪里？", f"你在哪里看到{c}的形状？"),
        "count all": ("有几个物体？", "图中有多少个物体？"),
        "count colour": (f"有几个{c}的物体？", f"图中有多少个{c}的物体？"),
        "exists": (f"有一{measure}{c}的{s}吗？", f"图中有一{measure}{c}的{s}吗，是或否？"),
        "count check": (f"正好有{n}物体吗？", f"图中正好有{n}物体吗，是或否？"),
    }[kind]


def _portuguese(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, gender = SHAPE_FORMS["pt"].get(shape, ("", "m"))
    masculine, feminine, plural = COLOUR_FORMS["pt"].get(colour, ("", "", ""))
    the, of_the, a = {"m": ("o", "do", "um"), "f": ("a", "da", "uma")}[gender]
    c = masculine if gender == "m" else feminine
    at = PLACE_TEXTS["pt"].get(place, "")
    objects = f"{NUMBER_TEXTS['pt'].get(number)} {'objeto' if number == '1' else 'objetos'}"
    return {
        "colour of shape": (f"De que cor é {the} {s}?", f"Qual é a cor {of_the} {s}?"),
        "shape of colour": (f"Que forma é {feminine}?", f"Qual é a forma {feminine}?"),
        "shape at place": (f"Que forma está {at}?", f"Que forma se vê {at}?"),
        "colour at place": (f"De que cor é a forma que está {at}?", f"Que cor se vê {at}?"),
        "place of shape": (f"Onde está {the} {s}?", f"Onde se vê {the} {s}?"),
        "place of colour": (f"Onde está a forma {feminine}?", f"Onde se vê a forma {feminine}?"),
        "count all": ("Quantos objetos há?", "Quantos objetos se veem na imagem?"),
        "count colour": (f"Quantos objetos {plural} há?", f"Quantos objetos {plural} se veem?"),
        "exists": (f"Há {a} {s} {c}?", f"Há {a} {s} {c}, sim ou não?"),
        "count check": (f"Há exatamente {objects}?", f"Há exatamente {objects}, sim ou não?"),
    }[kind]


def _arabic(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, gender = SHAPE_FORMS["ar"].get(shape, ("", "m"))
    masculine, feminine = COLOUR_FORMS["ar"].get(colour, ("", ""))
    there_is, c = ("يوجد", masculine) if gender == "m" else ("توجد", feminine)
    at = PLACE_TEXTS["ar"].get(place, "")
    # One and two objects: singular and dual before the number; three and four: number, then plural.
    objects = {"1": "شيء واحد", "2": "شيئان اثنان", "3": "ثلاثة أشياء", "4": "أربعة أشياء"}.get(number, "")
    return {
        "colour of shape": (f"ما لون ال{s}؟", f"ما هو لون ال{s} في الصورة؟"),
        "shape of colour": (f"أي شكل لونه {masculine}؟", f"ما هو الشكل ال{masculine}؟"),
        "shape at place": (f"أي شكل يوجد {at}؟", f"ما هو الشكل الموجود {at}؟"),
        "colour at place": (f"ما لون الشكل الموجود {at}؟", f"أي لون يوجد {at}؟"),
        "place of shape": (f"أين ال{s}؟", f"أين {there_is} ال{s}؟"),
        "place of colour": (f"أين الشكل ال{masculine}؟", f"أين يوجد الشكل ال{masculine}؟"),
        "count all": ("كم شيئًا يوجد؟", "كم شيئًا ترى في الصورة؟"),
        "count colour": (f"كم شيئًا لونه {masculine} يوجد؟", f"كم شيئًا لونه {masculine} ترى؟"),
        "exists": (f"هل {there_is} {s} {c}؟", f"هل {there_is} {s} {c}، نعم أم لا؟"),
        "count check": (f"هل يوجد بالضبط {objects}؟", f"هل يوجد بالضبط {objects}، نعم أم لا؟"),
    }[kind]


def _turkish(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, genitive = SHAPE_FORMS["tr"].get(shape, ("", ""))
    (c,) = COLOUR_FORMS["tr"].get(colour, ("",))
    at = PLACE_TEXTS["tr"].get(place, "")
    n = NUMBER_TEXTS["tr"].get(number, "")
    return {
        "colour of shape": (f"{s} ne renk?", f"{genitive} rengi nedir?"),
        "shape of colour": (f"hangi şekil {c}?", f"{c} şekil nedir?"),
        "shape at place": (f"{at} hangi şekil var?", f"{at} görülen şekil nedir?"),
        "colour at place": (f"{at} bulunan şekil ne renk?", f"{at} hangi renk var?"),
        "place of shape": (f"{s} nerede?", f"{s} resmin neresinde?"),
        "place of colour": (f"{c} şekil nerede?", f"{c} şekil resmin neresinde?"),
        "count all": ("kaç nesne var?", "resimde kaç nesne görülüyor?"),
        "count colour": (f"kaç {c} nesne var?", f"kaç {c} nesne görülüyor?"),
        "exists": (f"{c} bir {s} var mı?", f"{c} bir {s} var mı, evet ya da hayır?"),
        "count check": (f"tam olarak {n} nesne mi var?", f"tam olarak {n} nesne mi var, evet ya da hayır?"),
    }[kind]


def _russian(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, genitive, gender = SHAPE_FORMS["ru"].get(shape, ("", "", "m"))
    masculine, feminine, neuter, plural = COLOUR_FORMS["ru"].get(colour, ("", "", "", ""))
    c = {"m": masculine, "f": feminine, "n": neuter}[gender]
    seen = {"m": "виден", "f": "видна", "n": "видно"}[gender]
    at = PLACE_TEXTS["ru"].get(place, "")
    objects = f"{NUMBER_TEXTS['ru'].get(number)} {'предмет' if number == '1' else 'предмета'}"
    return {
        "colour of shape": (f"какого цвета {s}?", f"какой цвет у {genitive}?"),
        "shape of colour": (f"какая фигура {feminine}?", f"что это за {feminine} фигура?"),
        "shape at place": (f"какая фигура находится {at}?", f"какая фигура видна {at}?"),
        "colour at place": (f"какого цвета фигура {at}?", f"какой цвет виден {at}?"),
        "place of shape": (f"где находится {s}?", f"где {seen} {s}?"),
        "place of colour": (f"где находится {feminine} фигура?", f"где видна {feminine} фигура?"),
        "count all": ("сколько здесь предметов?", "сколько предметов на картинке?"),
        "count colour": (f"сколько здесь {plural} предметов?", f"сколько {plural} предметов на картинке?"),
        "exists": (f"есть ли здесь {c} {s}?", f"есть ли здесь {c} {s}, да или нет?"),
        "count check": (f"здесь ровно {objects}?", f"здесь ровно {objects}, да или нет?"),
    }[kind]


def _swahili(kind: str, shape: str, colour: str, place: str, number: str) -> Wordings:
    s, noun_class = SHAPE_FORMS["sw"].get(shape, ("", "9"))
    c, of_rangi, plural = (swahili_colour(colour, n) if colour else "" for n in (noun_class, "9", "6"))
    at = PLACE_TEXTS["sw"].get(place, "")
    things = f"{'umbo' if number == '1' else 'maumbo'} {NUMBER_TEXTS['sw'].get(number)}"
    return {
        "colour of shape": (f"{s} {SW_HAS[noun_class]} rangi gani?", f"rangi ya {s} ni gani?"),
        "shape of colour": (f"umbo lenye rangi {of_rangi} ni lipi?", f"ni umbo gani lenye rangi {of_rangi}?"),
        "shape at place": (f"kuna umbo gani {at}?", f"unaona umbo gani {at}?"),
        "colour at place": (f"umbo lililo {at} lina rangi gani?", f"unaona rangi gani {at}?"),
        "place of shape": (f"{s} {SW_IS_AT[noun_class]} wapi?", f"unaona {s} wapi?"),
        "place of colour": (
            f"umbo lenye rangi {of_rangi} liko wapi?",
            f"unaona wapi umbo lenye rangi {of_rangi}?",
        ),
        "count all": ("kuna maumbo mangapi?", "unaona maumbo mangapi kwenye picha?"),
        "count colour": (f"kuna maumbo mangapi {plural}?", f"unaona maumbo mangapi {plural}?"),
        "exists": (f"je, kuna {s} {c}?", f"je, kuna {s} {c}, ndiyo au hapana?"),
        "count check": (f"je, kuna {things} tu?", f"je, kuna {things} tu, ndiyo au hapana?"),
    }[kind]


_ASK: dict[str, Callable[[str, str, str, str, str], Wordings]] = {
    "en": _english,
    "zh": _chinese,
    "pt": _portuguese,
    "ar": _arabic,
    "tr": _turkish,
    "ru": _russian,
    "sw": _swahili,
}


def ask(language: str, kind: str, wording: int, subject: Subject) -> str:
    """The question of `kind` about `subject`, in wording 0 or 1 of `language`."""
    slots = {"shape": "", "colour": "", "place": "", "number": ""}
    if kind == "exists":
        assert isinstance(subject, tuple)
        slots["colour"], slots["shape"] = subject
    elif isinstance(subject, str):
        # The kind's last word says what its subject is; "count check" is about a number.
        slots["number" if kind == "count check" else kind.rsplit(" ", 1)[1]] = subject
    text = _ASK[language](kind, *slots.values())[wording]
    return text[0].upper() + text[1:]
