"""The report's section on the analyses: for each that was made, its figures and tables and what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from plast_train.data.languages import ENGLISH, language_name
from plast_train.figures.page import Section
from plast_train.figures.tables import NOTHING, Table, publish_table
from plast_train.run_folder import RunFolder, publish_bytes, read_json
from plast_train.scoring.accuracies import BASE, TRAINED

Tree = Mapping[str, Any]


def analyses_section(run: RunFolder) -> Section | None:
    """None where no analysis was made. Copies the figures beside the page."""
    made = {name: run.analysis / f"{name}.json" for name in _PARTS}
    parts = [_PARTS[name](read_json(path), run) for name, path in made.items() if path.exists()]
    if not parts:
        return None
    # An analysis that found no question to work on has no part.
    return Section("analyses", "Analyses", [part for part in parts if part is not None])


def _part(
    title: str,
    text: str,
    run: RunFolder,
    figures: Mapping[str, str],
    tables: Sequence[Table] = (),
    maps: Sequence[Tree] = (),
) -> Tree:
    """`figures`: a figure's file in `RUN/analysis`, without its ending → its caption. `maps`: see `_map`."""
    return {
        "title": title,
        "text": text,
        "figures": {_copied(stem, run): caption for stem, caption in figures.items()},
        "tables": [publish_table(table, run.report) for table in tables],
        "maps": maps,
    }


def _copied(stem: str, run: RunFolder) -> str:
    """Copies a figure from `RUN/analysis` beside the page; returns its stem there."""
    name = stem.replace("/", "-")
    for ending in (".svg", ".png"):
        publish_bytes(run.report / f"{name}{ending}", (run.analysis / f"{stem}{ending}").read_bytes())
    return name


def _neurons(tree: Tree, run: RunFolder) -> Tree:
    text = (
        f"By the LAPE rule {len(tree['specific'])} of {tree['layers'] * tree['neurons_per_layer']:,} FFN "
        f"neurons of the base ({tree['share']:.2%} were asked for) are specific to languages: those of "
        "lowest entropy over the languages' activation probabilities. One of two languages counts for both."
    )
    caption = "Language-specific neurons by decoder layer, stacked by language; below them the MSD."
    return _part("Language-specific neurons", text, run, {"neurons": caption})


def _stability(tree: Tree, run: RunFolder) -> Tree:
    last = tree["models"][-1]
    rows, correlation = [], "undefined"
    for model in tree["models"]:
        rho, chosen = model["msd_rank_correlation"], model["would_select"]
        correlation = "undefined" if rho is None else f"{rho:.3f}"
        rows.append(
            [
                model["name"],
                f"{model['largest_overlap_change']:.3f}",
                NOTHING if rho is None else correlation,
                NOTHING if chosen is None else ", ".join(map(str, chosen)),
            ]
        )
    table = Table(
        head=["model", "largest overlap change", "ρ of MSD", "would select"],
        rows=rows,
        name="stability",
        caption="Largest change of a layer's mean overlap, Spearman's ρ of the layers' MSD, both to the "
        "base, and the layers that the run's rule would select then.",
    )
    text = (
        f"Overlap and MSD of {tree['records']} records at each checkpoint that was kept. From the base to "
        f"{last['name']} the mean overlap moves by at most {last['largest_overlap_change']:.3f}; Spearman's "
        f"ρ of the layers' MSD is {correlation}."
    )
    caption = "Mean overlap with English and MSD, of the base and of each checkpoint."
    return _part("Stability over training", text, run, {"stability": caption}, [table])


def _representation(tree: Tree, run: RunFolder) -> Tree:
    text = (
        f"Cosine of hidden states with the parallel English question, mean of {tree['records']} records, at "
        "the last prompt position and averaged over the question's text; dotted: the English question of "
        "another record."
    )
    where = {"last": "at the last prompt position", "text": "averaged over the question's text"}
    figures = {
        f"representation-{p}": f"Cosine with the English question {where[p]}, by decoder layer."
        for p in tree["positions"]
    }
    return _part("Representation relative to English", text, run, figures)


def _knockout(tree: Tree, run: RunFolder) -> Tree | None:
    if not tree["benchmarks"]:
        return None
    sizes = ", ".join(f"{name}: {len(own['items'])}" for name, own in tree["benchmarks"].items())
    text = (
        "Accuracy by option logits that each language loses when one decoder layer is skipped. Items in each "
        f"language: {sizes}; counts, layers reset to the base and McNemar's p are in knockout.json."
    )
    figures = {
        f"knockout-{own['figure']}": f"{name}: loss of accuracy (option logits) with one layer skipped."
        for name, own in tree["benchmarks"].items()
    }
    tables = [_knockout_table(name, own) for name, own in tree["benchmarks"].items()]
    return _part("Layer knock-out", text, run, figures, tables)


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
        head=["decoder layer", *own["languages"], "mean of the others"],
        rows=rows,
        name=f"knockout-{own['figure']}",
        caption=f"{name}: accuracy by option logits that the trained model loses with a layer knocked out, "
        f"in percentage points of {len(own['items'])} items in each language (below 0: it gains).",
        classes={i: "mark" for i, row in enumerate(rows) if row[0].endswith("base")},
    )


def _attention(tree: Tree, run: RunFolder) -> Tree | None:
    if not tree["questions"]:
        return None
    held_back = "not trained on" if tree["held_back"] else "trained on"
    text = f"LLaVA-CAM on {tree['records']} records with an image, {held_back}."
    figures = {}
    if tree["mass"] is not None:
        text += (
            f" In {tree['mass']['questions']} questions the object asked about is known; its box covers "
            f"{tree['mass']['area']:.1%} of the image on average."
        )
        caption = "Share of the heat inside the box of the object asked about, by decoder layer."
        figures["attention-mass"] = caption
    questions = {(q["id"], q["language"]): q for q in tree["questions"]}
    maps = [_map(questions[p["id"], p["language"]], p, run) for p in tree["pictures"]]
    return _part("Attention maps", text, run, figures, maps=maps)


def _map(question: Tree, picture: Tree, run: RunFolder) -> Tree:
    language = question["language"]
    return {
        "stem": _copied(picture["files"][-1].removesuffix(".svg"), run),
        "caption": f"Attention maps of the record {question['id']}, {language}.",
        "language": language,
        "language_name": language_name(language),
        "question": question["question"],
        "before": question["reply"][BASE],
        "after": question["reply"][TRAINED],
    }


_PARTS: dict[str, Callable[[Tree, RunFolder], Tree | None]] = {
    "attention": _attention,
    "knockout": _knockout,
    "stability": _stability,
    "representation": _representation,
    "neurons": _neurons,
}
