"""Reading parallel questions: every format, and every defect by file, line, id and remedy."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from plast_train.config import DataConfig
from plast_train.data.languages import language_name
from plast_train.data.questions import Record, complete, read_records
from plast_train.errors import UserError

LANGUAGES = ["en", "pt"]


def entry(number: int, **fields: Any) -> dict[str, Any]:
    questions = {"en": f"What is {number}?", "pt": f"O que é {number}?"}
    return {"id": f"q{number}", "image": None, "questions": questions, **fields}


def write_lines(path: Path, entries: list[Any]) -> Path:
    lines = [e if isinstance(e, bytes) else json.dumps(e, ensure_ascii=False).encode() for e in entries]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    return path


def png(color: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return content.getvalue()


def read(*questions: Path | str, languages: list[str] = LANGUAGES, **options: Any) -> list[Record]:
    return read_records(DataConfig(questions=[str(q) for q in questions], languages=languages, **options))


def refused(*questions: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(*questions, **options)
    return str(caught.value)


# --- parallel questions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "records", "languages"),
    [
        ("xgqa", 1490, "en de pt ru id bn ko zh"),
        ("xquad", 805, "en ar de el es hi ro ru th tr vi zh"),
        ("mgsm", 150, "en bn de es fr ja ru sw te th zh"),
        ("image_questions", 12, "en zh pt ar tr ru"),
    ],
)
def test_real_files_are_read_whole_and_in_order(
    shared: Path, name: str, records: int, languages: str
) -> None:
    path = shared / "data" / f"{name}.jsonl"
    found = read(path, languages=languages.split())
    with path.open(encoding="utf-8") as file:
        expected = [json.loads(line) for line in file]
    assert len(found) == records
    for number, (record, raw) in enumerate(zip(found, expected, strict=True), start=1):
        assert record.id == raw["id"]
        assert record.questions == {code: raw["questions"][code] for code in languages.split()}
        assert list(record.questions) == languages.split()
        assert record.answer == raw.get("answer")
        assert record.where == f"{path}, line {number}"
        assert record.image == (raw["image"] and str((path.parent / raw["image"]).resolve()))


def test_files_are_joined_and_other_languages_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [entry(1), b"", b"  ", entry(2, answer=3)])
    with_bom = write_lines(tmp_path / "b.jsonl", [b"\xef\xbb\xbf" + json.dumps(entry(3)).encode()])
    found = read(first, with_bom, languages=["en", "pt"])
    assert [(r.id, r.answer) for r in found] == [("q1", None), ("q2", "3"), ("q3", None)]
    assert found[1].where == f"{first}, line 4"


def test_records_may_lack_languages_but_english(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [entry(1), entry(2), entry(3)]
    lines[0]["questions"] = {"en": "Who?", "zh": "谁?", "pt": "Quem?"}
    lines[1]["questions"] = {"en": "Where?", "zh": "哪里?"}
    path = write_lines(tmp_path / "q.jsonl", lines)
    found = read(path, languages=["en", "pt", "zh"])
    assert [list(r.questions) for r in found] == [["en", "pt", "zh"], ["en", "zh"], ["en", "pt"]]
    assert complete(found, ["en", "pt", "zh"]) == [0] and complete(found, ["en", "zh"]) == [0, 1]
    (warning,) = caplog.messages
    assert "2 of 3 records lack questions (pt 1, zh 1), the first: " in warning and "line 2" in warning
    assert "not probed" in warning


def test_a_probe_needs_every_language(tmp_path: Path) -> None:
    lines = [entry(1), entry(2, questions={"en": "Who?", "zh": "谁?"})]
    path = write_lines(tmp_path / "q.jsonl", lines)
    told = refused(path, languages=["en", "pt", "zh"])
    assert "2 of 2 records lack questions (zh 1, pt 1)" in told and "Probing needs" in told
    told = refused(path, languages=["en", "pt", "zh", "sw"])
    assert "data.languages: no record has a question in 'sw' (there is: en, pt, zh)" in told


QUESTIONS = entry(1)["questions"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (b'{"id": "q2", "questions": ', "line 2: invalid JSON at column"),
        (b'{"id": "q2\xff"}', "line 2: not UTF-8 at byte 11"),
        (b"[" * 100_000, "line 2: invalid JSON"),
        (["q2"], "line 2: not a JSON object"),
        (entry(2, id=None), "line 2: no 'id'"),
        (entry(2, id=True), "line 2, id 'True': 'id' is True"),
        (entry(1), "line 2, id 'q1': the id is also at"),
        (entry(2, questions=None), "id 'q2': 'questions' does not map"),
        (entry(2, questions={"pt": "O que?"}), "id 'q2': no English question (there is: pt); add it"),
        (entry(2, questions={"en": "What?", "pt-BR": "O?"}), "no question in pt (there is: en, pt-BR)"),
        (entry(2, questions={**QUESTIONS, "en": " \n"}), "the question in 'en' is empty"),
        (entry(2, questions={**QUESTIONS, "pt": 7}), "the question in 'pt' is not a text but 7"),
        (entry(2, questions={**QUESTIONS, "pt": ["?"]}), "the question in 'pt' is not a text but ['?']"),
        (b'{"id": "q2", "questions": {"en": "a", "pt": "\\ud83d"}}', "half a surrogate pair"),
        (
            b'{"id": "q\\ud800", "questions": {"en": "a", "pt": "b"}}',
            r"line 2, id 'q\ud800': the id has half a surrogate pair",
        ),
        (
            b'{"id": "q2", "answer": "\\udc00", "questions": {"en": "a", "pt": "b"}}',
            "the answer has half a surrogate pair",
        ),
        (entry(2, answer=["yes"]), "'answer' is ['yes']"),
        (entry(2, image=5), "'image' is 5; write a path or null"),
        (entry(2, image="none.png"), "image 'none.png' is missing below"),
        (entry(2, image="broken.png"), "broken"),
        (entry(2, image="../outside.png"), "image '../outside.png' leaves"),
    ],
)
def test_each_defect_is_named(tmp_path: Path, bad: Any, told: str) -> None:
    (tmp_path / "outside.png").write_bytes(png())
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "broken.png").write_bytes(png()[:-30])
    path = write_lines(folder / "q.jsonl", [entry(1), bad, entry(3)])
    message = refused(path)
    assert "1 of 3 records" in message
    assert f"{path}, line 2" in message
    assert told in message
    assert [r.id for r in read(path, max_bad_fraction=0.34)] == ["q1", "q3"]


def test_an_image_whose_name_no_text_can_hold(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\x80.png")).write_bytes(png())
    line = b'{"id": "q2", "image": "\\udc80.png", "questions": {"en": "a", "pt": "b"}}'
    path = write_lines(tmp_path / "q.jsonl", [entry(1), line])
    assert "line 2, id 'q2': the name of image" in refused(path)


def test_all_defects_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    bad = [entry(n, questions={"en": "", "pt": ""}) for n in range(6)]
    path = write_lines(tmp_path / "q.jsonl", [*bad, *(entry(n) for n in range(6, 20))])
    message = refused(path, max_bad_fraction=0.2)
    assert "6 of 20 records" in message
    assert message.count("is empty") == 10
    assert "and 2 more" in message
    assert "these are 0.3" in message


def test_few_bad_records_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "q.jsonl", [entry(1), b"{", entry(1), entry(4)])
    with caplog.at_level(logging.WARNING):
        found = read(path, max_bad_fraction=0.5)
    assert [r.id for r in found] == ["q1", "q4"]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "2 of 4 records" in message and "line 2" in message and "line 3, id 'q1'" in message


def test_all_bad_is_refused_whatever_the_fraction(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [b"{", b"["])
    assert "2 of 2" in refused(path, max_bad_fraction=0.99)


def test_sound_questions_are_silent_and_untranslated_ones_warn_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = write_lines(tmp_path / "a.jsonl", [entry(n) for n in range(5)])
    read(sound)
    assert not caplog.records
    same = [entry(n, questions={"en": f"What {n}?", "pt": f"What {n}?"}) for n in range(5, 9)]
    read(sound, write_lines(tmp_path / "b.jsonl", same))
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert (
        "4 questions are the same as in English (pt 4)" in message and "b.jsonl, line 1, id 'q5'" in message
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl")
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert "no record in" in refused(empty)
    assert "is not there or of no known kind" in refused(tmp_path / "q.txt")
    assert "is there twice" in refused(empty, empty)
    good = write_lines(tmp_path / "q.jsonl", [entry(1)])
    assert "is not a folder" in refused(good, image_root=str(tmp_path / "none"))
    assert "data.columns" in refused(good, columns={"en": "question"})
    assert "did you mean 'zh'" in refused(good, languages=["en", "cn"])


def test_image_root_may_be_set_and_absolute_paths_below_it_are_taken(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(png())
    path = write_lines(tmp_path / "q.jsonl", [entry(1, image="a.png"), entry(2, image=str(root / "a.png"))])
    found = read(path, image_root=str(root))
    assert [r.image for r in found] == [str(root / "a.png")] * 2
    assert "missing below" in refused(path)


# --- LLaVA lists --------------------------------------------------------------------------------------


def conversation(id_: Any, text: str, english: str | None = None, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "…"}]
    more = {} if english is None else {"english_conversations": [{"from": "human", "value": english}]}
    return {"id": id_, "conversations": turns, **more, **fields}


def test_lists_are_paired_by_id(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    en = [conversation("b", "<image>\nWho?", image="a.png"), conversation(7, "What?")]
    pt = [conversation(7, "O quê?"), conversation("b", "Quem?\n<image>", image="a.png")]
    english = write_json(tmp_path / "en.json", en, indent=1)
    found = read(f"en={english}", f"pt={write_json(tmp_path / 'pt.json', pt)}")
    assert [(r.id, r.questions) for r in found] == [
        ("b", {"en": "Who?", "pt": "Quem?"}),
        ("7", {"en": "What?", "pt": "O quê?"}),
    ]
    assert found[0].image == str(tmp_path / "a.png")
    lines = english.read_text(encoding="utf-8").splitlines()
    line = next(n for n, text in enumerate(lines, start=1) if '"id": 7' in text) - 1  # the brace before
    assert found[1].where == f"{english}, line {line}, entry 2"


def test_palo_files_bring_their_english_and_ids_that_repeat(tmp_path: Path) -> None:
    pt = [
        conversation("1", "<image>\nQuem?", "Who?\n<image>"),
        conversation("1", "Onde?", "Where?"),
        conversation("2", "O quê?", "What?"),
    ]
    hi = [
        conversation("2", "क्या?", "What?"),
        conversation("1", "कहाँ?", "Where?"),
        conversation("1", "कौन?", "Who?"),
    ]
    files = [f"pt={write_json(tmp_path / 'pt.json', pt)}", f"hi={write_json(tmp_path / 'hi.json', hi)}"]
    found = read(*files, languages=["en", "hi", "pt"])
    assert {r.id: tuple(r.questions.values()) for r in found} == {
        "1": ("Who?", "कौन?", "Quem?"),
        "1#2": ("Where?", "कहाँ?", "Onde?"),
        "2": ("What?", "क्या?", "O quê?"),
    }


@pytest.mark.parametrize(
    ("en", "pt", "told"),
    [
        ([conversation(1, "A?")], [conversation(1, "X?"), conversation(2, "Y?")], "no English conversation"),
        (
            [conversation(1, "A?"), conversation(2, "B?")],
            [conversation(1, "X?")],
            "id '2': no question in pt (there is: en)",
        ),
        ([conversation(1, "A?")], [conversation(1, "X?"), conversation(1, "Z?")], "is there twice"),
        ([conversation(1, "A?"), conversation(1, "B?")], [conversation(1, "X?")], "several English"),
        ([conversation(1, "A?", image="a")], [conversation(1, "X?", image="b")], "different images"),
        ([conversation(1, "A?")], [{"id": 1, "conversations": []}], "no human turn"),
        ([conversation(1, "A?")], [{"id": 1}], "no list 'conversations'"),
        ([conversation(1, "A?")], [conversation(None, "X?")], "no 'id'"),
        ([conversation(1, "A?")], [conversation(1, "<image>\n")], "the question in 'pt' is empty"),
    ],
)
def test_lists_that_do_not_pair(tmp_path: Path, en: Any, pt: Any, told: str) -> None:
    files = [f"en={write_json(tmp_path / 'en.json', en)}", f"pt={write_json(tmp_path / 'pt.json', pt)}"]
    assert told in refused(*files)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"id": 1},\n{"id" 2}]', "line 2, entry 2: invalid JSON at column 7"),
        ('[{"id": 1}', "ends without ']'"),
        ('{"id": 1}', "not a JSON list"),
        ("", "not a JSON list"),
        ('[{"id": 1},]', "entry 2: invalid JSON"),
    ],
)
def test_lists_that_are_no_json_list(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "pt.json"
    path.write_text(text, encoding="utf-8")
    message = refused(f"pt={path}")
    assert str(path) in message and told in message


def test_language_of_a_list(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", [conversation(1, "A?")])
    assert "did you mean 'ja'" in refused(f"jp={path}")
    other = write_json(tmp_path / "y.json", [conversation(2, "A?")])
    assert "has a list already" in refused(f"en={path}", f"en={other}")
    assert "no known kind" in refused(path)  # without its language


# --- Hugging Face data sets ---------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def columns(**more: Any) -> dict[str, list[Any]]:
    return {"key": [1, 2], "english": ["Who?", "What?"], "pt": ["Quem?", "O quê?"], **more}


MAPPING = {"id": "key", "en": "english"}


def test_folder_and_parquet_with_embedded_images(tmp_path: Path, cache: Path) -> None:
    import datasets

    contents = [png("red"), png("blue")]
    images = [{"bytes": content, "path": None} for content in contents]
    made = datasets.Dataset.from_dict(columns(photo=images, answer=["a", None]))
    made = made.cast_column("photo", datasets.Image())
    folder, parquet = tmp_path / "folder", tmp_path / "parts" / "a.parquet"
    made.save_to_disk(folder)
    parquet.parent.mkdir()
    made.to_parquet(parquet)
    expected = [("1", {"en": "Who?", "pt": "Quem?"}, "a"), ("2", {"en": "What?", "pt": "O quê?"}, None)]
    for source in (folder, parquet, parquet.parent):
        found = read(source, columns={**MAPPING, "image": "photo"})
        assert [(r.id, r.questions, r.answer) for r in found] == expected
        assert [Path(r.image or "").read_bytes() for r in found] == contents
        assert found[1].where == f"{source}, row 1"
    assert len(list((cache / "plast-images").iterdir())) == 2


def test_data_set_with_image_paths_and_without_images(tmp_path: Path, cache: Path) -> None:
    import datasets

    (tmp_path / "a.png").write_bytes(png())
    datasets.Dataset.from_dict(columns(image=["a.png", None])).to_parquet(tmp_path / "q.parquet")
    found = read(tmp_path / "q.parquet", columns=MAPPING)
    assert [r.image for r in found] == [str(tmp_path / "a.png"), None]
    datasets.Dataset.from_dict(columns()).save_to_disk(tmp_path / "plain")
    assert [r.image for r in read(tmp_path / "plain", columns=MAPPING)] == [None, None]


def test_data_sets_that_cannot_be_used(tmp_path: Path, cache: Path) -> None:
    import datasets

    made = datasets.Dataset.from_dict(columns(photo=[b"no image", None]))
    made.save_to_disk(tmp_path / "plain")
    plain = str(tmp_path / "plain")
    assert "row 0, id '1': image" in refused(plain, columns={**MAPPING, "image": "photo"})
    assert "no column 'en' for 'en' (it has: key, english," in refused(plain, columns={"id": "key"})
    wrong = {**MAPPING, "en": "englich"}
    assert "no column 'englich' for 'en'; did you mean 'english'?" in refused(plain, columns=wrong)
    assert "'imgae' is not a field; did you mean 'image'?" in refused(
        plain, columns={**MAPPING, "imgae": "x"}
    )
    assert "no column 'pic' for 'image'" in refused(plain, columns={**MAPPING, "image": "pic"})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    splits = tmp_path / "splits"
    assert f"has the splits train, test; name one: {splits}/SPLIT" in refused(splits, columns=MAPPING)
    assert len(read(splits / "test", columns=MAPPING)) == 2
    (tmp_path / "nothing").mkdir()
    assert "neither a folder of save_to_disk" in refused(tmp_path / "nothing")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "cannot be read as a data set" in refused(tmp_path / "bad.parquet")


# --- languages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("pt", "Portuguese"),
        ("sw", "Swahili"),
        ("yue", "Cantonese"),
        ("zh-Hans", "Simplified Chinese"),
        ("zh-CN", "Simplified Chinese"),
        ("zh-hant-hk", "Traditional Chinese"),
        ("pt-br", "Brazilian Portuguese"),
        ("fr-BE", "French"),
    ],
)
def test_names(code: str, name: str) -> None:
    assert language_name(code) == name


@pytest.mark.parametrize(
    ("code", "meant"),
    [("cn", "zh"), ("zh_CN", "zh-CN"), ("Swahili", "sw"), ("eng", "en"), ("pt-Brazil", "pt"), ("jp", "ja")],
)
def test_wrong_codes_are_told_the_right_one(code: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"'{code}' is not a known language code.*did you mean '{meant}'"):
        language_name(code)
