"""One question's attention maps as a picture: the image, and the heat over it before and after training.

Text is drawn only where Matplotlib's own font has the characters and they run from left to right; otherwise
the English question stands in its place, and the reply is left to the JSON and the report.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

from plast_train.data.languages import language_name
from plast_train.figures.plots import STYLE, save
from plast_train.scoring.accuracies import BASE, TRAINED

PANELS = {BASE: "before training", TRAINED: "after training"}
HEAT_COLOURS = "inferno"  # brighter is hotter also in grey and to the colour-blind
OPACITY = 0.65
_RIGHT_TO_LEFT = ("R", "AL", "AN")


def heat_picture(
    image: NDArray[np.float64],
    heats: Mapping[str, NDArray[np.float32]],
    box: NDArray[np.float64] | None,
    *,
    question: str,
    english: str,
    language: str,
    replies: Mapping[str, str],
    layer: int,
    stem: Path,
) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`.

    `image` `[height, width, 3]`, 0 to 1, is what the model sees; `heats` `[rows, columns]`, 0 to 1, by model,
    on the grid of its patches; `box` `[height, width]`, 1 inside the object asked about.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.9, 2.75), layout="constrained")
        panels = figure.subplots(1, 1 + len(heats))
        figure.suptitle(_title(question, english, language, layer), fontsize=8, parse_math=False)
        panels[0].imshow(image)
        panels[0].set_title("image as the model sees it", fontsize=8)
        for axes, (name, heat) in zip(panels[1:], heats.items(), strict=True):
            shown = _draw_heat(axes, image, heat)
            axes.set_title(f"{PANELS[name]}{_said(replies[name])}", fontsize=8, parse_math=False)
            if not heat.any():
                axes.set_xlabel("no heat", fontsize=7)
        for axes in panels:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if box is not None:
                axes.contour(box, [0.5], colors=["white"], linewidths=2.0)
                axes.contour(box, [0.5], colors=["black"], linewidths=0.9, linestyles=["dashed"])
        figure.colorbar(shown, ax=panels, shrink=0.8, label="heat (share of its maximum)")
        return save(figure, stem)


def _draw_heat(axes: Axes, image: NDArray[np.float64], heat: NDArray[np.float32]) -> Any:
    height, width, _ = image.shape
    axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=1)
    shown = axes.imshow(
        heat,
        cmap=HEAT_COLOURS,
        vmin=0,
        vmax=1,
        alpha=OPACITY,
        interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    return shown


def _title(question: str, english: str, language: str, layer: int) -> str:
    text = question if drawable(question) else english if drawable(english) else ""
    asked = language_name(language) if text == question else f"{language_name(language)}, here in English"
    lines = wrap(shorten(text, 180, placeholder=" …"), 95)
    return "\n".join([*lines, f"asked in {asked}; decoder layer {layer}"])


def _said(reply: str) -> str:
    if not reply:
        return "\n(no reply)"
    return f"\nreply: {shorten(reply, 30, placeholder=' …')}" if drawable(reply) else ""


def drawable(text: str) -> bool:
    """Whether the figures' font has every character and none belongs to a script from right to left."""
    font = get_font(findfont(FontProperties()))
    return all(
        unicodedata.bidirectional(character) not in _RIGHT_TO_LEFT
        and (character.isspace() or font.get_char_index(ord(character)) != 0)
        for character in text
    )
