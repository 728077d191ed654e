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

Words = dict[str, str]
Forms = dict[str, tuple[str, ...]]


def _words(keys: tuple[str, ...], text: str) -> Words:
    """One text for each key; the texts are separated by commas and in the keys' order."""
    return dict(zip(keys, text.split(", "), strict=True))


def _forms(keys: tuple[str, ...], text: str) -> Forms:
    """The same where each key has several forms, separated by spaces."""
    return {key: tuple(forms.split()) for key, forms in _words(keys, text).items()}


# Chinese: noun, measure word. Portuguese, Arabic: noun, gender. Turkish: nominative, genitive.
# Russian: nominative, genitive, gender. Swahili: noun, class of the singular.
SHAPE_FORMS: dict[str, Forms] = {
    "zh": _forms(
        SHAPES, "圆形 个, 正方形 个, 三角形 个, 星星 颗, 爱心 颗, 十字 个, 菱形 个, 圆环 个, 箭头 个, 月亮 个"
    ),
    "pt": _forms(
        SHAPES,
        "círculo m, quadrado m, triângulo m, estrela f, coração m, cruz f, losango m, anel m, seta f, lua f",
    ),
    "ar": _forms(SHAPES, "دائرة f, مربع m, مثلث m, نجمة f, قلب m, صليب m, معين m, حلقة f, سهم m, قمر m"),
    "tr": _forms(
        SHAPES,
        "daire dairenin, kare karenin, üçgen üçgenin, yıldız yıldızın, kalp kalbin, haç haçın, "
        "elmas elmasın, halka halkanın, ok okun, ay ayın",
    ),
    "ru": _forms(
        SHAPES,
        "круг круга m, квадрат квадрата m, треугольник треугольника m, звезда звезды f, "
        "сердце сердца n, крест креста m, ромб ромба m, кольцо кольца n, стрелка стрелки f, "
        "луна луны f",
    ),
    "sw": _forms(
        SHAPES,
        "duara 5, mraba 3, pembetatu 9, nyota 9, moyo 3, msalaba 3, almasi 9, pete 9, mshale 3, mwezi 3",
    ),
}
# Portuguese: masculine, feminine, masculine plural. Arabic: masculine, feminine.
# Russian: masculine, feminine, neuter, genitive plural. Swahili is below.
COLOUR_FORMS: dict[str, Forms] = {
    "zh": _forms(COLOURS, "红色, 绿色, 蓝色, 黄色, 橙色, 紫色, 粉色, 棕色, 黑色, 灰色"),
    "pt": _forms(
        COLOURS,
        "vermelho vermelha vermelhos, verde verde verdes, azul azul azuis, "
        "amarelo amarela amarelos, laranja laranja laranja, roxo roxa roxos, rosa rosa rosa, "
        "marrom marrom marrons, preto preta pretos, cinza cinza cinza",
    ),
    "ar": _forms(
        COLOURS,
        "أحمر حمراء, أخضر خضراء, أزرق زرقاء, أصفر صفراء, برتقالي برتقالية, بنفسجي بنفسجية, "
        "وردي وردية, بني بنية, أسود سوداء, رمادي رمادية",
    ),
    "tr": _forms(COLOURS, "kırmızı, yeşil, mavi, sarı, turuncu, mor, pembe, kahverengi, siyah, gri"),
    "ru": _forms(
        COLOURS,
        "красный красная красное красных, зелёный зелёная зелёное зелёных, "
        "синий синяя синее синих, жёлтый жёлтая жёлтое жёлтых, "
        "оранжевый оранжевая оранжевое оранжевых, фиолетовый фиолетовая фиолетовое фиолетовых, "
        "розовый розовая розовое розовых, коричневый коричневая коричневое коричневых, "
        "чёрный чёрная чёрное чёрных, серый серая серое серых",
    ),
}

