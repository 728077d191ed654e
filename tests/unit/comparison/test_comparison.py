"""Comparing runs: the numbers, their intervals, the tables and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from support.html_reader import Page

from launcher.cli import main
from plast_train.comparison.outcomes import read_answers
from plast_train.comparison.publish import compare_runs, publish_ablation, write_comparison
from plast_train.comparison.variants import STAGES, Entry, Variant, first_entries, run_name
from plast_train.config import Config, dump_config, load_config
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, sha256_of
from plast_train.scoring.comparisons import compare_all
from plast_train.stages import needed_by, record_hash, settings_of

RULE = "parrot2024"


def make_run(
    folder: Path,
    trained: dict[str, str],
    name: str = "quiz",
    circular: bool = False,
    base: str = "1100",
    logits_of_base: bool = False,
    seed: int = 0,
) -> Path:
    """A finished run as far as it is compared. The base is right in the `1`s of `base` in every language, the
    trained model in those of `trained[language]`; with `logits_of_base` its option logits stay the base's."""
    config = load_config("tiny", ["evaluate.benchmarks=[]", f"seed={seed}"])
    (folder / "evaluation" / "predictions").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    selection = {"selected_layers": [0], "modules": "all", "trainable_parameters": 10}
    (folder / "selection.json").write_text(json.dumps(selection | {"trainable_fraction": 0.25}))
    steps = [{"step": n, "seconds": 2.0, "peak_memory_bytes": n * 1e9} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    inputs = {}
    for language, marks in trained.items():
        lines = []
        for model, right in (("base", base[: len(marks)]), ("plast", marks)):
            for unit, mark in enumerate(right):
                by_logits = base[unit] if logits_of_base else mark
                logits = {"A": 1.0, "B": 0.0} if by_logits == "1" else {"A": 0.0, "B": 1.0}
                record = {"benchmark": name, "language": language, "model": model, "answer": "A"}
                record |= {"index": unit + (10**6 if circular and unit > 1 else 0), "option_logits": logits}
                record |= {"group": unit % 2 if circular else None}
                record |= {"matched": {RULE: "A" if mark == "1" else None}}
                lines.append(json.dumps(record) + "\n")
        path = folder / "evaluation" / "predictions" / f"{name}.{language}.jsonl"
        path.write_text("".join(lines))
        inputs[f"{name}_{language}.tsv"] = f"hash of {name} {language}"
    finish_stages(RunFolder(folder), config, inputs)
    return folder


def finish_stages(run: RunFolder, config: Config, benchmarks: dict[str, str]) -> None:
    """Declares everything up to the evaluation done, each stage of the ones before it."""
    for stage in STAGES:
        inputs = benchmarks if stage == "evaluate" else {}
        inputs = inputs | {needed: str(record_hash(run, needed)) for needed in needed_by(stage)}
        run.publish_record(stage, settings_of(stage, config), inputs, [])


@pytest.fixture
def better(tmp_path: Path) -> Path:
    return make_run(tmp_path / "better", {"en": "1100", "pt": "1110", "zh": "1111"})


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    return make_run(tmp_path / "worse", {"en": "0100", "pt": "1100", "zh": "1000"})


def test_answers_are_read_by_language_and_unit(better: Path, tmp_path: Path) -> None:
    answers = read_answers(better / "evaluation" / "predictions", RULE)["quiz"]
    assert answers["generated"].languages == ("en", "pt", "zh") and answers["generated"].others == [1, 2]
    assert answers["generated"].trained.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert answers["option_logits"].base.tolist() == [[1, 1, 0, 0]] * 3
    circular = make_run(tmp_path / "circular", {"en": "1110"}, circular=True)
    answers = read_answers(circular / "evaluation" / "predictions", RULE)["quiz"]
    assert answers["generated"].trained.tolist() == [[1, 0]]  # rows 0 and 2, rows 1 and 3


def test_the_table_shows_what_changed(better: Path, worse: Path, tmp_path: Path) -> None:
    text = compare_runs([better, worse], tmp_path / "out")
    (line,) = [x for x in text.splitlines() if x.startswith("better") and "(+" in x]
    assert "50.0 (+0.0)" in line and "87.5 (+37.5)" in line
    per_language = [x.split() for x in text.splitlines() if x.startswith(("base", "better"))][-2:]
    assert per_language == [["base", *["50.0"] * 4], ["better", "50.0", "75.0", "100.0", "87.5"]]
    line, against = [x for x in text.splitlines() if x.startswith("worse") and "…" in x]
    assert "25.0 (-25.0)" in line and "37.5 (-12.5)" in line and "-50.0" in against
    assert "quiz: difference from better in points" in text
    rows = csv_rows(tmp_path / "out")
    assert len(rows) == 2 * 2 * 4  # runs, ways of scoring, languages and their mean
    mean = next(
        r for r in rows if (r["name"], r["score"]) == ("worse", "generated") and "mean" in r["language"]
    )
    assert float(mean["change"]) == -12.5 and float(mean["change_from_better"]) == -50.0
    assert float(mean["training_seconds"]) == 4.0 and float(mean["peak_memory_gb"]) == 2.0
    assert float(mean["trained_percent"]) == 25.0
    tex = (tmp_path / "out" / "comparison-quiz.tex").read_text()
    assert tex.count(r"\\") == 3 and "$-12.5$ [" in tex and r"\toprule" in tex
    assert (tmp_path / "out" / "comparison.svg").read_text().startswith("<?xml")
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


def test_numbers_that_the_run_has_published_are_shown(better: Path) -> None:
    shown = {"generated": {"low": 0.111, "high": 0.222, "p": 0.0123}, "option_logits": None}
    english = {"generated": {"low": None, "high": None, "p": 0.02, "p_holm": 0.0456}}
    tree = {"quiz": {"mean of the others": shown, "en": english}}
    (better / "evaluation" / "comparisons.json").write_text(json.dumps(tree))
    text = compare_runs([better], None)
    (line,) = [line.split() for line in text.splitlines() if line.startswith("better") and "(" in line]
    assert line[3] == ".046" and line[6:10] == ["+11.1", "…", "+22.2", ".012"]


def test_p_is_that_of_the_evaluation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = {"en": 40, "pt": 40, "zh": 30}  # Chinese lacks the last units
    marks = {x: "".join(map(str, (rng.random(n) < 0.8).astype(int))) for x, n in lengths.items()}
    base = "".join(map(str, (rng.random(40) < 0.5).astype(int)))
    run = make_run(tmp_path / "run", marks, base=base)
    compare_runs([run], tmp_path / "out")
    records = [
        json.loads(line)
        for path in sorted((run / "evaluation" / "predictions").iterdir())
        for line in path.read_text().splitlines()
    ]
    expected = compare_all(records, "base", "plast", RULE)["quiz"]
    rows = csv_rows(tmp_path / "out")
    assert len(rows) == 2 * 4 and {row["language"] for row in rows} == set(expected)
    for row in rows:
        one = expected[row["language"]][row["score"]]
        assert float(row["p"]) == pytest.approx(one["p"], abs=1e-4)
        if "p_holm" in one:
            assert float(row["p_holm"]) == pytest.approx(one["p_holm"], abs=1e-4)
        else:
            assert row["p_holm"] == ""


def test_p_by_hand_and_a_gain_in_form_alone(tmp_path: Path) -> None:
    gains = {"en": "0" * 9, "pt": "1" * 8 + "0", "zh": "1" * 9}
    first = make_run(tmp_path / "first", dict.fromkeys(gains, "0" * 9), base="0" * 9)
    form = make_run(tmp_path / "a_name_of_20_letters", gains, base="0" * 9, logits_of_base=True)
    _, text = compare_runs([first, form], tmp_path / "out").split("\n\n", 1)  # the paths are long
    assert max(map(len, text.splitlines())) <= 110
    lines = [line for line in text.splitlines() if line.startswith("a_name") and "…" in line]
    changed, against = map(str.split, lines)
    # English does not change, all nine units gain in the mean of the others: p = 2 / 2^9; logits stay.
    assert changed[3] == "1.000" and changed[4:6] == ["94.4", "(+94.4)"] and changed[9] == ".004"
    assert changed[10] == "+0.0" and changed[-1] == "1.000"
    assert against[1:4] == ["+0.0", "1.000", "+94.4"] and against[7] == ".004"
    assert "option logits do not:\n  a_name_of_20_letters: pt, zh, mean of the others" in text
    assert "p: exact McNemar" in text and "no p" not in text
    rows = {(r["name"], r["score"], r["language"]): r for r in csv_rows(tmp_path / "out")}
    pt, zh = (rows[form.name, "generated", language] for language in ("pt", "zh"))
    assert (pt["p"], pt["p_holm"]) == ("0.0078", "0.0156")  # 2 / 2^8, of three languages the second
    assert (zh["p_from_first"], zh["p_holm_from_first"]) == ("0.0039", "0.0117")
    assert pt["formatting"] == "yes" and rows[form.name, "option_logits", "pt"]["formatting"] == ""
    assert rows["first", "generated", "pt"]["formatting"] == ""
    tex = (tmp_path / "out" / "comparison-quiz.tex").read_text()
    assert "$p=.004$ (formatting) & $+0.0$ [" in tex and "by option logits" in tex


def csv_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))


