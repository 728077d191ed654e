"""`plast evaluate`: a recipe's stage, or a model or run on `--benchmarks FILE …`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from launcher.arguments import PATH, RECIPE_HELP, Command, nproc, overrides
from launcher.commands.run import report_failure, run_stages
from launcher.processes.lock import only_launcher
from launcher.processes.torchrun import Machines, start_ranks
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, publish_text, read_json, read_object

if TYPE_CHECKING:
    from plast_train.config import EvaluationConfig, ModelConfig
    from plast_train.evaluation.request import EvaluationRequest

RANKS = "plast_train.evaluation.standalone"
# What follows `--benchmarks a.tsv` may be a file or an override, e.g. model.dtype=float32.
_OVERRIDE = re.compile(r"(model|evaluate)\.\w+=.*", re.DOTALL)


@click.command(
    cls=Command,
    epilog="With --benchmarks: a model's folder, or a run's (its base and its export). Without: a recipe and "
    f"--out RUN. {RECIPE_HELP}",
)
@click.argument("target", metavar="RECIPE|MODEL|RUN")
@overrides
@click.option(
    "--benchmarks",
    metavar="FILE...",
    multiple=True,
    help="NAME_LANG.tsv, .parquet, .json or a folder; NAME.jsonl (parallel questions with answers)",
)
@click.option(
    "--out", metavar="DIR", type=PATH, help="the run's folder; with --benchmarks runs/evaluate-NAME"
)
@nproc
def evaluate(
    target: str,
    overrides: tuple[str, ...],
    benchmarks: tuple[str, ...],
    out: Path | None,
    nproc: int | None,
) -> int:
    if benchmarks:
        return run_evaluation(target, benchmarks, overrides, out, nproc)
    if out is None:
        raise UserError(
            "evaluate: give --benchmarks FILE … for a model or a run, or --out RUN for a recipe's stage"
        )
    return run_stages(target, overrides, out, nproc, ("evaluate",))


def run_evaluation(
    target: str, benchmarks: Sequence[str], overrides: Sequence[str], out: Path | None, nproc: int | None
) -> int:
    """Evaluates a model, or a run's base and trained model, on benchmarks. Returns the exit code, 0 or 1.

    The same command again resumes where it was stopped; with other benchmarks it adds to what is in `out`.

    Raises:
        UserError: what the user can fix; found before ranks start, it leaves `out` as it was.
    """
    from launcher.checks.machine import check_ranks, check_writable
    from plast_train.evaluation.request import request_path
    from plast_train.runtime.devices import count_gpus

    overrides = [*overrides, *(b for b in benchmarks if _OVERRIDE.fullmatch(b))]
    files = [_absolute(b) for b in benchmarks if not _OVERRIDE.fullmatch(b)]
    run = RunFolder(out or Path("runs") / f"evaluate-{_model_name(target)}")
    machines = Machines.of(os.environ)
    check_writable(run.path)
    request = _check_evaluation(target, files, overrides, run)
    gpus = count_gpus()
    nproc = nproc or max(1, gpus)
    check_ranks(nproc, gpus, os.cpu_count() or 1)
    written = request_path(run)
    is_same = written.exists() and read_json(written) == request.model_dump(mode="json")
    if is_same and run.results.exists():
        print("evaluate: done before, skipped", flush=True)
    else:
        if machines.is_first:
            with only_launcher(run):
                # Results of another request must not be taken for this one's if the ranks fail.
                run.results.unlink(missing_ok=True)
                publish_text(written, request.model_dump_json(indent=1) + "\n")
                outcome = start_ranks(run, [], nproc, gpus, machines, RANKS)
        else:
            outcome = start_ranks(run, [], nproc, gpus, machines, RANKS)
        if outcome.kind != "done":
            return report_failure(outcome, run, machines.is_first)
    if machines.is_first:
        print(_table(run, request))
    return 0


def _model_name(target: str) -> str:
    """The last part of a folder's or a hub model's name."""
    return Path(target).expanduser().absolute().name


def _check_evaluation(
    target: str, files: Sequence[str], overrides: Sequence[str], run: RunFolder
) -> EvaluationRequest:
    """The request for the ranks. Raises UserError for everything that can be wrong with it."""
    from plast_train.config import override_evaluation

    if run.config.exists():
        raise UserError(
            f"--out {run.path} is the folder of a run, which has its own evaluation; give another folder"
        )
    source = RunFolder(Path(target).expanduser())
    is_run = source.config.is_file() and source.base.is_file()
    config = override_evaluation(_config_of(target, source if is_run else None), overrides)
    root = config.evaluate.image_root
    evaluate = config.evaluate.model_copy(
        update={"benchmarks": list(files), "image_root": root and _absolute(root)}
    )
    config = config.model_copy(update={"evaluate": evaluate})
    for file in files:
        if not Path(file).exists():
            raise UserError(f"--benchmarks: {file} does not exist; correct the path")
    folders = _folders(target, source if is_run else None, config.model)
    _check_out(run, folders)
    return _describe(config, folders)


def _config_of(target: str, source: RunFolder | None) -> EvaluationConfig:
    """A run's own settings; for a model the defaults, with the precision that its weights are in."""
    from plast_train.config import EvaluationConfig, ModelConfig, load_config, recipes

    if source is not None:
        config = load_config(str(source.config))
        return EvaluationConfig(model=config.model, evaluate=config.evaluate)
    if target in recipes() and target != "tiny":  # the tiny recipe's name is also its model's
        raise UserError(f"'{target}' is a recipe; --benchmarks needs the folder of a model or a run")
    from plast_train.lvlm.loading import resolve_base

    model = ModelConfig(path=target)
    stored = _stored_dtype(read_object(resolve_base(model) / "config.json"))
    dtype: Literal["bfloat16", "float32"] = "float32" if stored == "float32" else "bfloat16"
    return EvaluationConfig(model=model.model_copy(update={"dtype": dtype}))


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    """The precision of a model's weights by its config.json, under either of transformers' names."""
    trees = (config, config.get("text_config", {}))
    found = (tree.get(name) for tree in trees for name in ("dtype", "torch_dtype"))
    return next((dtype for dtype in found if dtype), None)


