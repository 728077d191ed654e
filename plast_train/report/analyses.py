"""The report's section on the analyses: for each that was made its figures, tables and what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from statistics import fmean
from typing import Any

from plast_train.data.languages import ENGLISH, language_name
from plast_train.figures.page import Section, figure, figures, heading, paragraph, said
from plast_train.figures.tables import NOTHING, Table, publish_table
from plast_train.run_folder import RunFolder, publish_bytes, read_json
from plast_train.scoring.accuracies import BASE, TRAINED

Tree = Mapping[str, Any]


def analyses_section(run: RunFolder) -> Section | None:
    """None where no analysis was made. Copies the figures beside the page."""
    made = {name: run.analysis / f"{name}.json" for name in _PARTS}
    parts = [_PARTS[name](read_json(path), run) for name, path in made.items() if path.exists()]
    return Section("analyses", "Analyses", "".join(parts)) if parts else None


def _part(title: str, text: str, run: RunFolder, stems: Mapping[str, str]) -> str:
    """`stems`: caption of a figure → its file in `RUN/analysis`, without the ending."""
    shown = figures(_copied(stem, caption, run) for caption, stem in stems.items())
    return heading(title) + paragraph(text) + shown


def _copied(stem: str, caption: str, run: RunFolder, wide: bool = False) -> str:
    name = stem.replace("/", "-")
    for ending in (".svg", ".png"):
        publish_bytes(run.report / f"{name}{ending}", (run.analysis / f"{stem}{ending}").read_bytes())
    return figure(run.report / f"{name}.svg", caption, wide)


def _neurons(tree: Tree, run: RunFolder) -> str:
    text = (
        f"By the LAPE rule {len(tree['specific'])} of {tree['layers'] * tree['neurons_per_layer']:,} FFN "
        f"neurons of the base ({tree['share']:.2%} were asked for) are specific to languages: those of "
        "lowest entropy over the languages' activation probabilities. One of two languages counts for both."
    )
    return _part(
        "Language-specific neurons",
        text,
        run,
        {"Language-specific neurons by decoder layer, stacked by language; below them the MSD.": "neurons"},
    )


def _stability(tree: Tree, run: RunFolder) -> str:
    last = tree["models"][-1]
    moved = last["msd_rank_correlation"]
    text = (
        f"Overlap and MSD of {tree['records']} records at each checkpoint that was kept. From the base to "
        f"{last['name']} the mean overlap moves by at most {last['largest_overlap_change']:.3f}; Spearman's "
        f"ρ of the layers' MSD is {'undefined' if moved is None else f'{moved:.3f}'}."
    )
    caption = "Mean overlap with English and MSD, of the base and of each checkpoint."
    shown = _part("Stability over training", text, run, {caption: "stability"})
    return shown + publish_table(_stability_table(tree), run.report)


def _stability_table(tree: Tree) -> Table:
    rows = []
    for model in tree["models"]:
        moved, chosen = model["msd_rank_correlation"], model["would_select"]
        rows.append(
            [
                model["name"],
                f"{model['largest_overlap_change']:.3f}",
                NOTHING if moved is None else f"{moved:.3f}",
                NOTHING if chosen is None else ", ".join(map(str, chosen)),
            ]
        )
    return Table(
        "stability",
        "Largest change of a layer's mean overlap, Spearman's ρ of the layers' MSD, both to the base, and "
        "the layers that the run's rule would select then.",
        ["model", "largest overlap change", "ρ of MSD", "would select"],
        rows,
    )


def _representation(tree: Tree, run: RunFolder) -> str:
    text = (
        f"Cosine of hidden states with the parallel English question, mean of {tree['records']} records, at "
        "the last prompt position and averaged over the question's text; dotted: the English question of "
        "another record."
    )
    where = {"last": "at the last prompt position", "text": "averaged over the question's text"}
    shown = {
        f"Cosine with the English question {where[p]}, by decoder layer.": f"representation-{p}"
        for p in tree["positions"]
    }
    return _part("Representation relative to English", text, run, shown)


def _knockout(tree: Tree, run: RunFolder) -> str:
    if not tree["benchmarks"]:
        return ""
    sizes = ", ".join(f"{name}: {len(own['items'])}" for name, own in tree["benchmarks"].items())
    text = (
        "Accuracy by option logits that each language loses when one decoder layer is skipped. Items in each "
        f"language: {sizes}; counts, layers reset to the base and McNemar's p are in knockout.json."
    )
    stems = {
        f"{name}: loss of accuracy (option logits) with one layer skipped.": f"knockout-{own['figure']}"
        for name, own in tree["benchmarks"].items()
    }
    tables = [publish_table(_knockout_table(n, own), run.report) for n, own in tree["benchmarks"].items()]
    return _part("Layer knock-out", text, run, stems) + "".join(tables)


def _knockout_table(name: str, own: Tree) -> Table:
    """Each layer skipped, and each trained layer reset, in the trained model; points lost."""
    others = [language for language in own["languages"] if language != ENGLISH]
    kinds = {"skipped": own["skipped"][TRAINED], "reset to the base": own["reset"]}
    rows = []
    for kind, layers in kinds.items():
        for layer, cells in layers.items():
            lost = {x: 100 * (c["lost"] - c["gained"]) / len(own["items"]) for x, c in cells.items()}
            mean = f"{fmean(lost[x] for x in others):.1f}" if others else NOTHING
            rows.append([f"{layer} {kind}", *(f"{lost[x]:.1f}" for x in own["languages"]), mean])
    return Table(
        f"knockout-{own['figure']}",
        f"{name}: accuracy by option logits that the trained model loses with a layer knocked out, in "
        f"percentage points of {len(own['items'])} items in each language (below 0: it gains).",
        ["decoder layer", *own["languages"], "mean of the others"],
        rows,
        classes={i: "mark" for i, row in enumerate(rows) if row[0].endswith("base")},
    )


def _attention(tree: Tree, run: RunFolder) -> str:
    if not tree["questions"]:
        return ""
    held_back = "not trained on" if tree["held_back"] else "trained on"
    text = f"LLaVA-CAM on {tree['records']} records with an image, {held_back}."
    stems = {}
    if tree["mass"] is not None:
        text += (
            f" In {tree['mass']['questions']} questions the object asked about is known; its box covers "
            f"{tree['mass']['area']:.1%} of the image on average."
        )
        stems["Share of the heat inside the box of the object asked about, by decoder layer."] = (
            "attention-mass"
        )
    known = {(q["id"], q["language"]): q for q in tree["questions"]}
    drawn = "".join(_picture(known[p["id"], p["language"]], p, run) for p in tree["pictures"])
    return _part("Attention maps", text, run, stems) + drawn


def _picture(question: Tree, drawn: Tree, run: RunFolder) -> str:
    """The question and the replies above the picture, which cannot show every script."""
    language = question["language"]
    replies = "; ".join(
        f"{when}: {said(question['reply'][name], language)}"
        for name, when in ((BASE, "before"), (TRAINED, "after"))
    )
    asked = said(question["question"], language, "p")
    stem = drawn["files"][-1].removesuffix(".svg")
    shown = _copied(stem, f"Attention maps of the record {question['id']}, {language}.", run, wide=True)
    told = f"<p>{escape(language_name(language))}. Replies {replies}</p>"
    return f'<div class="together">{asked}{told}{shown}</div>'


_PARTS: dict[str, Callable[[Tree, RunFolder], str]] = {
    "attention": _attention,
    "knockout": _knockout,
    "stability": _stability,
    "representation": _representation,
    "neurons": _neurons,
}
