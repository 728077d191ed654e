"""The report's section on the analyses: for each that was made its figures and what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from plast_train.analysis.html_page import figures
from plast_train.data.languages import language_name
from plast_train.evaluation.accuracies import BASE, TRAINED
from plast_train.run_folder import RunFolder, read_json

Tree = Mapping[str, Any]


def analyses_section(run: RunFolder) -> str:
    """HTML; nothing where no analysis was made."""
    made = {name: run.analysis / f"{name}.json" for name in _PARTS}
    parts = [_PARTS[name](read_json(path), run.analysis) for name, path in made.items() if path.exists()]
    return "<h2>Analyses</h2>" + "".join(parts) if parts else ""


def _part(title: str, text: str, folder: Path, stems: Mapping[str, str]) -> str:
    """`stems`: what a figure shows → its file below `folder`, without the ending."""
    shown = {alt: folder / f"{stem}.svg" for alt, stem in stems.items()}
    return f"<h3>{escape(title)}</h3><p>{escape(text)}</p>{figures(shown)}"


def _neurons(tree: Tree, folder: Path) -> str:
    text = (
        f"By the LAPE rule {len(tree['specific'])} of {tree['layers'] * tree['neurons_per_layer']:,} FFN "
        f"neurons of the base ({tree['share']:.2%} were asked for) are specific to languages: those of "
        "lowest entropy over the languages' activation probabilities. One of two languages counts for both."
    )
    return _part("Language-specific neurons", text, folder, {"Specific neurons per layer": "neurons"})


def _stability(tree: Tree, folder: Path) -> str:
    last = tree["models"][-1]
    moved = last["msd_rank_correlation"]
    text = (
        f"Overlap and MSD of {tree['records']} records at each checkpoint that was kept. From the base to "
        f"{last['name']} the mean overlap moves by at most {last['largest_overlap_change']:.3f}; Spearman's "
        f"ρ of the layers' MSD is {'undefined' if moved is None else f'{moved:.3f}'}."
    )
    return _part("Stability over training", text, folder, {"Overlap and MSD by checkpoint": "stability"})


def _representation(tree: Tree, folder: Path) -> str:
    text = (
        f"Cosine of hidden states with the parallel English question, mean of {tree['records']} records, at "
        "the last prompt position and averaged over the question's text; dotted: the English question of "
        "another record."
    )
    shown = {f"Cosine with English, {p} position": f"representation-{p}" for p in tree["positions"]}
    return _part("Representation relative to English", text, folder, shown)


def _knockout(tree: Tree, folder: Path) -> str:
    if not tree["benchmarks"]:
        return ""
    sizes = ", ".join(f"{name}: {len(own['items'])}" for name, own in tree["benchmarks"].items())
    text = (
        "Accuracy by option logits that each language loses when one decoder layer is skipped. Items in each "
        f"language: {sizes}; counts, layers reset to the base and McNemar's p are in knockout.json."
    )
    stems = {f"Knock-out on {name}": f"knockout-{own['figure']}" for name, own in tree["benchmarks"].items()}
    return _part("Layer knock-out", text, folder, stems)


def _attention(tree: Tree, folder: Path) -> str:
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
        stems["Heat inside the box of the object asked about"] = "attention-mass"
    known = {(q["id"], q["language"]): q for q in tree["questions"]}
    drawn = "".join(
        _picture(known[p["id"], p["language"]], folder / p["files"][-1]) for p in tree["pictures"]
    )
    return _part("Attention maps", text, folder, stems) + drawn


def _picture(question: Tree, svg: Path) -> str:
    language = escape(question["language"])
    replies = "; ".join(
        f'{when}: <bdi lang="{language}">{escape(question["reply"][name])}</bdi>'
        for name, when in ((BASE, "before"), (TRAINED, "after"))
    )
    asked = f'<bdi lang="{language}">{escape(question["question"])}</bdi>'
    name = escape(language_name(question["language"]))
    return f"<p>{asked} ({name}) {replies}</p>{figures({'Attention maps before and after': svg})}"


_PARTS: dict[str, Callable[[Tree, Path], str]] = {
    "attention": _attention,
    "knockout": _knockout,
    "stability": _stability,
    "representation": _representation,
    "neurons": _neurons,
}
