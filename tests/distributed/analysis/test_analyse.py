"""The stage `analyse` on real ranks: the same files for any number of ranks, kept where they stand."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.checks.paths import tiny_world
from launcher.commands.run import run_stages
from plast_train.analysis.stage import ANALYSES, MADE_FROM
from plast_train.data.images import load_image
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.report.analyses import analyses_section
from plast_train.run_folder import RunFolder
from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.base import make_tiny

LANGUAGES = ["en", "pt", "ar"]
SIZES = TinySizes(width=48, layers=3, heads=3, ffn_width=96, vision_layers=2)
RECORDS = 30
BEFORE = ("collect", "select", "train", "export")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small base with random weights, thirty records of the tiny world, its benchmark in two languages."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the last digits depend on it
    folder, world = tmp_path_factory.mktemp("data"), tiny_world()
    make_tiny(folder / "base", random_weights=True, sizes=SIZES)
    # Fresh logits are all but equal; the frozen head would keep them so.
    weights = load_file(folder / "base" / "model.safetensors")
    weights["language_model.lm_head.weight"] *= 10
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    lines = (world / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:RECORDS]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    benchmarks = ",".join(str(world / f"tiny_{language}.tsv") for language in ("en", "ar"))
    return [
        *(f"model.path={folder / 'base'}", f"data.questions=[{folder / 'questions.jsonl'}]"),
        *(f"data.image_root={world}", f"data.languages=[{','.join(LANGUAGES)}]"),
        *("selection.strategy=shallowest", "selection.k=2", "train.max_steps=4", "train.global_batch=8"),
        *("train.validation_records=8", "checkpoint.every_steps=2", f"evaluate.benchmarks=[{benchmarks}]"),
        *("analyse.records=9", "analyse.items=5", "analyse.attention_records=3", "analyse.pictures=1"),
        "train.learning_rate=0.01",
    ]


@pytest.fixture(scope="module")
def analysed(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert run_stages("tiny", overrides, out, 1, (*BEFORE, "analyse")) == 0
    return out


def analyse_again(run: Path, name: str, overrides: list[str], nproc: int, keep: bool) -> Path:
    """A copy of the run whose analyses are made anew; with `keep` those that fit are kept."""
    out = run.with_name(name)
    shutil.copytree(run, out)
    if not keep:
        shutil.rmtree(out / "analysis")
        (out / "stages" / "analyse.json").unlink()
    (out / "logs" / "rank-0.log").unlink()
    assert run_stages("tiny", overrides, out, nproc, ("analyse",)) == 0
    return out


@pytest.fixture(scope="module")
def changed(analysed: Path, overrides: list[str]) -> Path:
    """As after a stop in the middle, and with other settings for three of the analyses."""
    out = analysed.with_name("left")
    shutil.copytree(analysed, out)
    (out / "analysis" / "attention.json").unlink()
    return analyse_again(
        out, "changed", [*overrides, "analyse.records=100", "analyse.neuron_share=0.02"], 1, keep=True
    )


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "analysis" / f"{name}.json").read_text(encoding="utf-8"))


def said(run: Path) -> str:
    return (run / "logs" / "rank-0.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_ranks_make_the_same_files(analysed: Path, overrides: list[str]) -> None:
    out = analyse_again(analysed, "two", overrides, 2, keep=False)
    names = sorted(str(p.relative_to(analysed)) for p in (analysed / "analysis").rglob("*") if p.is_file())
    assert {f"analysis/{name}.json" for name in ANALYSES} | {"analysis/attention.safetensors"} <= set(names)
    for name in names:
        assert (out / name).read_bytes() == (analysed / name).read_bytes(), name


@pytest.mark.slow
def test_partitioned_weights(analysed: Path, overrides: list[str]) -> None:
    """Under ZeRO-3 what needs whole weights is left out, and it is said; the others are equal."""
    out = analyse_again(analysed, "zero3", [*overrides, "train.deepspeed=zero3"], 2, keep=False)
    assert "attention is left out: it needs the whole weights" in said(out)
    assert not (out / "analysis" / "attention.json").exists()
    for name, analysis in ANALYSES.items():
        if not analysis.whole_weights:
            assert read(out, name) == read(analysed, name), name


def test_what_stands_is_kept_and_what_changed_is_made_anew(analysed: Path, changed: Path) -> None:
    assert "knockout done before, kept" in said(changed)
    assert said(changed).count("done before, kept") == 1
    differ = {name for name in ANALYSES if read(analysed, name)[MADE_FROM] != read(changed, name)[MADE_FROM]}
    assert differ == {"neurons", "stability", "representation"}
    assert read(changed, "attention") == read(analysed, "attention")


def test_all_the_records_give_the_statistics_of_collecting(changed: Path) -> None:
    summary = json.loads((changed / "activations" / "summary.json").read_text())
    base, *later = read(changed, "stability")["models"]
    assert read(changed, "stability")["records"] == RECORDS
    for key in ("overlap", "jaccard", "active", "msd"):
        assert base[key] == summary[key]
    assert [model["name"] for model in later] == ["step 2", "step 4"]
    assert base["msd_rank_correlation"] == pytest.approx(1.0) and later[-1]["msd"] != base["msd"]


def test_representation_is_that_of_plain_transformers(changed: Path) -> None:
    """The trained model's cosines at the last prompt position of the deepest layer but one."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(changed / "export", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(changed / "export")
    records = [json.loads(line) for line in (changed / "records.jsonl").open(encoding="utf-8")]
    cosines = []
    for record in records:
        states = {}
        for language in ("en", "pt"):
            prompt = LLAVA_CHAT.prompt(record["questions"][language], True)
            inputs = processor(text=prompt, images=[load_image(record["image"])], return_tensors="pt")
            with torch.no_grad():
                states[language] = model(**inputs, output_hidden_states=True).hidden_states[2][0, -1]
        cosines.append(torch.nn.functional.cosine_similarity(states["en"], states["pt"], dim=0))
    last = read(changed, "representation")["cosine"]["plast"]["last"]
    assert last["parallel"]["pt"][1] == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    assert last["parallel"]["pt"][1] > last["control"]["pt"][1]


