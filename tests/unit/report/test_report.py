import csv
import io
import json
import shutil

import pytest
from PIL import Image
from support.html_reader import Page

from plast_train.config import Config, dump_config
from plast_train.figures.plots import plot_layers
from plast_train.report.accuracy import has_only_answers
from plast_train.report.examples import thumbnail
from plast_train.report.report import write_report
from plast_train.report.results import Result
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import MEAN

RULE, OTHER = "parrot2024", "vlmevalkit2026"
NASTY = "<script>alert('&')</script>"
SAFE = "".join(c if c.isalnum() else "_" for c in NASTY)
COLUMNS = ["base", "trained", "change", "95 % from", "to", "p"]


ARABIC = "ما لون القطة؟"


def scores(accuracy: float, no_match: float = 0.0) -> dict:
    """Under the other rule a tenth of the replies are wrong that match nothing under it."""
    return {
        "n": 40,
        "generated": {RULE: accuracy, OTHER: accuracy - no_match / 10},
        "option_logits": accuracy / 2,
        "no_match": {RULE: no_match, OTHER: no_match},
        "empty": 0.0,
        "translations": no_match,
        "reply_languages": {"und": 0.5, "pt": 0.4, "en": 0.1},
        "circular": {
            "n": 10,
            "generated": {RULE: accuracy / 4, OTHER: accuracy / 4},
            "option_logits": accuracy / 8,
        },
        "categories": {},
    }


def change(value: float, low: float | None, high: float | None, p: float) -> dict:
    return {"change": value, "low": low, "high": high, "p": p, "only_base": 1, "only_trained": 2}


def comparison(sign: float) -> dict:
    """Generated answers gain or lose, with certainty; option logits do not."""
    own = {
        "generated": change(sign * 0.2, 0.1 * sign - 0.05, 0.1 * sign + 0.05, 0.0001) | {"p_holm": 0.0002},
        "option_logits": change(sign * 0.1, -0.1, 0.3, 0.25) | {"p_holm": 0.5},
        "formatting": sign > 0,
    }
    return {"rule": RULE, **own, "circular": own}


def answered(model: str, language: str, index: int, matched: str | None, question: str) -> dict:
    return {
        "model": model,
        "benchmark": "colours",
        "language": language,
        "index": index,
        "question": question,
        "answer": "A",
        "options": {"A": "<b>black</b>", "B": "white"},
        "prediction": matched or "",
        "matched": {RULE: matched},
    }