def _folders(target: str, source: RunFolder | None, model: ModelConfig) -> dict[str, Path]:
    """The models by name. Raises UserError for one that is missing or not supported."""
    from plast_train.lvlm.loading import check_base, resolve_base
    from plast_train.scoring.accuracies import BASE, TRAINED

    if source is None:
        return {_model_name(target): resolve_base(model)}
    if not source.export.is_dir():
        raise UserError(
            f"{source.export} does not exist; finish the run (plast export), or give its base model"
        )
    folders = {BASE: Path(read_json(source.base)["path"]), TRAINED: source.export}
    for folder in folders.values():
        check_base(folder)
    return folders


def _check_out(run: RunFolder, folders: dict[str, Path]) -> None:
    """Raises UserError where another model's evaluation is in `run`."""
    from plast_train.evaluation.request import request_path

    if request_path(run).exists():
        before = {name: model["path"] for name, model in read_json(request_path(run))["models"].items()}
        now = {name: str(folder.resolve()) for name, folder in folders.items()}
        if before != now:
            raise UserError(
                f"--out {run.path} holds the evaluation of {', '.join(before.values())}; give another folder"
            )


def _describe(config: EvaluationConfig, folders: dict[str, Path]) -> EvaluationRequest:
    """Reads the benchmarks and checks their prompts against each model."""
    from plast_train.evaluation.request import EvaluationRequest
    from plast_train.lvlm.architectures import read_architecture
    from plast_train.lvlm.families import family_of
    from plast_train.lvlm.loading import describe_base, load_text_side, make_prompter
    from plast_train.scoring.questions import check_prompts
    from plast_train.tasks.registry import benchmark_hash, benchmarks_of

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


def _table(run: RunFolder, request: EvaluationRequest) -> str:
    from launcher.table import benchmark_tables, listed_paths, model_tables

    rule = request.config.evaluate.matching
    names = list(request.models)
    tables = benchmark_tables(run, rule) if len(names) == 2 else model_tables(run, names[0], rule)
    paths: dict[str, Any] = {"results": run.results, "predictions": run.evaluation / "predictions"}
    return "\n\n".join([*tables, listed_paths(paths)])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
