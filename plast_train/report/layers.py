"""The report's section on the layers: overlap and MSD, candidates and choice."""

from __future__ import annotations

from plast_train.data.languages import ENGLISH
from plast_train.figures.page import Section, facts, figure, figures
from plast_train.figures.tables import Table, publish_table
from plast_train.run_folder import RunFolder, read_json


def layer_section(run: RunFolder) -> Section:
    """The figures `overlap` and `msd` were left in `RUN/report` by selecting."""
    summary, selection = read_json(run.summary), read_json(run.selection)
    options = {key: value for key, value in selection["options"].items() if value is not None}
    chosen = {
        "strategy": selection["strategy"],
        "selected layers": _listed(selection["selected_layers"]),
        "candidates": _listed(selection["candidates"]) or "none",
        "MSD threshold": "none"
        if selection["threshold"] is None
        else f"{selection['threshold']:.6g} neurons²",
        "modules": selection["modules"],
        "parameters trained": f"{selection['trainable_parameters']:,} of {selection['total_parameters']:,}",
        "records probed": summary["records"],
        "our reading of the method": ", ".join(f"{key} {value}" for key, value in options.items()),
    }
    kind = "Overlap" if selection["options"]["overlap"] == "english" else "Jaccard index"
    shown = [
        figure(
            run.report / "overlap.svg",
            f"{kind} of each language's active FFN neurons with those of English, by decoder layer "
            "(0-based). Shaded: candidates; triangles: selected layers.",
        ),
        figure(
            run.report / "msd.svg",
            "Mean squared deviation (MSD) of the number of active neurons over languages, by decoder layer.",
        ),
    ]
    return Section(
        "layers", "Layers", figures(shown) + facts(chosen) + publish_table(_table(run), run.report)
    )


def _table(run: RunFolder) -> Table:
    summary, selection = read_json(run.summary), read_json(run.selection)
    english = selection["options"]["overlap"] == "english"
    ratios = summary["overlap" if english else "jaccard"]
    others = [language for language in summary["languages"] if language != ENGLISH]
    rows = [
        [
            str(layer),
            *(f"{ratios[language][layer]:.3f}" for language in others),
            f"{selection['curve'][layer]:.3f}",
            f"{msd:.5g}",
            "yes" if layer in selection["candidates"] else "",
            "yes" if layer in selection["selected_layers"] else "",
        ]
        for layer, msd in enumerate(summary["msd"])
    ]
    return Table(
        "layers",
        f"{'Overlap' if english else 'Jaccard index'} with English per language and its mean, and MSD "
        "(neurons²), by decoder layer.",
        ["layer", *others, "mean", "MSD", "candidate", "selected"],
        rows,
        classes=dict.fromkeys(selection["selected_layers"], "mark"),
    )


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