def test_other_benchmarks_are_refused_by_name(better: Path, tmp_path: Path) -> None:
    less = make_run(tmp_path / "less", {"en": "1100", "pt": "1110"})
    with pytest.raises(UserError, match=r"quiz_zh\.tsv: less did not evaluate it"):
        compare_runs([better, less], None)
    record = json.loads((less / "stages" / "evaluate.json").read_text())
    record["inputs"] |= {"quiz_zh.tsv": "hash of quiz zh", "quiz_pt.tsv": "another"}
    (less / "stages" / "evaluate.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"quiz_pt\.tsv: its content differs"):
        compare_runs([better, less], None)
    with pytest.raises(UserError, match="no run folder"):
        compare_runs([better, tmp_path], None)
    with pytest.raises(UserError, match="given twice"):
        compare_runs([better, better], None)
    (better / "stages" / "evaluate.json").unlink()
    with pytest.raises(UserError, match="is not evaluated"):
        compare_runs([better], None)


def test_a_run_that_is_being_redone_is_not_compared(better: Path) -> None:
    run = RunFolder(better)
    record = run.record("select")
    assert record is not None
    run.forget("select")
    with pytest.raises(UserError, match="better: is not evaluated; finish it"):
        compare_runs([better], None)
    run.publish_record("select", record["settings"] | {"selection": "another"}, record["inputs"], [])
    with pytest.raises(UserError, match="better: is not evaluated; finish it"):
        compare_runs([better], None)
    run.publish_record("select", record["settings"], record["inputs"], [])
    compare_runs([better], None)


def test_runs_that_were_evaluated_differently_are_refused(better: Path, worse: Path) -> None:
    run = RunFolder(worse)
    record = run.record("evaluate")
    assert record is not None
    for key, value in (("evaluate.max_new_tokens", 3), ("evaluate.localised_instruction", True)):
        theirs = record["settings"][key]
        run.publish_record("evaluate", record["settings"] | {key: value}, record["inputs"], [])
        with pytest.raises(UserError, match=f"{key} is {theirs} and {value}; evaluate both"):
            compare_runs([better, worse], None)


def test_the_command_prints_the_table(better: Path, worse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(better), str(worse)]) == 0
    assert "quiz: accuracy" in capsys.readouterr().out
    assert main(["compare", str(better.parent)]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_the_page_sets_runs_side_by_side(
    better: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = make_run(tmp_path / "<script>&", {"en": "0100", "pt": "1100", "zh": "1000"})
    path = tmp_path / "page" / "index.html"
    assert main(["report", str(better), str(nasty), "--out", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    page = Page(path.read_text())
    beside = [address for address in page.addresses if not address.startswith(("#", "data:"))]
    assert beside == ["comparison.svg", "comparison.png"] and "script" not in page.tags
    accuracies, runs = page.tables
    rows = {row[0]: row[1:] for row in accuracies}
    # English and the mean of the others: trained, change, interval, p; the mean by option logits, and against
    # the first run's: change, interval, p.
    assert rows["better"][:2] == ["50.0", "+0.0"] and rows["better"][4:7] == ["1.000", "87.5", "+37.5"]
    assert rows["better"][9:11] == [".500", "+37.5"]  # the two units that gain: 2 / 2^2
    assert rows["<script>&"][:2] == ["25.0", "-25.0"] and rows["<script>&"][5:7] == ["37.5", "-12.5"]
    assert rows["<script>&"][14] == "-50.0" and rows["<script>&"][17] == ".250"
    assert "Formatting: " not in path.read_text()
    form = make_run(
        tmp_path / "form", dict.fromkeys(("en", "pt", "zh"), "1111"), base="0000", logits_of_base=True
    )
    page = write_comparison([form], tmp_path / "form.html").read_text()
    assert "Formatting: generated answers gain, option logits do not: form (en), form (pt)" in page
    assert next(row[-4:] for row in runs if row[0] == "better") == ["25.00", "2", "4.00", "2.00"]
    names = {file.name for file in path.parent.iterdir()}
    assert names >= {"comparison.csv", "comparison-quiz.tex", "comparison.svg", "comparison.png"}


def test_an_ablation_groups_seeds_and_names_shared_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    own, shallow, rule = (
        Variant("msd", "the recipe", {}),
        Variant("shallowest", "", {}),
        Variant("rule", "", {}),
    )
    make_run(runs / "msd-seed-0", {"en": "1100", "pt": "1110"})
    make_run(runs / "msd-seed-1", {"en": "1100", "pt": "1111"}, seed=1)
    config = load_config("tiny")
    entries = first_entries(config, own, [0, 1])
    entries += [Entry(shallow, s, (0,), config, f"msd-seed-{s}") for s in (0, 1)]
    entries += [Entry(rule, s, (), config, None, "no layer selected") for s in (0, 1)]
    text = publish_ablation(entries, tmp_path)
    (line,) = [x for x in text.splitlines() if x.startswith("msd") and "(+" in x]
    assert "87.5 (+37.5)" in line and "+25.0 … +50.0" in line
    assert "seed 1: trains the same as, and is, msd-seed-1" in text
    # Answers of several seeds to one question are not independent: no p, and it is said why.
    assert "There is no p where seeds are averaged" in text and "exact McNemar" not in text
    with (tmp_path / "ablation.csv").open() as file:
        assert {row["p"] + row["p_from_msd"] for row in csv.DictReader(file) if row["benchmark"]} == {""}
    assert "$p" not in (tmp_path / "ablation-quiz.tex").read_text()
    assert "rule: seed 0: no layer selected" in text
    tree = json.loads((tmp_path / "ablation.json").read_text())
    assert tree[2]["run"] == f"runs/{run_name(own, 0)}" and tree[4]["refused"] == "no layer selected"
    first = sha256_of(tmp_path / "ablation.png")
    publish_ablation(entries, tmp_path)
    assert sha256_of(tmp_path / "ablation.png") == first  # the same input, the same bytes


def test_each_seed_s_own_p_is_in_the_csv(tmp_path: Path) -> None:
    own, other = Variant("msd", "the recipe", {}), Variant("all", "every layer", {})
    nothing = "0" * 9
    for seed, gains in ((0, (8, 2)), (1, (9, 0))):
        for variant, gained in zip((own, other), gains, strict=True):
            marks = {"en": nothing, "pt": "1" * gained + "0" * (9 - gained)}
            make_run(tmp_path / "runs" / run_name(variant, seed), marks, base=nothing, seed=seed)
    make_run(tmp_path / "runs" / "all-seed-2", {"en": nothing, "pt": nothing}, base=nothing, seed=2)
    config = load_config("tiny")
    entries = [*first_entries(config, own, [0, 1]), *first_entries(config, other, [0, 1, 2])]
    text = publish_ablation(entries, tmp_path)
    assert "The CSV has the p of each seed alone." in text
    with (tmp_path / "ablation.csv").open() as file:
        rows = {(r["name"], r["language"]): r for r in csv.DictReader(file) if r["score"] == "generated"}
    # 2 / 2^n of n units that gain alone; the third seed's run has no partner.
    assert rows["msd", "pt"]["p_seeds"] == "0.0078 | 0.0039" and rows["msd", "pt"]["p"] == ""
    assert rows["all", "pt"]["p_seeds"] == "0.5000 | 1.0000 | 1.0000"
    assert rows["all", "pt"]["p_seeds_from_msd"] == "0.0312 | 0.0039 | nan"
    assert rows["all", "mean of the others"]["p_seeds"] == rows["all", "pt"]["p_seeds"]


@pytest.mark.parametrize("lost", [("all",), ("msd",), ("msd", "all")])
def test_a_run_that_diverged_is_told_and_not_compared(tmp_path: Path, lost: tuple[str, ...]) -> None:
    variants, config = [Variant("msd", "the recipe", {}), Variant("all", "", {})], load_config("tiny")
    entries = [entry for variant in variants for entry in first_entries(config, variant, [0, 1])]
    for entry in entries:
        run = RunFolder(
            make_run(tmp_path / "runs" / str(entry.run), {"en": "10", "pt": "11"}, seed=entry.seed)
        )
        run.diverged.write_text("the loss of step 3 is nan; records a, b\n")
        if entry.variant.name in lost and (entry.seed == 1 or len(lost) == 2):
            run.forget("evaluate")
    text = publish_ablation(entries, tmp_path)
    tree = {(e["variant"], e["seed"]): e for e in json.loads((tmp_path / "ablation.json").read_text())}
    for name in lost:
        why = f"the loss of step 3 is nan (more in runs/{name}-seed-1/diverged.txt)"
        assert f"seed 1: {why}" in text and f"\n{name}: seed" in text
        assert tree[name, 1]["run"] is None and tree[name, 1]["refused"] == why
    if len(lost) == 1:
        assert tree[lost[0], 0]["run"] == f"runs/{lost[0]}-seed-0" and "quiz: accuracy" in text
    else:
        assert "quiz: accuracy" not in text


def test_where_the_recipe_s_own_runs_are_lost_the_next_are_held_against(tmp_path: Path) -> None:
    config = load_config("tiny")
    entries = [
        e for name in ("msd", "all", "full") for e in first_entries(config, Variant(name, "", {}), [0])
    ]
    for entry in entries:
        make_run(tmp_path / "runs" / str(entry.run), {"en": "10", "pt": "11"})
    lost = RunFolder(tmp_path / "runs" / "msd-seed-0")
    lost.forget("evaluate")
    with pytest.raises(UserError, match="is not evaluated"):
        publish_ablation(entries, tmp_path)
    lost.diverged.write_text("the gradient of step 1 is not finite; records a\n")
    assert "quiz: difference from all in points" in publish_ablation(entries, tmp_path)
    assert "mean, from all" in (tmp_path / "ablation-quiz.tex").read_text()
    with (tmp_path / "ablation.csv").open() as file:
        assert {r["change_from_all"] for r in csv.DictReader(file) if r["name"] == "full"} == {"0.0000"}
