"""What PLAST does to the tiny model: the recipe `tiny` with several seeds, and other choices of layers.

    python benchmarks/effect.py --out runs/effect [--seeds 0 1 2] [--also deepest all]

Each run is `plast run tiny seed=S …`; what is finished is not run again. Prints, in points of accuracy of
generated answers, English and the mean of the other languages before and after, for every seed and strategy.
`--also` adds strategies to compare with: as many layers as the recipe trains, or all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from plast_train.data.languages import ENGLISH
from plast_train.scoring.accuracies import MEAN, accuracies, percent, points

# The same items with translated options and with English ones.
BENCHMARKS, RULE = ("tiny", "tiny-english-options"), "parrot2024"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--also", nargs="*", default=[])
    parser.add_argument("--nproc", default="2")
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.nproc} ranks; {versions}")
    print(f"{'layers':28} {'seed':>4} {'English':>22} {'others':>22} {'others, English options':>23}")
    for strategy in ["recipe", *arguments.also]:
        changes = [one_run(arguments, strategy, seed) for seed in arguments.seeds]
        means = [f"{fmean(change):+22.1f}" for change in zip(*changes, strict=True)]
        print(f"{strategy + ', mean of the seeds':28} {'':4} {' '.join(means)}", flush=True)


def one_run(arguments: argparse.Namespace, strategy: str, seed: int) -> list[float]:
    """Runs one strategy and seed; returns the changes, in points, of English, of the others' mean, and of
    that with English options."""
    out = arguments.out / f"{strategy}-{seed}"
    options = [f"seed={seed}", *selection(arguments, strategy, seed)]
    command = [
        sys.executable,
        "-m",
        "launcher.cli",
        "run",
        "tiny",
        "--out",
        str(out),
        "--nproc",
        arguments.nproc,
    ]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    layers = json.loads((out / "selection.json").read_text())["selected_layers"]
    results = json.loads((out / "evaluation" / "results.json").read_text())
    translated, english = (accuracies(results[name], RULE) for name in BENCHMARKS)
    pairs = [translated[ENGLISH][:2], translated[MEAN][:2], english[MEAN][:2]]
    told = " ".join(_change(*pair) for pair in pairs)
    print(f"{strategy + ' ' + str(layers):28} {seed:4} {told}", flush=True)
    return [100 * (after - before) for before, after in pairs]


def selection(arguments: argparse.Namespace, strategy: str, seed: int) -> list[str]:
    if strategy == "recipe":
        return []
    options = [f"selection.strategy={strategy}"]
    if strategy != "all":
        chosen = json.loads((arguments.out / f"recipe-{seed}" / "selection.json").read_text())
        options.append(f"selection.k={len(chosen['selected_layers'])}")
    return options


def _change(before: float, after: float) -> str:
    return f"{percent(before):>6} {percent(after):>6} {points(before, after):>8}"


if __name__ == "__main__":
    main()
