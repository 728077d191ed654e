"""The tiny world's words in seven languages, with the forms that its questions need."""

LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "pt": "Portuguese",
    "ar": "Arabic",
    "tr": "Turkish",
    "ru": "Russian",
    "sw": "Swahili",
}

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring", "arrow", "moon")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "grey")
# Row by row, as the picture is read.
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")


def _row(keys: tuple[str, ...], *values: object) -> dict:
    return dict(zip(keys, values, strict=True))


# Chinese: noun, measure word.
ZH_SHAPES: dict[str, tuple[str, str]] = _row(
    SHAPES,
    ("圆形", "个"),
    ("正方形", "个"),
    ("三角形", "个"),
    ("星星", "颗"),
    ("爱心", "颗"),
    ("十字", "个"),
    ("菱形", "个"),
    ("圆环", "个"),
    ("箭头", "个"),
    ("月亮", "个"),
)
ZH_COLOURS: dict[str, str] = _row(
    COLOURS, "红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "棕色", "黑色", "灰色"
)

# Portuguese: noun, gender.
PT_SHAPES: dict[str, tuple[str, str]] = _row(
    SHAPES,
    ("círculo", "m"),
    ("quadrado", "m"),
    ("triângulo", "m"),
    ("estrela", "f"),
    ("coração", "m"),
    ("cruz", "f"),
    ("losango", "m"),
    ("anel", "m"),
    ("seta", "f"),
    ("lua", "f"),
)
# Masculine, feminine, masculine plural.
PT_COLOURS: dict[str, tuple[str, str, str]] = _row(
    COLOURS,
    ("vermelho", "vermelha", "vermelhos"),
    ("verde", "verde", "verdes"),
    ("azul", "azul", "azuis"),
    ("amarelo", "amarela", "amarelos"),
    ("laranja", "laranja", "laranja"),
    ("roxo", "roxa", "roxos"),
    ("rosa", "rosa", "rosa"),
    ("marrom", "marrom", "marrons"),
    ("preto", "preta", "pretos"),
    ("cinza", "cinza", "cinza"),
)

# Arabic: noun, gender.
AR_SHAPES: dict[str, tuple[str, str]] = _row(
    SHAPES,
    ("دائرة", "f"),
    ("مربع", "m"),
    ("مثلث", "m"),
    ("نجمة", "f"),
    ("قلب", "m"),
    ("صليب", "m"),
    ("معين", "m"),
    ("حلقة", "f"),
    ("سهم", "m"),
    ("قمر", "m"),
)
# Masculine, feminine.
AR_COLOURS: dict[str, tuple[str, str]] = _row(
    COLOURS,
    ("أحمر", "حمراء"),
    ("أخضر", "خضراء"),
    ("أزرق", "زرقاء"),
    ("أصفر", "صفراء"),
    ("برتقالي", "برتقالية"),
    ("بنفسجي", "بنفسجية"),
    ("وردي", "وردية"),
    ("بني", "بنية"),
    ("أسود", "سوداء"),
    ("رمادي", "رمادية"),
)

# Turkish: nominative, genitive.
TR_SHAPES: dict[str, tuple[str, str]] = _row(
    SHAPES,
    ("daire", "dairenin"),
    ("kare", "karenin"),
    ("üçgen", "üçgenin"),
    ("yıldız", "yıldızın"),
    ("kalp", "kalbin"),
    ("haç", "haçın"),
    ("elmas", "elmasın"),
    ("halka", "halkanın"),
    ("ok", "okun"),
    ("ay", "ayın"),
)
TR_COLOURS: dict[str, str] = _row(
    COLOURS, "kırmızı", "yeşil", "mavi", "sarı", "turuncu", "mor", "pembe", "kahverengi", "siyah", "gri"
)

# Russian: nominative, genitive, gender.
RU_SHAPES: dict[str, tuple[str, str, str]] = _row(
    SHAPES,
    ("круг", "круга", "m"),
    ("квадрат", "квадрата", "m"),
    ("треугольник", "треугольника", "m"),
    ("звезда", "звезды", "f"),
    ("сердце", "сердца", "n"),
    ("крест", "креста", "m"),
    ("ромб", "ромба", "m"),
    ("кольцо", "кольца", "n"),
    ("стрелка", "стрелки", "f"),
    ("луна", "луны", "f"),
)
# Stem; "син" has the soft endings.
RU_COLOURS: dict[str, str] = _row(
    COLOURS, "красн", "зелён", "син", "жёлт", "оранжев", "фиолетов", "розов", "коричнев", "чёрн", "сер"
)
RU_ENDINGS = {
    "hard": {"m": "ый", "f": "ая", "n": "ое", "genitive plural": "ых"},
    "soft": {"m": "ий", "f": "яя", "n": "ее", "genitive plural": "их"},
}

# Swahili: noun, class of the singular.
SW_SHAPES: dict[str, tuple[str, int]] = _row(
    SHAPES,
    ("duara", 5),
    ("mraba", 3),
    ("pembetatu", 9),
    ("nyota", 9),
    ("moyo", 3),
    ("msalaba", 3),
    ("almasi", 9),
    ("pete", 9),
    ("mshale", 3),
    ("mwezi", 3),
)
# Two colours are adjectives that agree with the noun's class; the others follow the connective -a.
SW_ADJECTIVES = {
    "red": {3: "mwekundu", 5: "jekundu", 6: "mekundu", 9: "nyekundu"},
    "black": {3: "mweusi", 5: "jeusi", 6: "meusi", 9: "nyeusi"},
}
SW_COLOURS = {
    "green": "kijani",
    "blue": "bluu",
    "yellow": "manjano",
    "orange": "machungwa",
    "purple": "zambarau",
    "pink": "waridi",
    "brown": "kahawia",
    "grey": "kijivu",
}
SW_CONNECTIVE = {3: "wa", 5: "la", 6: "ya", 9: "ya"}
SW_HAS = {3: "una", 5: "lina", 9: "ina"}
SW_IS_AT = {3: "uko", 5: "liko", 9: "iko"}