def png(colour: str, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, width), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The report of a finished run of two languages and three layers."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    curve = {"en": [1.0, 1.0, 1.0], "pt": [0.5, 0.7, 0.9]}
    config = Config.model_validate(
        {"model": {"path": NASTY}, "data": {"questions": [NASTY], "languages": ["en", "pt"]}}
    )
    summary = {"languages": ["en", "pt"], "layers": 3, "records": 9, "msd": [4.0, 1.0, 0.0], "overlap": curve}
    selection = {
        "strategy": "msd",
        "candidates": [0, 1],
        "threshold": 2.5,
        "selected_layers": [0],
        "modules": "all",
        "plateau": 0.8,
        "curve": curve["pt"],
        "trainable_parameters": 1000,
        "total_parameters": 20000,
        "trainable_fraction": 0.05,
        "options": {"position": "last", "overlap": "english", "threshold": "candidates", "k": None},
    }
    step = {"loss": 2.0, "seconds": 2.5, "samples_per_second": 3.0, "peak_memory_bytes": 5e9, "mfu": None}
    metrics = [step | {"step": 1}, step | {"step": 2, "loss": 1.0, "validation_loss": {"en": 0.5, "pt": 1.5}}]
    results = {
        "colours": {
            "ar": {"n": 40, "base": scores(0.5), "plast": scores(0.5)},
            "en": {"n": 40, "base": scores(0.5), "plast": scores(0.5)},
        },
        NASTY: {
            "pt": {"n": 40, "base": scores(0.4), "plast": scores(0.6, no_match=0.2)},
            "en": {"n": 40, "base": scores(0.9), "plast": scores(0.8)},
        },
        "pairs & more": {x: {"n": 40, "base": scores(0.4), "plast": scores(0.6)} for x in ("pt", "en")},
    }
    for cell in results["pairs & more"].values():
        for own in (cell["base"], cell["plast"]):
            own["pairs"] = own.pop("circular")
    for language, names in (("en", (NASTY, "shape", "")), ("ar", (NASTY, "shape"))):
        cell = results["colours"][language]
        cell["base"]["categories"] = {name: scores(0.8) for name in names}
        cell["plast"]["categories"] = {name: scores(0.8 if name else 0.4) for name in names}
    results["colours"]["ar"]["plast"]["categories"][NASTY] = scores(1.0)
    pairs = {label: comparison(1) | {"pairs": comparison(-1)} for label in ("en", "pt", MEAN)}
    compared = {
        "pairs & more": pairs,
        NASTY: {"en": comparison(-1), "pt": comparison(1), MEAN: comparison(1)},
    }
    answers = {
        "en": [(0, "A", "B", NASTY), (2, "A", "A", "Which one stays right?")],
        "ar": [(0, "B", "A", ARABIC), (1, "A", None, f"{ARABIC} {NASTY}")],
    }
    for language, rows in answers.items():
        records = [answered("base", language, i, before, q) for i, before, _, q in rows]
        records += [answered("plast", language, i, after, q) for i, _, after, q in rows]
        path = run.evaluation / "predictions" / f"colours.{language}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    run.config.write_text(dump_config(config))
    trees = {
        run.summary: summary,
        run.selection: selection,
        run.results: results,
        run.evaluation / "comparisons.json": compared,
        run.environment: {"packages": {"torch": "2.6.0", "x": None}, "host": NASTY, "gpus": []},
        run.base: {"path": NASTY, "fingerprint": "f" * 64, "files": {}},
    }
    for path, tree in trees.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree))
    run.metrics.write_text("".join(json.dumps(m) + "\n" for m in metrics))
    run.add_stage_time("collect", 1.5, 2)
    run.add_stage_time("train", 99.0, 2)
    run.add_stage_time("train", 30.0, 2)
    plot_layers(summary, selection, run.report)
    write_report(config, run)
    return run


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return read(run)


def read(run: RunFolder) -> Page:
    return Page((run.report / "index.html").read_text())


def captioned(page: Page, first: str) -> list[list[str]]:
    """The rows of the only table with this heading as its first column's, headings left out."""
    (found,) = [table for table in page.tables if any(row[0] == first for row in table[:2])]
    return found


def test_page_loads_nothing_and_escapes_every_text(run, page):
    html = (run.report / "index.html").read_text()
    for address in page.addresses:
        inside = address.startswith(("data:image/svg+xml;base64,", "#"))
        assert inside or (run.report / address).is_file(), address
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "b"}
    assert not [key for _, own in page.elements for key in own if key.startswith("on")]
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html
    assert page.text.count(NASTY) >= 7
    assert "<b>black</b>" in page.text


def test_contents_lead_to_sections_and_ids_are_unique(page):
    ids = [own["id"] for _, own in page.elements if "id" in own]
    assert len(set(ids)) == len(ids)
    assert [address for address in page.addresses if address.startswith("#")] == [f"#{x}" for x in ids]


def test_accuracies_with_intervals_and_p_stand_in_the_tables(run, page):
    rows = read_csv(run, f"accuracy-{SAFE}-rows")
    assert rows[0][:8] == ["language", "n", *(f"generated answers: {x}" for x in COLUMNS)]
    assert rows[0][8:] == [f"option logits: {x}" for x in COLUMNS]
    assert rows[1] == [
        "en",
        "40",
        "90.0",
        "80.0",
        "-10.0",
        "-15.0",
        "-5.0",
        "<.001",
        "45.0",
        "40.0",
        "-5.0",
        "-10.0",
        "+30.0",
        ".500",
    ]
    assert rows[2] == [
        "pt",
        "40",
        "40.0",
        "60.0",
        "+20.0",
        "+5.0",
        "+15.0",
        "<.001",
        "20.0",
        "30.0",
        "+10.0",
        "-10.0",
        "+30.0",
        ".500",
    ]
    assert rows[3][:5] == [MEAN, "", "40.0", "60.0", "+20.0"]
    circular = read_csv(run, f"accuracy-{SAFE}")
    assert circular[2][:5] == ["pt", "10", "10.0", "15.0", "+5.0"]
    assert rows[1:] in [table[2:] for table in page.tables]


