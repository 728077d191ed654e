"""`plast evaluate MODEL-or-RUN --benchmarks FILE …`: check, start ranks, show the scores."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launcher.checks.machine import check_ranks, check_writable, count_gpus
from launcher.processes.lock import only_launcher
from launcher.processes.outcome import Outcome
from launcher.processes.torchrun import Machines, start_ranks
from plast_train.config import (
    EvaluateConfig,
    EvaluationConfig,
    ModelConfig,
    load_config,
    override_evaluation,
    recipes,
)
from plast_train.errors import UserError
from plast_train.evaluation.request import EvaluationRequest, request_path
from plast_train.run_folder import RunFolder, publish_text, read_json, read_object
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.tasks.registry import benchmark_hash

RANKS = "plast_train.evaluation.standalone"
_OVERRIDE = re.compile(r"(model|evaluate)\.\w+=.*", re.DOTALL)


def run_evaluation(
    target: str, benchmarks: Sequence[str], overrides: Sequence[str], out: Path | None, nproc: int | None
) -> int:
    """Lets a model, or a run's base and trained model, answer benchmarks. Returns the exit code, 0 or 1.

    The same command again goes on where it was stopped; with other benchmarks it adds to what is in `out`.

    Raises:
        UserError: what the user can mend; found before ranks start, it leaves `out` as it was.
    """
    logging.basicConfig(level=logging.WARNING, format="plast: %(levelname)s: %(message)s")
    overrides = [*overrides, *(b for b in benchmarks if _OVERRIDE.fullmatch(b))]
    files = [_absolute(b) for b in benchmarks if not _OVERRIDE.fullmatch(b)]
    run = RunFolder(out or Path("runs") / f"evaluate-{model_name(target)}")
    machines = Machines.of(os.environ)
    check_writable(run.path)
    request = check_evaluation(target, files, overrides, run)
    gpus = count_gpus()
    nproc = nproc or max(1, gpus)
    check_ranks(nproc, gpus, os.cpu_count() or 1)
    if _is_done(run, request):
        print("evaluate: done before, skipped", flush=True)
    else:
        if machines.is_first:
            with only_launcher(run):
                write_down(run, request)
                outcome = start_ranks(run, [], nproc, gpus, machines, RANKS)
        else:
            outcome = start_ranks(run, [], nproc, gpus, machines, RANKS)
        if outcome.kind != "done":
            return _tell(outcome, run)
    if machines.is_first:
        print(_table(run, request))
    return 0


def model_name(target: str) -> str:
    """The last part of a folder's or a hub model's name."""
    return Path(target).expanduser().absolute().name


def check_evaluation(
    target: str, files: Sequence[str], overrides: Sequence[str], run: RunFolder
) -> EvaluationRequest:
    """Everything that can be wrong, found before ranks start. Raises UserError for it."""
    if (run.path / "config.yaml").exists():
        raise UserError(
            f"--out {run.path}: is a run's folder, which has an evaluation of its own; give another"
        )
    source = RunFolder(Path(target).expanduser())
    is_run = source.config.is_file() and source.base.is_file()
    config = override_evaluation(_config_of(target, source if is_run else None), overrides)
    root = config.evaluate.image_root
    config = config.model_copy(
        update={
            "evaluate": config.evaluate.model_copy(
                update={"benchmarks": list(files), "image_root": root and _absolute(root)}
            )
        }
    )
    for file in files:
        if not Path(file).exists():
            raise UserError(f"--benchmarks: {file} is no file; mend its path")
    folders = _folders(target, source if is_run else None, config.model)
    _check_out(run, folders)
    return _describe(config, folders)


def _config_of(target: str, source: RunFolder | None) -> EvaluationConfig:
    """A run's own settings; for a model the defaults, with the precision that its weights are in."""
    if source is not None:
        config = load_config(str(source.config))
        return EvaluationConfig(model=config.model, evaluate=config.evaluate)
    if target in recipes() and target != "tiny":
        raise UserError(f"'{target}' is a recipe; --benchmarks goes with a model's or a run's folder")
    from plast_train.lvlm.loading import resolve_base

    model = ModelConfig(path=target)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    if stored_dtype(read_object(resolve_base(model) / "config.json")) == "float32":
        dtype = "float32"
    return EvaluationConfig(model=model.model_copy(update={"dtype": dtype}), evaluate=EvaluateConfig())