# In Swahili two colours are adjectives, given for the noun classes 3, 5, 6 and 9; the others follow the
# connective -a, which agrees with the noun's class.
SW_ADJECTIVES: Forms = {
    "red": ("mwekundu", "jekundu", "mekundu", "nyekundu"),
    "black": ("mweusi", "jeusi", "meusi", "nyeusi"),
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
SW_CONNECTIVE = {"3": "wa", "5": "la", "6": "ya", "9": "ya"}
SW_HAS = {"3": "una", "5": "lina", "9": "ina"}
SW_IS_AT = {"3": "uko", "5": "liko", "9": "iko"}

# Where something is, as an adverbial that fits the questions and stands alone as an answer.
PLACE_TEXTS: dict[str, Words] = {
    "en": _words(
        PLACES,
        "at the top left, at the top, at the top right, on the left, in the centre, "
        "on the right, at the bottom left, at the bottom, at the bottom right",
    ),
    "zh": _words(PLACES, "左上角, 上方, 右上角, 左侧, 中间, 右侧, 左下角, 下方, 右下角"),
    "pt": _words(
        PLACES,
        "no canto superior esquerdo, em cima, no canto superior direito, à esquerda, "
        "no centro, à direita, no canto inferior esquerdo, embaixo, no canto inferior direito",
    ),
    "ar": _words(
        PLACES,
        "في أعلى اليسار, في الأعلى, في أعلى اليمين, على اليسار, في الوسط, على اليمين, "
        "في أسفل اليسار, في الأسفل, في أسفل اليمين",
    ),
    "tr": _words(PLACES, "sol üstte, üstte, sağ üstte, solda, ortada, sağda, sol altta, altta, sağ altta"),
    "ru": _words(
        PLACES,
        "слева вверху, вверху, справа вверху, слева, в центре, справа, слева внизу, внизу, справа внизу",
    ),
    "sw": _words(
        PLACES, "juu kushoto, juu, juu kulia, kushoto, katikati, kulia, chini kushoto, chini, chini kulia"
    ),
}
# How many objects, agreeing with each language's word for "object".
NUMBER_TEXTS: dict[str, Words] = {
    "en": _words(NUMBERS, "one, two, three, four"),
    "zh": _words(NUMBERS, "一个, 两个, 三个, 四个"),
    "pt": _words(NUMBERS, "um, dois, três, quatro"),
    "ar": _words(NUMBERS, "واحد, اثنان, ثلاثة, أربعة"),
    "tr": _words(NUMBERS, "bir, iki, üç, dört"),
    "ru": _words(NUMBERS, "один, два, три, четыре"),
    "sw": _words(NUMBERS, "moja, mawili, matatu, manne"),
}
YES_NO_TEXTS: dict[str, Words] = {
    "en": _words(YES_NO, "yes, no"),
    "zh": _words(YES_NO, "是, 否"),
    "pt": _words(YES_NO, "sim, não"),
    "ar": _words(YES_NO, "نعم, لا"),
    "tr": _words(YES_NO, "evet, hayır"),
    "ru": _words(YES_NO, "да, нет"),
    "sw": _words(YES_NO, "ndiyo, hapana"),
}


def swahili_colour(colour: str, noun_class: str) -> str:
    """The colour after a noun of `noun_class` (3, 5, 6 or 9): an adjective, or connective -a and a noun."""
    if colour in SW_ADJECTIVES:
        return SW_ADJECTIVES[colour]["3569".index(noun_class)]
    return f"{SW_CONNECTIVE[noun_class]} {SW_COLOURS[colour]}"


def answer_text(language: str, value: str) -> str:
    """Any answer of the world (a colour, shape, place, number, yes or no) in `language`.

    Raises:
        KeyError: no answer of the world.
    """
    if value in SHAPES + COLOURS and language == "en":
        return value
    if value in SHAPES:
        return SHAPE_FORMS[language][value][0]
    if value in COLOURS and language == "sw":
        return SW_ADJECTIVES[value][-1] if value in SW_ADJECTIVES else SW_COLOURS[value]
    if value in COLOURS:
        return COLOUR_FORMS[language][value][0]
    texts = PLACE_TEXTS[language] | NUMBER_TEXTS[language] | YES_NO_TEXTS[language]
    return texts[value]
