"""Writes comparisons: `plast compare`, `plast report RUN RUN …`, and the end of `plast ablate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plast_train.comparison.changes import Group, benchmarks_of
from plast_train.comparison.outcomes import read_outcome, require_same_benchmarks
from plast_train.comparison.tables import csv_table, latex_table, page_of_accuracies, page_of_runs, text_table
from plast_train.comparison.variants import Entry
from plast_train.errors import UserError
from plast_train.figures.page import Section, write_page
from plast_train.run_folder import RunFolder, publish_text, slug, to_json
from plast_train.stages import is_current


def compare_runs(runs: Sequence[Path], out: Path | None) -> str:
    """The comparison of finished runs as text; with `out` also as files there (see `_publish`).

    Raises:
        UserError: a run is not evaluated, has no benchmark, or has other benchmarks than the first.
    """
    groups = _groups_of_runs(runs)
    if out is not None:
        _publish(groups, out, "comparison")
    return text_table(groups)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page `out`, or `out/comparison.html`, which shows the runs side by side, and the files of
    `compare_runs` beside it. Returns the page.

    Raises:
        UserError: as `compare_runs`.
    """
    path = out if out.suffix == ".html" else out / "comparison.html"
    groups = _groups_of_runs(runs)
    _publish(groups, path.parent, "comparison")
    sections = [
        Section("accuracy", "Accuracy", page_of_accuracies(groups)),
        Section("runs", "Runs", page_of_runs(groups)),
        Section("languages", "Each language", text_table(groups)),
    ]
    write_page(path, "comparison", f"Comparison of {len(runs)} runs", sections)
    return path


def _groups_of_runs(runs: Sequence[Path]) -> list[Group]:
    """One group for each run, named by the last part of its path, or by as many parts as tell them apart."""
    outcomes = [read_outcome(run) for run in runs]
    require_same_benchmarks(outcomes)
    if not outcomes[0].answers:
        raise UserError(f"{runs[0]}: no benchmark was evaluated; set evaluate.benchmarks and evaluate again")
    paths = [run.absolute() for run in runs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice}: is given twice; name each run once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    names = [str(Path(*path.parts[-depth:])) for path in paths]
    return [Group(name, str(run), (o,)) for name, run, o in zip(names, runs, outcomes, strict=True)]


def publish_ablation(entries: Sequence[Entry], out: Path) -> str:
    """Groups the runs by variant, writes the comparison and `ablation.json` into `out`, returns the text. A
    run that diverged is not compared; the text has the reason.

    Raises:
        UserError: another run is not evaluated, or two runs were evaluated differently.
    """
    entries = [_without_run_if_diverged(entry, out / "runs") for entry in entries]
    by_variant: dict[str, list[Entry]] = {}
    for entry in entries:
        by_variant.setdefault(entry.variant.name, []).append(entry)
    groups = [_group_of_variant(own, out / "runs") for own in by_variant.values()]
    require_same_benchmarks([outcome for group in groups for outcome in group.outcomes])
    tree = [
        {
            "variant": entry.variant.name,
            "what": entry.variant.description,
            "seed": entry.seed,
            "run": entry.run and f"runs/{entry.run}",
            "layers": list(entry.layers),
            "refused": entry.refused,
        }
        for entry in entries
    ]
    publish_text(out / "ablation.json", to_json(tree))
    files = _publish(groups, out, "ablation") if benchmarks_of(groups) else []
    text = text_table(groups)
    publish_text(out / "ablation.txt", text + "\n")
    return "\n\n".join([text, "\n".join(map(str, files))])


def _without_run_if_diverged(entry: Entry, runs: Path) -> Entry:
    run = RunFolder(runs / str(entry.run))
    # A run that diverged once and was evaluated later, with other options, is a result like the others.
    if entry.run is None or not run.diverged.is_file() or is_current("evaluate", run):
        return entry
    reason = run.diverged.read_text(encoding="utf-8").partition(";")[0]
    return replace(entry, run=None, refused=f"{reason} (more in runs/{entry.run}/{run.diverged.name})")


def _group_of_variant(entries: Sequence[Entry], runs: Path) -> Group:
    """One variant's runs over the seeds. The note says which seeds have no run, or another variant's."""
    variant = entries[0].variant
    outcomes = tuple(read_outcome(runs / entry.run) for entry in entries if entry.run is not None)
    notes = [f"seed {e.seed}: {e.refused}" for e in entries if e.refused is not None]
    shared = {e.run: e.seed for e in entries if e.run and not e.run.startswith(f"{variant.name}-seed-")}
    notes += [f"seed {seed}: trains the same as, and is, {run}" for run, seed in shared.items()]
    return Group(variant.name, variant.description, outcomes, "; ".join(notes))


def _publish(groups: Sequence[Group], out: Path, name: str) -> list[Path]:
    """Writes `name.csv`, a `name-BENCHMARK.tex` for each benchmark, `name.png` and `name.svg`."""
    from plast_train.comparison.figure import plot_comparison  # loads matplotlib, which takes seconds

    publish_text(out / f"{name}.csv", csv_table(groups))
    files = [out / f"{name}.csv"]
    for benchmark in benchmarks_of(groups):
        files.append(out / f"{name}-{slug(benchmark)}.tex")
        publish_text(files[-1], latex_table(groups, benchmark))
    return files + plot_comparison(groups, out / name)
