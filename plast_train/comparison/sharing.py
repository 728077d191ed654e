"""What the runs of an ablation have in common and so make once: the probe's statistics, one for each seed,
and the base model's answers to the benchmarks.

A run takes over only what its own stages would accept as theirs: a stage record with its settings, inputs and
the hashes of its outputs, or prediction parts whose settings the stage `evaluate` compares before it uses
them.
"""

from __future__ import annotations

import shutil

from plast_train.context import Context
from plast_train.run_folder import RunFolder, link_or_copy, publish_folder, publish_text, sync_file, to_json
from plast_train.stages import inputs_of, settings_of


def share(context: Context) -> None:
    """Takes over what the runs beside this one have made. To be called on one rank."""
    run = context.run
    for path in sorted(run.path.parent.iterdir()):
        if path != run.path and path.is_dir():
            _share_probe(RunFolder(path), context)
            _share_base_answers(RunFolder(path), run)


def _share_probe(source: RunFolder, context: Context) -> None:
    run, record = context.run, source.record("collect")
    if record is None or run.record("collect") is not None:
        return
    ours = settings_of("collect", context.config), inputs_of("collect", context.config, run, context.base)
    intact = all(source.is_intact(name, content) for name, content in record["outputs"].items())
    if (record["settings"], record["inputs"]) == ours and intact:
        for name in record["outputs"]:
            link_or_copy(source.path / name, run.path / name)
        # Last: with its record the stage counts as done.
        publish_text(run.path / "stages" / "collect.json", to_json(record))


def _share_base_answers(source: RunFolder, run: RunFolder) -> None:
    theirs, ours = source.evaluation / "parts" / "base", run.evaluation / "parts" / "base"
    if source.record("evaluate") is None or ours.exists():
        return
    # Copied, not linked: a rank appends to its part, and a link would write into the other run's.
    temporary = ours.with_name(".base.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(theirs, temporary)
    for file in temporary.iterdir():
        sync_file(file)
    publish_folder(temporary, ours)