def test_pairs_stand_beside_the_rows(run, page):
    rows, pairs = (read_csv(run, f"accuracy-pairs___more{way}") for way in ("", "-pairs"))
    assert rows[2][:7] == ["pt", "40", "40.0", "60.0", "+20.0", "+5.0", "+15.0"]
    assert pairs[2][:7] == ["pt", "10", "10.0", "15.0", "+5.0", "-15.0", "-5.0"]
    assert pairs[1:] in [table[2:] for table in page.tables]
    assert "pairs & more, accuracy in % of questions, a yes/no pair as one" in page.text


def test_accuracy_by_category_in_the_page_and_in_every_language_in_the_csv(run, page):
    (table,) = [table for table in page.tables if table[1][:2] == ["category", "n"]]  # of one benchmark
    assert table[0] == ["", "en", MEAN]
    assert table[2:] == [
        ["(none)", "10", "20.0", "10.0", "-10.0", "–", "–", "–"],
        [NASTY, "10", "20.0", "20.0", "+0.0", "20.0", "25.0", "+5.0"],
        ["shape", "10", "20.0", "20.0", "+0.0", "20.0", "20.0", "+0.0"],
    ]
    assert "colours, accuracy by category in % of questions right in every order" in page.text
    rows = read_csv(run, "categories-colours")
    assert rows[0][5:8] == ["ar: base", "ar: trained", "ar: change"]
    assert rows[2] == [NASTY, "10", *["20.0", "20.0", "+0.0"], *["20.0", "25.0", "+5.0"] * 2]
    latex = (run.report / "categories-colours.tex").read_text()
    assert r"\multicolumn{3}{c}{en} & \multicolumn{3}{c}{mean of the others}" in latex
    assert not (run.report / f"categories-{SAFE}.csv").exists()  # has no categories


def test_both_matching_rules_where_they_differ(run, page):
    rows = read_csv(run, f"matching-{SAFE}")
    assert rows[0][1:5] == [f"{RULE}: base", f"{RULE}: trained", f"{RULE}: change", f"{OTHER}: base"]
    assert rows[2] == ["pt", "40.0", "60.0", "+20.0", "40.0", "58.0", "+18.0"]
    assert rows[1:] in [table[2:] for table in page.tables]
    agreeing = f"Both matching rules ({RULE} and {OTHER}) give the same accuracies"
    assert page.text.count(agreeing) == 2  # of the other two benchmarks
    assert (run.report / "matching-colours.csv").exists()


def test_where_nothing_was_compared_there_are_no_intervals(run):
    assert read_csv(run, "accuracy-colours-rows")[1] == [
        "en",
        "40",
        "50.0",
        "50.0",
        "+0.0",
        "",
        "",
        "",
        "25.0",
        "25.0",
        "+0.0",
        "",
        "",
        "",
    ]


def test_tables_lie_beside_the_page_as_latex(run):
    latex = (run.report / f"accuracy-{SAFE}.tex").read_text()
    assert r"\multicolumn{6}{c}{generated answers}" in latex
    assert r"\cmidrule(lr){3-8} \cmidrule(lr){9-14}" in latex
    assert r"95 \% from" in latex
    layers = (run.report / "layers.tex").read_text()
    assert r"0 & 0.500 & 0.500 & 4 & yes & yes \\" in layers


def test_shares_of_replies_that_are_no_answers(run):
    assert read_csv(run, f"replies-{SAFE}")[2] == [
        "pt",
        *["0.0", "20.0", "0.0", "0.0", "0.0", "20.0"],
        *["en 10.0"] * 2,
    ]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"no_match": {RULE: 1e-4, OTHER: 0.0}},
        {"empty": 1e-4},
        {"translations": 1e-4},
        {"reply_languages": {"und": 0.99, "ar": 0.01}},
    ],
)
def test_every_reply_is_an_answer_only_where_none_is_not(told):
    own = scores(0.5) | {"reply_languages": {"und": 0.6, "pt": 0.4}}
    cells = {"pt": {"n": 10_000, "base": own, "plast": own | told}}
    assert has_only_answers(Result("quiz", cells, RULE, {})) == (not told)


