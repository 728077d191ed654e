"""English names of languages, for prompts and tables: `pt` → Portuguese (BCP 47, RFC 5646)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from plast_train.errors import UserError, nearest

# ISO 639 codes of languages with models or parallel questions to speak of; names as in the IANA registry,
# the everyday one where it lists several.
_LANGUAGES = dict(
    entry.split(" ", 1)
    for entry in """
af Afrikaans|am Amharic|ar Arabic|arz Egyptian Arabic|as Assamese|ast Asturian|ay Aymara|az Azerbaijani
ba Bashkir|be Belarusian|bg Bulgarian|bho Bhojpuri|bm Bambara|bn Bengali|bo Tibetan|br Breton|bs Bosnian
ca Catalan|ceb Cebuano|ckb Central Kurdish|cs Czech|cv Chuvash|cy Welsh|da Danish|de German|dv Dhivehi
dz Dzongkha|ee Ewe|el Greek|en English|eo Esperanto|es Spanish|et Estonian|eu Basque|fa Persian|ff Fulah
fi Finnish|fil Filipino|fj Fijian|fo Faroese|fr French|fy Western Frisian|ga Irish|gd Scottish Gaelic
gl Galician|gn Guarani|gu Gujarati|ha Hausa|haw Hawaiian|he Hebrew|hi Hindi|hr Croatian|ht Haitian Creole
hu Hungarian|hy Armenian|id Indonesian|ig Igbo|ilo Iloko|is Icelandic|it Italian|ja Japanese|jv Javanese
ka Georgian|kk Kazakh|km Khmer|kn Kannada|ko Korean|kok Konkani|ku Kurdish|ky Kyrgyz|la Latin
lb Luxembourgish|lg Ganda|ln Lingala|lo Lao|lt Lithuanian|lv Latvian|mai Maithili|mg Malagasy|mi Maori
mk Macedonian|ml Malayalam|mn Mongolian|mr Marathi|ms Malay|mt Maltese|my Burmese|nb Norwegian Bokmål
ne Nepali|nl Dutch|nn Norwegian Nynorsk|no Norwegian|nso Northern Sotho|ny Chichewa|oc Occitan|om Oromo
or Odia|os Ossetian|pa Punjabi|pl Polish|ps Pashto|pt Portuguese|qu Quechua|rm Romansh|rn Rundi|ro Romanian
ru Russian|rw Kinyarwanda|sa Sanskrit|scn Sicilian|sd Sindhi|se Northern Sami|si Sinhala|sk Slovak
sl Slovenian|sm Samoan|sn Shona|so Somali|sq Albanian|sr Serbian|ss Swati|st Southern Sotho|su Sundanese
sv Swedish|sw Swahili|ta Tamil|te Telugu|tg Tajik|th Thai|ti Tigrinya|tk Turkmen|tl Tagalog|tn Tswana
to Tongan|tr Turkish|ts Tsonga|tt Tatar|ug Uyghur|uk Ukrainian|ur Urdu|uz Uzbek|ve Venda|vi Vietnamese
war Waray|wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|yue Cantonese|zh Chinese|zu Zulu
""".strip()
    .replace("\n", "|")
    .split("|")
)

# Where a script or region changes what a translator would call the language.
_VARIANTS = {
    "en-GB": "British English",
    "en-US": "American English",
    "es-419": "Latin American Spanish",
    "es-ES": "European Spanish",
    "es-MX": "Mexican Spanish",
    "fr-CA": "Canadian French",
    "pt-BR": "Brazilian Portuguese",
    "pt-PT": "European Portuguese",
    "sr-Cyrl": "Serbian in Cyrillic script",
    "sr-Latn": "Serbian in Latin script",
    "zh-CN": "Simplified Chinese",
    "zh-Hans": "Simplified Chinese",
    "zh-Hant": "Traditional Chinese",
    "zh-HK": "Traditional Chinese",
    "zh-MO": "Traditional Chinese",
    "zh-SG": "Simplified Chinese",
    "zh-TW": "Traditional Chinese",
}

# Country codes and withdrawn codes that are often written for the language: the nearest spelling misleads.
_MISTAKES = {
    "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "in": "id", "iw": "he", "jp": "ja", "kr": "ko",
    "ua": "uk", "vn": "vi",
}  # fmt: skip

ENGLISH = "en"

_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(-(?P<script>[a-z]{4}))?(-(?P<region>[a-z]{2}|[0-9]{3}))?", re.IGNORECASE
)


def english_first(languages: Iterable[str]) -> list[str]:
    """The order of languages in every table and plot: English, which the others are compared with, then the
    others by their codes."""
    return sorted(languages, key=lambda language: (language != ENGLISH, language))


def language_name(code: str) -> str:
    """The English name of a BCP 47 language tag: a language, and a script or region where it has one.

    A script or region that does not change the name (`fr-BE`) is passed over. Case does not matter.

    Raises:
        UserError: not such a tag, or a language that the table does not hold; names the nearest code.
    """
    tag = _TAG.fullmatch(code)
    if tag is None or tag["language"].lower() not in _LANGUAGES:
        raise UserError(f"'{code}' is not a known language code{_hint(code)} (BCP 47, as en, pt, zh-Hans)")
    language = tag["language"].lower()
    script, region = (tag["script"] or "").title(), (tag["region"] or "").upper()
    for variant in (f"{language}-{script}", f"{language}-{region}"):
        if variant in _VARIANTS:
            return _VARIANTS[variant]
    return _LANGUAGES[language]


def _hint(code: str) -> str:
    by_name = {name.lower(): known for known, name in _LANGUAGES.items()}
    lower = code.replace("_", "-").lower()
    language, _, rest = lower.partition("-")
    meant = _MISTAKES.get(language) or by_name.get(lower)
    if meant is None and language in _LANGUAGES and rest:
        meant = code.replace("_", "-") if _TAG.fullmatch(lower) else language
    return f"; did you mean '{meant}'?" if meant else nearest(language, _LANGUAGES)
