"""Benchmark files: the real ones read right, and every defect named with file, line, value and fix."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from plast_train.errors import UserError
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.registry import read_benchmark

HEADER = ["index", "question", "hint", *"ABCD", "answer", "category", "l2-category", "image", "split"]


def picture(mode: str = "RGB", size: int = 8) -> str:
    """A base64 PNG of noise: incompressible, so that it is longer than an index may be."""
    file = io.BytesIO()
    Image.effect_noise((size, size), 80).convert(mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def row(**cells: str) -> dict[str, str]:
    right = {"index": "0", "question": "What?", "A": "cat", "B": "dog", "answer": "A", "image": PICTURE}
    return {**dict.fromkeys(HEADER, ""), **right, **cells}


PICTURE = picture()


def write(folder: Path, *rows: dict[str, str], name: str = "small_en.tsv") -> Path:
    path = folder / name
    lines = ["\t".join(HEADER), *("\t".join(cells.values()) for cells in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_benchmark(path)
    return str(error.value)


@pytest.mark.parametrize("style", ["mmmb", "mmbench"])
@pytest.mark.parametrize("suffix", ["en", "cn", "pt", "ar", "tr", "ru"])
def test_files_as_published(shared: Path, style: str, suffix: str) -> None:
    benchmark = read_benchmark(shared / "data" / "benchmarks" / f"{style}_style_{suffix}.tsv")
    assert benchmark.name == f"{style}_style"
    assert benchmark.language == {"cn": "zh"}.get(suffix, suffix)
    assert len(benchmark.items) == {"mmmb": 12, "mmbench": 41}[style]
    items = {item.index: item for item in benchmark.items}
    assert list(items[1].options) == ["A", "B", "C"]  # its D is empty
    assert items[1].image_bytes is items[0].image_bytes  # by index
    for item in benchmark.items:
        assert item.image.mode == "RGB"
        assert item.group == (item.index % 10**6 if style == "mmbench" else None)
    if style == "mmbench":
        right = {items[0].options[items[0].answer] for items in [[i] for i in items.values() if i.group == 5]}
        assert len(right) == 1  # the rotations of a question share the right answer's text


def test_cells_are_kept_as_they_are(tmp_path: Path) -> None:
    cells = row(hint="See\nbelow.", A="None", B="NA", C="  ", D="nan", answer="D", category="ocr")
    cells = {key: f'"{cell}"' if "\n" in cell else cell for key, cell in cells.items()}
    (item,) = read_benchmark(write(tmp_path, cells)).items
    assert item.options == {"A": "None", "B": "NA", "D": "nan"}
    assert (item.hint, item.category, item.l2_category) == ("See\nbelow.", "ocr", "")


def test_an_image_longer_than_csv_reads_by_itself(tmp_path: Path) -> None:
    big = picture(size=400)
    assert len(big) > 131_072
    (item,) = read_benchmark(write(tmp_path, row(image=big))).items
    assert item.image.size == (400, 400)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_become_rgb(tmp_path: Path, mode: str) -> None:
    (item,) = read_benchmark(write(tmp_path, row(image=picture(mode)))).items
    assert item.image.mode == "RGB"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MMBench_DEV_EN.tsv", ("MMBench_DEV", "en")),
        ("mmbench_dev_cn.tsv", ("mmbench_dev", "zh")),
        ("small_pt-BR.tsv", ("small", "pt-BR")),
    ],
)
def test_language_is_the_names_end(tmp_path: Path, name: str, expected: tuple[str, str]) -> None:
    benchmark = read_benchmark(write(tmp_path, row(), name=name))
    assert (benchmark.name, benchmark.language) == expected


@pytest.mark.parametrize("name", ["small.tsv", "mmbench_dev.tsv", "small_english.tsv", "_en.tsv"])
def test_a_name_without_language_is_refused(tmp_path: Path, name: str) -> None:
    assert "NAME_LANGUAGE.tsv" in refusal(write(tmp_path, row(), name=name))


truncated = base64.b64encode(base64.b64decode(picture(size=64))[:-2000]).decode()


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"index": "0"}, "small_en.tsv:3: index 0 is already that of line 2; renumber"),
        ({"index": "1.5"}, "small_en.tsv:3: index '1.5' is not a whole number"),
        ({"index": ""}, "small_en.tsv:3: index '' is not a whole number"),
        ({"answer": "C"}, "small_en.tsv:3: index 1: answer 'C' is not among the options A, B;"),
        ({"answer": ""}, "small_en.tsv:3: index 1: answer '' is not among the options A, B;"),
        ({"answer": "a"}, "small_en.tsv:3: index 1: answer 'a' is not among"),
        ({"A": "", "B": " "}, "small_en.tsv:3: index 1: fewer than two of the options A, B, C, D"),
        ({"B": ""}, "small_en.tsv:3: index 1: fewer than two"),
        ({"question": " "}, "small_en.tsv:3: index 1: the question is empty"),
        ({"image": "7"}, "small_en.tsv:3: image '7' is not the index of a row that holds an image"),
        ({"image": "1"}, "small_en.tsv:3: image '1' is not the index of a row that holds an image"),
        ({"image": ""}, "small_en.tsv:3: image '' is not the index"),
        ({"image": "cat.png"}, "small_en.tsv:3: image 'cat.png' is not the index"),
        ({"image": PICTURE[:-1]}, "is not base64"),
        ({"image": "?" + PICTURE}, "small_en.tsv:3: image '?iVBORw0KGgoAAAANSUh'… is not base64"),
        ({"image": "A" * 400}, "small_en.tsv:3: image 'AAAAAAAAAAAAAAAAAAAA'… cannot be decoded"),
        ({"image": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 20).decode()}, "cannot be decoded"),
        ({"image": truncated}, "small_en.tsv:3: image 'iVBORw0KGgoAAAANSUhE'… cannot be decoded"),
        ({"index": "1000000"}, ""),
        ({"index": "1000001"}, "small_en.tsv:2: circular question 0 has 2 options and lacks index 1000000;"),
        ({"index": "2000000"}, "small_en.tsv:2: circular question 0 has 2 options and lacks index 1000000;"),
    ],
)
def test_defects_of_a_row(tmp_path: Path, cells: dict[str, str], words: str) -> None:
    path = write(tmp_path, row(), row(**{"index": "1", **cells}))
    if words:
        assert words in refusal(path)
    else:
        assert len(read_benchmark(path).items) == 2


def test_a_circular_question_with_too_many_rows(tmp_path: Path) -> None:
    path = write(tmp_path, *(row(index=str(k * 10**6)) for k in range(3)))
    assert "has index 2000000 too many" in refusal(path)


def test_lines_are_counted_over_line_breaks_in_cells(tmp_path: Path) -> None:
    path = write(tmp_path, row(question='"two\nlines"'), row(index="1", answer="D"))
    assert f"{path}:4: index 1: answer 'D'" in refusal(path)


def test_an_image_of_absurd_size(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    assert "cannot be decoded" in refusal(write(tmp_path, row(image=image)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "bad_en.tsv:1: no column 'index' among ''; name the columns"),
        (
            "index,question,A,B,answer,image\n",
            "no column 'index' among 'index,question,A,B,answer,image'; name",
        ),
        ("index\tquestion\tA\tB\tanswers\timage\n", "by tabs; did you mean 'answers'?"),
        ("index\tquestion\tA\tB\tA\tanswer\timage\n", "bad_en.tsv:1: column 'A' is there twice"),
        ("index\tquestion\tA\tB\tanswer\timage\n", "bad_en.tsv: no rows below the header"),
        ("index\tquestion\tA\tB\tanswer\timage\n\n0\tQ\n", "bad_en.tsv:3: 2 cells where the header has 6"),
        ('index\tquestion\tA\tB\tanswer\timage\n0\t"Q\tx\ty\n1\t2\n', "bad_en.tsv:2: not a TSV row"),
    ],
)
def test_defects_of_a_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad_en.tsv"
    path.write_text(text, encoding="utf-8")
    assert words in refusal(path)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert f"{tmp_path}/none_en.tsv: cannot be read (No such file" in refusal(tmp_path / "none_en.tsv")
    path = write(tmp_path, row(), row(index="1", question="onde está?"))
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    assert f"{path}:3: not UTF-8" in refusal(path)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, row())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert isinstance(read_benchmark(path), Benchmark)