def test_a_sentence_instead_of_the_table_where_every_reply_is_an_answer(run, tmp_path):
    other = copy_of(run, tmp_path)
    own = scores(0.5) | {"reply_languages": {"und": 0.6, "pt": 0.4}}
    other.results.write_text(json.dumps({"quiz": {"pt": {"n": 40, "base": own, "plast": own}}}))
    write_report(plain_config(), other)
    page = read(other)
    assert "Every reply is an answer" in page.text and "quiz, replies in %" not in page.text
    assert read_csv(other, "replies-quiz")[1] == ["pt", *["0.0"] * 6, "", ""]


def test_failures_to_look_for_are_said_first(page):
    text = page.text[: page.text.index("Contents") if "Contents" in page.text else None]
    assert "English changed by -2.5 points" in text  # circular accuracy decides where there is one
    assert "More replies name no option in pt" in text
    assert "repeat or translate the question instead of answering in pt" in text
    assert f"Formatting: generated answers gain in pt, {MEAN}, option logits do not" in text
    assert "colours: The other languages did not gain" in text
    assert f"{NASTY}: The other languages did not gain" not in text


def test_a_restarted_run_says_so(run, tmp_path):
    other = copy_of(run, tmp_path)
    ends = [{"event": "ended", "kind": kind} for kind in ("hang", "done")]
    (other.path / "attempts.jsonl").write_text("".join(json.dumps(e) + "\n" for e in ends) + '{"torn')
    write_report(plain_config(), other)
    assert "1 launches of this run did not end by themselves or failed (hang)" in read(other).text


def test_examples_changed_in_both_directions(page):
    assert "colours. Right before training, wrong after: 2 of 4 rows" in page.text
    assert "colours. Wrong before training, right after: 1 of 4 rows" in page.text
    assert "Which one stays right?" not in page.text
    assert "reply after: (nothing)" in page.text


def test_texts_carry_their_language_and_direction(page):
    assert ("ar", "auto", ARABIC) in page.said
    assert ("ar", "auto", f"{ARABIC} {NASTY}") in page.said
    assert {direction for _, direction, _ in page.said} == {"auto"}


def test_thumbnails_are_small():
    assert thumbnail(png("red", 64))[1] == "image/png"
    content, kind = thumbnail(png("red", 2000))
    assert kind == "image/jpeg"
    assert max(Image.open(io.BytesIO(content)).size) <= 168


def test_layers_training_costs_and_versions_are_shown(run, page):
    layers = captioned(page, "layer")
    assert layers[1] == ["0", "0.500", "0.500", "4", "yes", "yes"]
    assert layers[2][-2:] == ["yes", ""]
    assert read_csv(run, "held-back-loss") == [["language", "step 2"], ["en", "0.5000"], ["pt", "1.5000"]]
    costs = read_csv(run, "costs")
    assert costs[1:] == [["collect", "1.5", "2", "0.001"], ["train", "30.0", "2", "0.017"]]
    facts = dict(row for table in page.tables for row in table if len(row) == 2)
    assert facts["loss, first and last step"] == "2.0000, 1.0000 nats a token"
    assert facts["time in optimizer steps (s)"] == "5.0"
    assert facts["MFU, median"] == "unknown"
    assert facts["versions"] == "torch 2.6.0"
    assert "k" not in facts["our reading of the method"].split(", ")[-1].split()


def test_figures_lie_beside_the_page(run):
    names = {path.name for path in run.report.iterdir()}
    assert {"overlap.svg", "msd.png", "training.svg", "accuracy-colours.svg"} <= names
    assert all("/" not in name and "<" not in name for name in names)


def test_a_run_without_benchmarks_says_so(run, tmp_path):
    other = copy_of(run, tmp_path)
    other.results.write_text("{}")
    write_report(plain_config(), other)
    assert "No benchmark was evaluated" in read(other).text


def copy_of(run, tmp_path) -> RunFolder:
    shutil.copytree(run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def plain_config() -> Config:
    return Config.model_validate(
        {"model": {"path": "x"}, "data": {"questions": ["q"], "languages": ["en", "pt"]}}
    )


def read_csv(run, name: str) -> list[list[str]]:
    with (run.report / f"{name}.csv").open() as file:
        return list(csv.reader(file))