def test_counts_of_knocked_out_layers_agree(analysed: Path) -> None:
    cells = read(analysed, "knockout")["benchmarks"]["tiny"]
    assert len(cells["items"]) == 5 and cells["languages"] == ["en", "ar"]
    assert list(cells["reset"]) == ["0", "1"] and list(cells["skipped"]["base"]) == ["0", "1", "2"]
    for model in ("base", "plast"):
        for layer in cells["skipped"][model].values():
            for language, cell in layer.items():
                assert cell["right"] - cells["intact"][model][language] == cell["gained"] - cell["lost"]


def test_attention_is_of_questions_that_were_held_back(analysed: Path) -> None:
    tree = read(analysed, "attention")
    maps = load_file(analysed / "analysis" / "attention.safetensors")
    assert tree["held_back"] and len(tree["questions"]) == 3 * len(LANGUAGES)
    assert maps["base"].shape == maps["plast"].shape == (9, SIZES.layers - 1, 6, 6)
    assert not torch.equal(maps["base"], maps["plast"])
    for number, question in enumerate(tree["questions"]):
        assert question["language"] == LANGUAGES[number % 3]
        left, top, right, bottom = question["box"]
        assert question["area"] == pytest.approx((right - left) * (bottom - top) / 48**2, rel=0.05)
        for model in ("base", "plast"):
            for layer, mass in enumerate(question["mass"][model]):
                assert (mass is None) == (not maps[model][number, layer].any())
    (picture,) = tree["pictures"]
    assert all((analysed / "analysis" / file).is_file() for file in picture["files"])


def test_the_report_shows_them(analysed: Path) -> None:
    section = analyses_section(RunFolder(analysed))
    assert section is not None
    titles = " ".join(part["title"] for part in section.content)
    for heading in ("Attention maps", "Layer knock-out", "Stability", "Representation", "neurons"):
        assert heading in titles
    assert sum(len(part["figures"]) + len(part["maps"]) for part in section.content) == 1 + 1 + 1 + 2 + 1 + 1
    assert analyses_section(RunFolder(analysed / "nothing")) is None
