"""Writing a comparison down: `plast compare` and the end of `plast ablate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plast_train.comparison.outcomes import read_outcome, require_same_benchmarks
from plast_train.comparison.plan import Entry
from plast_train.comparison.rows import Group, benchmarks_of
from plast_train.comparison.tables import csv_table, latex_table, text_table
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, publish_text, to_json
from plast_train.stages import is_current


def compare_runs(runs: Sequence[Path], out: Path | None) -> str:
    """The comparison of finished runs as text; with `out` also as files there (see `_publish`).

    Raises:
        UserError: a run is not evaluated, has no benchmark, or others than the first.
    """
    outcomes = [read_outcome(run) for run in runs]
    require_same_benchmarks(outcomes)
    if not outcomes[0].answers:
        raise UserError(f"{runs[0]}: no benchmark was evaluated; give evaluate.benchmarks")
    names = _distinct_names(runs)
    groups = [Group(name, str(run), (o,)) for name, run, o in zip(names, runs, outcomes, strict=True)]
    if out is not None:
        _publish(groups, out, "comparison")
    return text_table(groups)


def publish_ablation(entries: Sequence[Entry], out: Path) -> str:
    """Groups the runs by variant, writes the comparison and `ablation.json` into `out`, returns the text. A
    run that diverged is not compared; its reason is told.

    Raises:
        UserError: another run is not evaluated, or two were not evaluated alike.
    """
    entries = [_without_run_if_diverged(entry, out / "runs") for entry in entries]
    groups = _groups(entries, out / "runs")
    require_same_benchmarks([outcome for group in groups for outcome in group.outcomes])
    tree = [
        {
            "variant": entry.variant.name,
            "what": entry.variant.shows,
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
    if entry.run is None or not run.diverged.is_file() or is_current("evaluate", run):
        return entry
    what = run.diverged.read_text(encoding="utf-8").partition(";")[0]
    return replace(entry, run=None, refused=f"{what} (more in runs/{entry.run}/{run.diverged.name})")


def _groups(entries: Sequence[Entry], runs: Path) -> list[Group]:
    names = dict.fromkeys(entry.variant.name for entry in entries)
    return [_group([e for e in entries if e.variant.name == name], entries, runs) for name in names]


def _group(own: Sequence[Entry], entries: Sequence[Entry], runs: Path) -> Group:
    """One variant's runs over the seeds. Where a run is another variant's, the note says so."""
    variant = own[0].variant
    outcomes = tuple(read_outcome(runs / entry.run) for entry in own if entry.run is not None)
    notes = [f"seed {e.seed}: {e.refused}" for e in own if e.refused is not None]
    shared = {e.run: e.seed for e in own if e.run and not e.run.startswith(f"{variant.name}-seed-")}
    notes += [f"seed {seed}: trains the same as, and is, {run}" for run, seed in shared.items()]
    return Group(variant.name, variant.shows, outcomes, "; ".join(notes))


def _publish(groups: Sequence[Group], out: Path, name: str) -> list[Path]:
    """Writes `name.csv`, a `name-BENCHMARK.tex` for each benchmark, `name.png` and `name.svg`."""
    from plast_train.comparison.figure import plot_comparison

    publish_text(out / f"{name}.csv", csv_table(groups))
    files = [out / f"{name}.csv"]
    for benchmark in benchmarks_of(groups):
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in benchmark)
        files.append(out / f"{name}-{safe}.tex")
        publish_text(files[-1], latex_table(groups, benchmark))
    return files + plot_comparison(groups, out / name)


def _distinct_names(runs: Sequence[Path]) -> list[str]:
    """The folders' last parts, or as many more as tell them apart."""
    paths = [run.absolute() for run in runs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice}: is given twice; name each run once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [str(Path(*path.parts[-depth:])) for path in paths]