def stored_dtype(config: Mapping[str, Any]) -> str | None:
    """That of a model's weights as its config.json says, under either of transformers' names."""
    trees = (config, config.get("text_config", {}))
    found = (tree.get(name) for tree in trees for name in ("dtype", "torch_dtype"))
    return next((dtype for dtype in found if dtype), None)


def _folders(target: str, source: RunFolder | None, model: ModelConfig) -> dict[str, Path]:
    """The models by name. Raises UserError for one that is not there or not supported."""
    from plast_train.lvlm.loading import check_base, resolve_base

    if source is None:
        return {model_name(target): resolve_base(model)}
    if not source.export.is_dir():
        raise UserError(
            f"{source.export}: is not there; finish the run (plast export), or give its base model"
        )
    folders = {BASE: Path(read_json(source.base)["path"]), TRAINED: source.export}
    for folder in folders.values():
        check_base(folder)
    return folders


def _check_out(run: RunFolder, folders: dict[str, Path]) -> None:
    """Raises UserError where another model's evaluation is in `run`."""
    if request_path(run).exists():
        before = {name: model["path"] for name, model in read_json(request_path(run))["models"].items()}
        now = {name: str(folder.resolve()) for name, folder in folders.items()}
        if before != now:
            raise UserError(
                f"--out {run.path}: holds the evaluation of {', '.join(before.values())}; give another folder"
            )


def _describe(config: EvaluationConfig, folders: dict[str, Path]) -> EvaluationRequest:
    """Reads the benchmarks and checks their prompts against each model."""
    from plast_train.lvlm.architectures import read_architecture
    from plast_train.lvlm.families import family_of
    from plast_train.lvlm.loading import describe_base, load_text_side, make_prompter
    from plast_train.scoring.questions import check_prompts
    from plast_train.tasks.registry import benchmarks_of

    benchmarks, evaluate = benchmarks_of(config.evaluate), config.evaluate
    for folder in folders.values():
        architecture = read_architecture(folder, "")
        tokenizer, _ = load_text_side(folder, config.model.trust_remote_code)
        prompter = make_prompter(tokenizer, family_of(architecture, str(folder)), architecture, [])
        positions = architecture["text_config"]["max_position_embeddings"]
        check_prompts(
            benchmarks, prompter, positions, evaluate.max_new_tokens, evaluate.localised_instruction
        )
    models = {name: describe_base(folder) for name, folder in folders.items()}
    root = None if evaluate.image_root is None else Path(evaluate.image_root)
    hashes = {path: benchmark_hash(Path(path), root) for path in evaluate.benchmarks}
    return EvaluationRequest(models=models, config=config, benchmarks=hashes)


def _is_done(run: RunFolder, request: EvaluationRequest) -> bool:
    same = request_path(run).exists() and read_json(request_path(run)) == request.model_dump(mode="json")
    return same and run.results.exists()


def write_down(run: RunFolder, request: EvaluationRequest) -> None:
    """What the ranks read; results of another command are taken away."""
    run.results.unlink(missing_ok=True)
    publish_text(request_path(run), request.model_dump_json(indent=1) + "\n")


def _tell(outcome: Outcome, run: RunFolder) -> int:
    """Says why the ranks ended. Raises UserError for what the user can mend; returns 1 otherwise."""
    if outcome.kind == "user":
        raise UserError(outcome.message)
    if outcome.trace and outcome.kind != "interrupted":
        print(outcome.trace.rstrip(), file=sys.stderr)
    end = (
        "stopped by a signal; the same command goes on from there"
        if outcome.kind == "interrupted"
        else f"the logs are in {run.logs}"
    )
    print(f"plast: {outcome.message}\nplast: {end}", file=sys.stderr, flush=True)
    return 1


def _table(run: RunFolder, request: EvaluationRequest) -> str:
    from launcher.model_table import model_tables
    from launcher.table import benchmark_tables, listed_paths

    rule = request.config.evaluate.matching
    names = list(request.models)
    tables = benchmark_tables(run, rule) if len(names) == 2 else model_tables(run, names[0], rule)
    paths: dict[str, Any] = {"results": run.results, "predictions": run.evaluation / "predictions"}
    return "\n\n".join([*tables, listed_paths(paths)])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
