"""Published results of made-up replies: against an independent script, and by hand where it matters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.recompute_scores import RULES, recompute

from launcher.table import benchmark_table, model_table
from plast_train.evaluation.answering import record_of
from plast_train.evaluation.predictions import append_part, open_parts, publish_results
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.scoring.comparisons import compare
from plast_train.scoring.questions import questions_of
from plast_train.scoring.scores import scores
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.registry import read_benchmark, read_benchmarks

FILES = [f"{style}_style_{language}.tsv" for style in ("mmmb", "mmbench") for language in ("en", "pt", "cn")]


def made_up(benchmark: Benchmark, model: str, skill: float, seed: int) -> list[dict[str, Any]]:
    """Records of a model that is right about `skill` of the time, and sometimes says nothing or both."""
    rng = random.Random(f"{model} {benchmark.name} {benchmark.language} {seed}")
    records = []
    for question in questions_of([benchmark], LLAVA_CHAT):
        item = question.item
        if not item.options:
            said = item.answer if rng.random() < skill else "dog"
            reply = rng.choice([said, f"{said.upper()}.", "", "?", item.question])
            records.append({"model": model, **record_of(question, reply, None)})
            continue
        letter = item.answer if rng.random() < skill else rng.choice(list(item.options))
        reply = rng.choice([letter, letter, f"{letter}. {item.options[letter]}", "", "A or B", item.question])
        logits = {x: rng.random() + (x == letter) * rng.random() for x in item.options}
        records.append({"model": model, **record_of(question, reply, logits)})
    return records


@pytest.fixture(scope="module")
def evaluation(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    benchmarks = [read_benchmark(path) for path in tables(shared, folder)]
    lines = [json.loads(line) for line in (shared / "data" / "xgqa.jsonl").open(encoding="utf-8")][:40]
    for line in lines:
        line["questions"] = {language: line["questions"][language] for language in ("en", "pt", "zh")}
    (folder / "xgqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmarks += read_benchmarks([folder / "xgqa.jsonl"])
    for model, skill in (("base", 0.4), ("plast", 0.8)):
        open_parts(folder / "parts" / model, {}, {})
        for number, benchmark in enumerate(benchmarks):
            append_part(folder / "parts" / model, number % 2, made_up(benchmark, model, skill, 0))
    publish_results(folder, benchmarks, ["base", "plast"], "vlmevalkit2026")
    return folder


def tables(shared: Path, folder: Path) -> list[Path]:
    """The files, two of them with yes/no pairs added: what row 3 lacked, and two questions about the image of
    row 4, with their options in either order."""
    (folder / "tables").mkdir(exist_ok=True)
    for name in FILES:
        text = (shared / "data" / "benchmarks" / name).read_text(encoding="utf-8")
        head, *rows = (line.split("\t") for line in text.splitlines())
        if name in ("mmmb_style_en.tsv", "mmmb_style_pt.tsv"):
            yes, no = (rows[3][head.index(letter)] for letter in "AB")
            for question, a, b, answer, image in (
                ("Is it raining?", yes, no, "B", "2"),
                ("Is it a suit?", yes, no, "A", "4"),
                ("Is it a dog?", no, yes, "A", "4"),
            ):
                cells = {"index": str(len(rows)), "question": question, "A": a, "B": b, "answer": answer}
                cells |= {"image": image, "category": "object", "l2-category": "perception"}
                rows.append([cells.get(column, "") for column in head])
        lines = ["\t".join(row) for row in (head, *rows)]
        (folder / "tables" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / "tables" / name for name in FILES]


def test_an_independent_script_finds_the_same(evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    found = recompute(evaluation, sorted((evaluation / "tables").iterdir()))
    seen = 0
    for benchmark, languages in results.items():
        for language, cell in languages.items():
            for model in ("base", "plast"):
                expected = found[benchmark][language][model]
                assert expected.pop("shares") == {key: cell[model][key] for key in ("empty", "no_match")}
                own = {
                    "rows": cell[model],
                    **{way: cell[model][way] for way in ("circular", "pairs") if way in cell[model]},
                }
                own |= {f"category {name}": one for name, one in cell[model]["categories"].items()}
                assert own.keys() == expected.keys()
                for way, one in own.items():
                    logits = one["option_logits"]
                    assert (
                        one["generated"] | ({} if logits is None else {"option_logits": logits})
                        == expected[way]
                    )
                    seen += 1
            rule = "xgqa" if benchmark == "xgqa" else "vlmevalkit2026"
            assert cell["comparison"]["rule"] == rule
            for way, p in found[benchmark][language]["p"].items():
                own = cell["comparison"] if way == "rows" else cell["comparison"][way]
                before, after = (found[benchmark][language][model][way] for model in ("base", "plast"))
                for name, score in (("generated", rule), ("option_logits", "option_logits")):
                    if score not in p:
                        assert own[name] is None
                        continue
                    assert own[name]["p"] == pytest.approx(p[score])
                    assert own[name]["change"] == pytest.approx(after[score] - before[score])
    assert seen > 60 and set(RULES) == set(results["mmmb_style"]["en"]["base"]["generated"])
    assert results["mmmb_style"]["en"]["base"]["pairs"]["n"] == 13


def test_pairs_have_intervals_and_p_and_a_language_without_any_counts_rows(evaluation: Path) -> None:
    compared = json.loads((evaluation / "comparisons.json").read_text())["mmmb_style"]
    for label, own in compared.items():
        for score in ("generated", "option_logits"):
            pairs = own["pairs"][score]
            assert pairs["low"] <= pairs["change"] <= pairs["high"] and 0 < pairs["p"] <= 1
            assert ("p_holm" in pairs) == (label != "mean of the others")
    for key in ("change", "low", "high", "p"):
        assert compared["zh"]["pairs"]["generated"][key] == compared["zh"]["generated"][key]


def test_a_pair_counts_as_one_that_is_right_if_both_are() -> None:
    base = [record(i, i % 2 == 0, True, pair=i // 2) for i in range(8)]
    after = [record(i, i < 6, True, pair=i // 2) for i in range(8)]
    found = compare({"pt": base}, {"pt": after})["pt"]["pairs"]["generated"]
    assert (found["change"], found["only_base"], found["only_trained"], found["p"]) == (0.75, 0, 3, 0.25)


def test_comparisons_file(evaluation: Path) -> None:
    compared = json.loads((evaluation / "comparisons.json").read_text())
    results = json.loads((evaluation / "results.json").read_text())
    for name, languages in compared.items():
        assert list(languages) == ["en", "pt", "zh", "mean of the others"]
        for language in ("en", "pt", "zh"):
            assert results[name][language]["comparison"] == languages[language]
            assert languages[language]["generated"]["p_holm"] >= languages[language]["generated"]["p"]
        mean = languages["mean of the others"]["generated"]
        assert mean["change"] == pytest.approx(
            (languages["pt"]["generated"]["change"] + languages["zh"]["generated"]["change"]) / 2
        )
        assert mean["low"] <= mean["change"] <= mean["high"]
        assert ("circular" in languages["en"]) == (name == "mmbench_style")
        assert ("pairs" in languages["en"]) == (name == "mmmb_style")


def test_the_table_shows_interval_and_p_in_100_columns(evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    compared = json.loads((evaluation / "comparisons.json").read_text())
    shown = benchmark_table("mmmb_style", results["mmmb_style"], "vlmevalkit2026", compared["mmmb_style"])
    assert max(map(len, shown.splitlines())) <= 100
    rows, pairs = shown.split("\n\n")
    assert "in % of rows" in rows and "in % of questions, a yes/no pair as one" in pairs
    portuguese = compared["mmmb_style"]["pt"]
    for table, own in ((rows, portuguese["generated"]), (pairs, portuguese["pairs"]["generated"])):
        line = next(line for line in table.splitlines() if line.startswith("pt")).split()
        assert line[3:6] == [f"{100 * own[key]:+.1f}" for key in ("change", "low", "high")]
        assert float(line[6]) == pytest.approx(own["p_holm"], abs=5e-4)


def test_the_table_of_one_model_shows_rows_and_pairs(evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    lines = model_table("mmmb_style", results["mmmb_style"], "plast", RULES[0]).splitlines()
    assert lines[1].split()[-3:] == ["pairs", "and", "logits"]
    own = results["mmmb_style"]["pt"]["plast"]
    line = next(line for line in lines if line.startswith("pt")).split()
    assert line[2] == f"{100 * own['generated'][RULES[0]]:.1f}"
    assert line[-2:] == [
        f"{100 * x:.1f}" for x in (own["pairs"]["generated"][RULES[0]], own["pairs"]["option_logits"])
    ]
    circular = model_table("mmbench_style", results["mmbench_style"], "plast", RULES[0])
    assert "circular" in circular and "pairs" not in circular


def record(index: int, right: bool, logits_right: bool, **fields: Any) -> dict[str, Any]:
    return {
        **{"benchmark": "b", "language": "pt", "model": "m", "index": index, "group": None, "pair": None},
        **{"category": "", "question": "O que é?", "answer": "A", "prediction": "A" if right else "B"},
        "matched": dict.fromkeys(RULES, "A" if right else "B"),
        "option_logits": {"A": float(logits_right), "B": 0.5},
        **fields,
    }


def test_a_gain_in_generated_answers_alone_is_formatting() -> None:
    base = [record(i, i < 10, i < 30) for i in range(60)]
    formatted = {"pt": [record(i, i < 30, i < 30) for i in range(60)]}
    better = {"pt": [record(i, i < 30, i < 50) for i in range(60)]}
    found = compare({"pt": base}, formatted)["pt"]
    assert found["generated"]["low"] > 0 and found["option_logits"]["change"] == 0
    assert found["formatting"] is True
    assert compare({"pt": base}, better)["pt"]["formatting"] is False
    assert compare({"pt": base}, {"pt": base})["pt"]["formatting"] is False


def test_the_mean_pairs_items_by_index_across_languages() -> None:
    """Item 0 gains in one language what it loses in the other: no change of that item."""
    base = {
        "pt": [record(0, True, True), record(1, False, True)],
        "ar": [record(0, False, True), record(1, False, True)],
    }
    after = {
        "pt": [record(0, False, True), record(1, True, True)],
        "ar": [record(0, True, True), record(1, True, True)],
    }
    mean = compare(base, after)["mean of the others"]["generated"]
    assert (mean["change"], mean["only_base"], mean["only_trained"]) == (0.5, 0, 1)
    assert "p_holm" not in mean


def test_a_model_that_returns_nothing_is_wrong_and_shown() -> None:
    silent = [record(i, False, False, prediction="", matched=dict.fromkeys(RULES)) for i in range(4)]
    found = scores(silent)
    assert found["empty"] == found["no_match"]["parrot2024"] == 1.0
    assert found["generated"]["parrot2024"] == 0.0
    assert found["reply_languages"] == {"und": 1.0}


def test_translations_are_counted_by_the_english_file() -> None:
    own = [record(0, False, True, prediction="What is it?"), record(1, True, True)]
    assert scores(own, {0: "What is this?", 1: "What is this?"})["translations"] == 0.5
    assert scores(own)["translations"] == 0.0


def test_open_questions_have_no_option_logits(tmp_path: Path) -> None:
    path = tmp_path / "maxm.jsonl"
    line = {"id": "1", "questions": {"fr": "De quelle couleur ?"}, "answers": {"fr": ["rouge", "le rouge"]}}
    path.write_text(json.dumps(line) + "\n")
    benchmarks = read_benchmarks([path])
    (question,) = questions_of(benchmarks, LLAVA_CHAT)
    for model, reply in (("base", ""), ("plast", "le rouge")):
        open_parts(tmp_path / "parts" / model, {}, {})
        made = {"model": model, **record_of(question, reply, None)}
        append_part(tmp_path / "parts" / model, 0, [made])
    cells = publish_results(tmp_path, benchmarks, ["base", "plast"])["maxm"]
    assert cells["fr"]["base"]["generated"] == {"maxm": 0.0, "xgqa": 0.0}
    assert cells["fr"]["plast"]["generated"]["maxm"] == 1.0
    assert (cells["fr"]["base"]["no_match"]["maxm"], cells["fr"]["plast"]["empty"]) == (1.0, 0.0)
    assert cells["fr"]["comparison"]["option_logits"] is None
    compared = json.loads((tmp_path / "comparisons.json").read_text())["maxm"]
    line = next(
        x for x in benchmark_table("maxm", cells, "parrot2024", compared).splitlines() if x.startswith("fr")
    )
    assert line.split() == ["fr", "0.0", "100.0", "+100.0", "1.000", "–", "–", "–"]