# Where something is, as an adverbial that fits the questions and stands alone as an answer.
PLACE_TEXTS: dict[str, dict[str, str]] = {
    "en": _row(
        PLACES,
        "at the top left",
        "at the top",
        "at the top right",
        "on the left",
        "in the centre",
        "on the right",
        "at the bottom left",
        "at the bottom",
        "at the bottom right",
    ),
    "zh": _row(PLACES, "左上角", "上方", "右上角", "左侧", "中间", "右侧", "左下角", "下方", "右下角"),
    "pt": _row(
        PLACES,
        "no canto superior esquerdo",
        "em cima",
        "no canto superior direito",
        "à esquerda",
        "no centro",
        "à direita",
        "no canto inferior esquerdo",
        "embaixo",
        "no canto inferior direito",
    ),
    "ar": _row(
        PLACES,
        "في أعلى اليسار",
        "في الأعلى",
        "في أعلى اليمين",
        "على اليسار",
        "في الوسط",
        "على اليمين",
        "في أسفل اليسار",
        "في الأسفل",
        "في أسفل اليمين",
    ),
    "tr": _row(
        PLACES,
        "sol üstte",
        "üstte",
        "sağ üstte",
        "solda",
        "ortada",
        "sağda",
        "sol altta",
        "altta",
        "sağ altta",
    ),
    "ru": _row(
        PLACES,
        "слева вверху",
        "вверху",
        "справа вверху",
        "слева",
        "в центре",
        "справа",
        "слева внизу",
        "внизу",
        "справа внизу",
    ),
    "sw": _row(
        PLACES,
        "juu kushoto",
        "juu",
        "juu kulia",
        "kushoto",
        "katikati",
        "kulia",
        "chini kushoto",
        "chini",
        "chini kulia",
    ),
}

# How many objects, agreeing with each language's word for "object".
NUMBER_TEXTS: dict[str, dict[str, str]] = {
    "en": _row(NUMBERS, "one", "two", "three", "four"),
    "zh": _row(NUMBERS, "一个", "两个", "三个", "四个"),
    "pt": _row(NUMBERS, "um", "dois", "três", "quatro"),
    "ar": _row(NUMBERS, "واحد", "اثنان", "ثلاثة", "أربعة"),
    "tr": _row(NUMBERS, "bir", "iki", "üç", "dört"),
    "ru": _row(NUMBERS, "один", "два", "три", "четыре"),
    "sw": _row(NUMBERS, "moja", "mawili", "matatu", "manne"),
}

YES_NO_TEXTS: dict[str, dict[str, str]] = {
    "en": _row(YES_NO, "yes", "no"),
    "zh": _row(YES_NO, "是", "否"),
    "pt": _row(YES_NO, "sim", "não"),
    "ar": _row(YES_NO, "نعم", "لا"),
    "tr": _row(YES_NO, "evet", "hayır"),
    "ru": _row(YES_NO, "да", "нет"),
    "sw": _row(YES_NO, "ndiyo", "hapana"),
}


def russian_colour(colour: str, form: str) -> str:
    """The adjective in `form`: `m`, `f`, `n` (nominative singular) or `genitive plural`."""
    return RU_COLOURS[colour] + RU_ENDINGS["soft" if colour == "blue" else "hard"][form]


def swahili_colour(colour: str, noun_class: int) -> str:
    """The colour after a noun of `noun_class` (3, 5, 6 or 9): an adjective, or connective -a and a noun."""
    if colour in SW_ADJECTIVES:
        return SW_ADJECTIVES[colour][noun_class]
    return f"{SW_CONNECTIVE[noun_class]} {SW_COLOURS[colour]}"


def colour_text(language: str, colour: str) -> str:
    """The colour's name as an answer to "what colour?" (citation form)."""
    if language == "en":
        return colour
    if language == "ru":
        return russian_colour(colour, "m")
    if language == "sw":
        return SW_ADJECTIVES[colour][9] if colour in SW_ADJECTIVES else SW_COLOURS[colour]
    if language == "pt":
        return PT_COLOURS[colour][0]
    if language == "ar":
        return AR_COLOURS[colour][0]
    return {"zh": ZH_COLOURS, "tr": TR_COLOURS}[language][colour]


def shape_text(language: str, shape: str) -> str:
    """The shape's noun as an answer."""
    if language == "en":
        return shape
    tables: dict[str, dict] = {
        "zh": ZH_SHAPES,
        "pt": PT_SHAPES,
        "ar": AR_SHAPES,
        "tr": TR_SHAPES,
        "ru": RU_SHAPES,
        "sw": SW_SHAPES,
    }
    return tables[language][shape][0]


def answer_text(language: str, value: str) -> str:
    """Any answer of the world (a colour, shape, place, number, yes or no) in `language`."""
    if value in COLOURS:
        return colour_text(language, value)
    if value in SHAPES:
        return shape_text(language, value)
    for texts in (PLACE_TEXTS, NUMBER_TEXTS, YES_NO_TEXTS):
        if value in texts[language]:
            return texts[language][value]
    raise KeyError(value)
