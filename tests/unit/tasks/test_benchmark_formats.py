"""The same benchmark from TSV, Parquet and a Hugging Face folder; CVQA, M3Exam and parallel questions with
answers; and what is wrong with any of them named."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from launcher.cli import main
from plast_train.errors import UserError
from plast_train.evaluation.answering import record_of
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.scoring.comparisons import compare_all
from plast_train.scoring.questions import questions_of
from plast_train.scoring.scores import results
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.parallel_questions import ENGLISH_ANSWERS, LOCAL_ANSWERS
from plast_train.tasks.registry import read_benchmark, read_benchmarks
from plast_train.tasks.tables import read_tsv

FILES = ["mmmb_style_en", "mmbench_style_cn"]


def cells_of(path: Path) -> list[dict[str, Any]]:
    """A TSV's rows as Parquet holds them: numbers, and null where a cell is empty."""
    rows = [dict(row.cells) for row in read_tsv(path)]
    return [{**{k: v or None for k, v in row.items()}, "index": int(row["index"])} for row in rows]


def with_bytes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The image itself in every row, as data sets have it."""
    whole = {row["index"]: row["image"] for row in rows}

    def content(cell: str) -> bytes:
        return base64.b64decode(whole[int(cell)] if len(cell) <= 64 else cell)

    return [{**row, "image": {"bytes": content(row["image"]), "path": None}} for row in rows]


def same(benchmark: Benchmark, expected: Benchmark) -> None:
    assert replace(benchmark, path=expected.path) == expected


@pytest.mark.parametrize("name", FILES)
def test_parquet_is_the_tsv(shared: Path, tmp_path: Path, name: str) -> None:
    tsv = shared / "data" / "benchmarks" / f"{name}.tsv"
    expected, rows = read_benchmark(tsv), cells_of(tsv)
    path = tmp_path / f"{name}.parquet"
    pandas.DataFrame(rows).to_parquet(path)
    same(read_benchmark(path), expected)
    datasets.Dataset.from_list(with_bytes(rows)).cast_column("image", datasets.Image()).to_parquet(path)
    same(read_benchmark(path), expected)


def made_up(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What two models would have answered: a reply and logits that follow from the row's index alone."""
    records = []
    for model, prime in (("base", 7), ("plast", 11)):
        for question in questions_of([benchmark], LLAVA_CHAT):
            letters = sorted(question.item.options)
            letter = letters[question.item.index * prime % 13 % len(letters)]
            reply = [letter, f"{letter}. {question.item.options[letter]}", "", "A or B"][
                question.item.index % 4
            ]
            logits = {x: float((ord(x) * prime + question.item.index) % 17) for x in letters}
            records.append({"model": model, **record_of(question, reply, logits)})
    return records


def test_parquet_scores_as_the_tsv_does(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data" / "benchmarks").glob("*.tsv"))
    assert len(files) == 12
    found = []
    for tsv in files:
        path = tmp_path / f"{tsv.stem}.parquet"
        pandas.DataFrame(cells_of(tsv)).to_parquet(path)
        found.append([made_up(read_benchmark(file)) for file in (tsv, path)])
    tables = [results(record for records in side for record in records) for side in zip(*found, strict=True)]
    assert tables[0] == tables[1] and {len(cells) for cells in tables[0].values()} == {6}
    matching = "parrot2024"
    compared = [
        compare_all([r for records in side for r in records], "base", "plast", matching)
        for side in zip(*found, strict=True)
    ]
    assert compared[0] == compared[1]
    accuracies = {
        cell["base"]["generated"][matching] for cells in tables[0].values() for cell in cells.values()
    }
    assert len(accuracies) > 1 and max(accuracies) > 0


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("image", ["base64", "image"])
def test_a_hugging_face_folder_is_the_tsv(shared: Path, tmp_path: Path, name: str, image: str) -> None:
    tsv = shared / "data" / "benchmarks" / f"{name}.tsv"
    expected, rows = read_benchmark(tsv), cells_of(tsv)
    table = datasets.Dataset.from_list(rows if image == "base64" else with_bytes(rows))
    if image == "image":
        table = table.cast_column("image", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / name)
    same(read_benchmark(tmp_path / name), expected)
    shards = tmp_path / "parquet" / name
    shards.mkdir(parents=True)
    half = len(table) // 2
    table.select(range(half)).to_parquet(shards / "test-00000.parquet")
    table.select(range(half, len(table))).to_parquet(shards / "test-00001.parquet")
    same(read_benchmark(shards), expected)


def picture(shared: Path) -> bytes:
    return next((shared / "data" / "images").glob("*.jpg")).read_bytes()


def cvqa(shared: Path, folder: Path, **cells: Any) -> Path:
    row = {
        "image": {"bytes": picture(shared), "path": None},
        "Question": "Apa ini?",
        "Options": ["kucing", "anjing", "burung", "ikan"],
        "Label": 2,
        "Category": "Plants and Animals",
        **cells,
    }
    path = folder / "cvqa_id.parquet"
    datasets.Dataset.from_list([row]).to_parquet(path)
    return path


def test_cvqa(shared: Path, tmp_path: Path) -> None:
    (item,) = read_benchmark(cvqa(shared, tmp_path)).items
    assert item.options == {"A": "kucing", "B": "anjing", "C": "burung", "D": "ikan"}
    assert (item.index, item.answer, item.category) == (0, "C", "Plants and Animals")
    assert item.image.mode == "RGB"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"Label": -1}, "cvqa_id.parquet, row 0: Label '-1' is not an option's number (0 to 3)"),
        ({"Options": ["one"]}, "row 0: Options is ['one']; give a list"),
        ({"Question": None}, "row 0: index 0: the question is empty"),
        (
            {"image": {"bytes": b"no image" * 20, "path": None}},
            "row 0: image of 160 bytes… cannot be decoded",
        ),
    ],
)
def test_defects_of_cvqa(shared: Path, tmp_path: Path, cells: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_benchmark(cvqa(shared, tmp_path, **cells))
    assert words in str(error.value)


EXAM = {
    "question_text": "Which animal is in the picture?\n(image)[image-1.jpg]",
    "background_description": ["Look."],
    "answer_text": "2",
    "options": ["(1) cat", "(2) dog", "(3) bird"],
    "subject": "biology",
    "subject_category": "natural-science",
}


def exam(shared: Path, folder: Path, **fields: Any) -> Path:
    (folder / "image-1.jpg").write_bytes(picture(shared))
    path = folder / "m3exam_en.json"
    path.write_text(json.dumps([{**EXAM, **fields}]))
    return path


def test_m3exam(shared: Path, tmp_path: Path) -> None:
    (item,) = read_benchmark(exam(shared, tmp_path)).items
    assert (item.question, item.hint) == ("Which animal is in the picture?", "Look.")
    assert item.options == {"A": "cat", "B": "dog", "C": "bird"}
    assert (item.answer, item.category) == ("B", "natural-science")
    assert item.image_bytes == picture(shared)
    lettered = exam(shared, tmp_path, options=["A. cat", "B. dog"], answer_text="A", question_text="Which?")
    (item,) = read_benchmark(lettered).items
    assert (item.options, item.answer, item.image_bytes) == ({"A": "cat", "B": "dog"}, "A", None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"options": ["(1) (image)[image-1.jpg]", "(2) x"]},
            "entry 0: 2 images (image-1.jpg, image-1.jpg); the",
        ),
        ({"question_text": "(image)[nowhere.jpg] Q"}, "entry 0: image 'nowhere.jpg' is missing below"),
        ({"question_text": "(image)[../x.jpg] Q"}, "entry 0: image '../x.jpg' leaves"),
        ({"answer_text": "5"}, "entry 0: answer '5' is not among the options A, B, C"),
        ({"options": "none"}, "entry 0: no 'options' (list)"),
        ({"question_text": "(image)[image-1.jpg]"}, "entry 0: the question is empty"),
        ({"question_text": "x\ud800?"}, "entry 0: the text 'x\\ud800?' has half a surrogate pair"),
        ({"options": ["(1) \udc00", "(2) x"]}, "entry 0: the text '\\udc00' has half a surrogate pair"),
        ({"subject": "\ud800"}, "entry 0: the text '\\ud800' has half a surrogate pair"),
    ],
)
def test_defects_of_m3exam(shared: Path, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_benchmark(exam(shared, tmp_path, **fields))
    assert words in str(error.value)


def parallel(folder: Path, *lines: dict[str, Any], name: str = "xgqa.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_real_xgqa(shared: Path) -> None:
    found = read_benchmarks([shared / "data" / "xgqa.jsonl"])
    assert [benchmark.language for benchmark in found] == ["en", "de", "pt", "ru", "id", "bn", "ko", "zh"]
    for benchmark in found:
        assert (benchmark.name, len(benchmark.items)) == ("xgqa", 1490)
        assert benchmark.format is ENGLISH_ANSWERS
        assert benchmark.items[2].answers == ("white",)
        assert benchmark.items[2].image_bytes is None


def test_answers_in_each_language(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(shared))
    line = {"id": "1", "image": "a.jpg", "questions": {"fr": "Où ?", "th": "ที่ไหน"}}
    path = parallel(tmp_path, {**line, "answers": {"fr": ["ici", "là"], "th": ["ที่นี่"]}}, name="maxm.jsonl")
    french, thai = read_benchmarks([path])
    assert french.format is thai.format is LOCAL_ANSWERS
    assert (french.items[0].answer, french.items[0].answers) == ("ici", ("ici", "là"))
    assert french.items[0].image_bytes is thai.items[0].image_bytes is not None


GOOD = {"id": "1", "questions": {"en": "Q?"}, "answer": "yes"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, GOOD], "xgqa.jsonl, line 2: id '1' is already that of"),
        ([{**GOOD, "answer": None}], "line 1: no answer to the question in 'en' ([None]); write 'answer'"),
        (
            [{**GOOD, "answers": {"pt": ["x"]}}],
            "line 1: no answer to the question in 'en' (None); write 'answers'",
        ),
        ([GOOD, {"id": "2", "questions": {"en": "Q?"}, "answers": {"en": ["x"]}}], "in one file (see"),
        ([{**GOOD, "questions": {"en": " "}}], "line 1: the question in 'en' is empty"),
        (
            [{**GOOD, "questions": {"cn": "Q"}}],
            "line 1: 'cn' is not a known language code; did you mean 'zh'",
        ),
        ([{**GOOD, "questions": {"en": "x\ud800?"}}], "line 1: the text 'x\\ud800?' has half a surrogate"),
        ([{**GOOD, "answer": "\ud800"}], "line 1: the text '\\ud800' has half a surrogate pair"),
        ([{**GOOD, "questions": []}], "line 1: 'questions' does not map language codes"),
        (
            [{**GOOD, "image": ["a", "b"]}],
            "line 1: 'image' is ['a', 'b']; the models evaluated here take one",
        ),
        ([{**GOOD, "image": "a.jpg"}], "line 1: image 'a.jpg' is missing below"),
        ([], "xgqa.jsonl: no records"),
    ],
)
def test_defects_of_parallel_questions(tmp_path: Path, lines: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_benchmarks([parallel(tmp_path, *lines)])
    assert words in str(error.value)


def test_defects_of_tables(shared: Path, tmp_path: Path) -> None:
    rows = cells_of(shared / "data" / "benchmarks" / "mmmb_style_en.tsv")

    def refusal(changed: list[dict[str, Any]], name: str = "small_en.parquet") -> str:
        pandas.DataFrame(changed).to_parquet(tmp_path / name)
        with pytest.raises(UserError) as error:
            read_benchmark(tmp_path / name)
        return str(error.value)

    assert "row 11: index 0 is already that of row 0" in refusal([*rows[:11], {**rows[11], "index": 0}])
    assert "row 1: image '99' is not the index of a row" in refusal([rows[0], {**rows[1], "image": "99"}])
    assert "row 0: index 0: several images" in refusal([{**rows[0], "image": "['/9j/', '/9j/']"}])
    assert "no column 'answer' among" in refusal([{k: v for k, v in rows[0].items() if k != "answer"}])
    (tmp_path / "broken_en.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"broken_en.parquet: cannot be read as a data set"):
        read_benchmark(tmp_path / "broken_en.parquet")
    (tmp_path / "empty_en").mkdir()
    with pytest.raises(UserError, match=r"empty_en: neither a folder of save_to_disk nor one with .parquet"):
        read_benchmark(tmp_path / "empty_en")
    (tmp_path / "small_en.csv").write_text("index,question\n")
    with pytest.raises(UserError, match=r"small_en.csv: unknown benchmark format; give NAME_"):
        read_benchmark(tmp_path / "small_en.csv")


def test_two_files_of_one_benchmark_and_language(shared: Path, tmp_path: Path) -> None:
    tsv = shared / "data" / "benchmarks" / "mmmb_style_en.tsv"
    pandas.DataFrame(cells_of(tsv)).to_parquet(tmp_path / "mmmb_style_en.parquet")
    with pytest.raises(UserError, match="same benchmark and language as"):
        read_benchmarks([tsv, tmp_path / "mmmb_style_en.parquet"])


def test_the_command_refuses_with_exit_code_2(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["evaluate", *arguments, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    tsv = (shared / "data" / "benchmarks" / "mmmb_style_en.tsv").read_text(encoding="utf-8").splitlines()
    bad = tmp_path / "bad_en.tsv"
    bad.write_text("\n".join([*tsv[:3], tsv[2]]) + "\n", encoding="utf-8")
    assert "bad_en.tsv:4: index 1 is already that of line 3" in refused("tiny", "--benchmarks", str(bad))
    assert "nowhere_en.tsv does not exist" in refused("tiny", "--benchmarks", "nowhere_en.tsv")
    good = str(shared / "data" / "benchmarks" / "mmmb_style_en.tsv")
    assert "no such folder" in refused("/nowhere/model", "--benchmarks", good)
    assert "'llava15_7b' is a recipe" in refused("llava15_7b", "--benchmarks", good)
    words = refused("tiny", "--benchmarks", good, "evaluate.batch_sise=4")
    assert "unknown key 'evaluate.batch_sise'; did you mean 'batch_size'?" in words
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "tiny"]) == 2
    assert "--benchmarks FILE" in capsys.readouterr().err
