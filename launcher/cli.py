"""The `plast` command: reads its arguments and hands on. Imports nothing heavy, so that help and refusals
come at once."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from plast_train.errors import UserError, nearest

STAGES = ("collect", "select", "train", "export", "evaluate", "analyse", "report")


class Parser(argparse.ArgumentParser):
    """Refuses with one message; abbreviated options are not accepted."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"plast {command}".strip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().rstrip()}")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Options and positional arguments in any order.

        Raises:
            UserError: wrong arguments; an unknown option is answered with the nearest one.
        """
        parsed, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            option = unknown[0].partition("=")[0]
            self.error(f"unknown option {option}{nearest(option, self._option_string_actions)}")
        return parsed


@dataclass(frozen=True)
class Command:
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def plast() -> NoReturn:
    """The command itself: `main`, and an end at once. Where torch is imported Python's own end takes seconds
    on a busy machine, and whoever waits for a failed run to restart it waits for them too."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 when done, 2 for what the user can mend, 1 otherwise."""
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"plast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plast: stopped", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in {"-h", "--help", "help"}:
        print(_overview())
        return 0 if arguments else 2
    if name == "--version":
        from importlib.metadata import version

        print(f"plast {version('plast')}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"'{name}' is no command{nearest(name, COMMANDS)} (see plast --help)")
    command = COMMANDS[name]
    parser = Parser(name, command.summary)
    command.add_arguments(parser)
    return command.run(parser.parse(arguments[1:]))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: plast COMMAND …",
            "",
            "Finds the layers of a vision-language model where languages diverge and trains only those.",
            "",
            *lines,
            "",
            "plast COMMAND --help explains one. Exit codes: 0 done, 2 you can mend it, 1 otherwise.",
        ]
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 1 or more")
    return int(text)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe (e.g. tiny) or a YAML file")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="replaces a value of the recipe"
    )


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--nproc",
        metavar="N",
        type=_count,
        help="ranks on this machine (default: one for each GPU, or one on the CPU)",
    )


def _run(stages: tuple[str, ...]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from launcher.commands.run import run_stages

        return run_stages(arguments.recipe, arguments.overrides, arguments.out, arguments.nproc, stages)

    return run


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="RECIPE|MODEL|RUN",
        help="with --benchmarks a model's folder, or a run's (its base and its export); else a recipe",
    )
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", help="replaces a value of the recipe"
    )
    parser.add_argument(
        "--benchmarks",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="NAME_LANG.tsv, .parquet, .json or a folder; NAME.jsonl (parallel questions with answers)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="the run's folder; with --benchmarks runs/evaluate-NAME"
    )
    parser.add_argument(
        "--nproc",
        metavar="N",
        type=_count,
        help="ranks on this machine (default: one for each GPU, or one on the CPU)",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.benchmarks:
        from launcher.commands.evaluate import run_evaluation

        return run_evaluation(
            arguments.target, arguments.benchmarks, arguments.overrides, arguments.out, arguments.nproc
        )
    if arguments.out is None:
        raise UserError(
            "evaluate: give --benchmarks FILE … for a model or a run, or --out RUN for a recipe's stage"
        )
    from launcher.commands.run import run_stages

    return run_stages(arguments.target, arguments.overrides, arguments.out, arguments.nproc, ("evaluate",))


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RECIPE|RUN", help="a recipe, or the folders of two or more runs")
    parser.add_argument(
        "others", metavar="section.key=value|RUN", nargs="*", help="replaces a value of the recipe; more runs"
    )
    parser.add_argument(
        "--out",
        metavar="RUN|FILE",
        type=Path,
        help="the run's folder; of several runs the page (comparison.html)",
    )
    parser.add_argument("--nproc", metavar="N", type=_count, help="ranks on this machine")


def _report(arguments: argparse.Namespace) -> int:
    runs = [Path(arguments.target), *map(Path, arguments.others)]
    if len(runs) > 1 and all((run / "config.yaml").is_file() for run in runs):
        from plast_train.comparison.publish import write_comparison

        print(write_comparison(runs, arguments.out or Path("comparison.html")))
        return 0
    if arguments.out is None:
        raise UserError("report: give --out RUN for a recipe's stage, or the folders of two or more runs")
    from launcher.commands.run import run_stages

    return run_stages(arguments.target, arguments.others, arguments.out, arguments.nproc, ("report",))


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _plan(arguments: argparse.Namespace) -> int:
    from launcher.commands.plan import run_plan

    return run_plan(arguments.recipe, arguments.overrides, arguments.json)


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run's folder")
    parser.add_argument("--nodes", metavar="N", type=_count, help="nodes of the one job")
    parser.add_argument(
        "--stages",
        metavar="STAGE=N,…",
        help="jobs of different sizes that wait for each other, e.g. collect=1,train=4: the nodes of a stage "
        "and of those that follow it",
    )
    parser.add_argument("--nproc", metavar="N", type=_count, help="ranks a node (default: one for each GPU)")
    for option in ("gpus-per-node", "time", "partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{option}", metavar=option.upper(), help=f"sbatch's --{option}")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")


def _submit(arguments: argparse.Namespace) -> int:
    from launcher.commands.submit import SBATCH_OPTIONS, submit

    given = {option: getattr(arguments, option.replace("-", "_")) for option in SBATCH_OPTIONS}
    return submit(
        arguments.recipe,
        arguments.overrides,
        arguments.out,
        arguments.nodes,
        arguments.stages,
        arguments.nproc,
        {option: value for option, value in given.items() if value is not None},
        arguments.dry_run,
    )


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def _status(arguments: argparse.Namespace) -> int:
    from launcher.commands.status import run_status

    return run_status(arguments.run, arguments.json)


def _attention_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a trained run")
    parser.add_argument("--question", metavar="ID", required=True, help="a record's id (RUN/records.jsonl)")
    parser.add_argument(
        "--layer",
        metavar="L",
        type=_layer,
        nargs="+",
        default=[],
        help="decoder layers, 0-based (the middle)",
    )
    parser.add_argument(
        "--language", metavar="LANG", nargs="+", default=[], help="languages (all of the run)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="for the pictures (RUN/analysis/attention)")


def _layer(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a layer's number, 0 or more")
    return int(text)


def _attention(arguments: argparse.Namespace) -> int:
    from launcher.commands.attention import draw_attention

    return draw_attention(
        arguments.run, arguments.question, arguments.language, arguments.layer, arguments.out
    )


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of evaluated runs")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="also write the tables (CSV, LaTeX) and the figure (PNG, SVG)"
    )


def _compare(arguments: argparse.Namespace) -> int:
    from plast_train.comparison.publish import compare_runs

    print(compare_runs(arguments.runs, arguments.out))
    return 0


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument(
        "--seeds", metavar="N", type=_count, help="train each variant so often (default: ablate.seeds, 3)"
    )
    parser.add_argument(
        "--variants", metavar="NAME,…", default="", help="only these beside the recipe's own selection"
    )


def _ablate(arguments: argparse.Namespace) -> int:
    from launcher.commands.ablate import run_ablation

    names = [name for name in arguments.variants.split(",") if name]
    return run_ablation(
        arguments.recipe, arguments.overrides, arguments.out, arguments.nproc, arguments.seeds, names
    )


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="RUN", type=Path, default=Path("runs/demo"), help="the run's folder (runs/demo)"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from launcher.commands.run import run_stages

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same figures on every machine
    return run_stages("tiny", [], arguments.out, min(2, os.cpu_count() or 1), STAGES)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="check all machines together: start it on each of them at once, with NNODES, NODE_RANK, "
        "MASTER_ADDR and MASTER_PORT set",
    )
    parser.add_argument("--out", metavar="RUN", type=Path, help="with --distributed: the run's folder (.)")
    parser.add_argument("--nproc", metavar="N", type=_count, help="with --distributed: ranks on this machine")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=_count, help="with --distributed: for a late machine (40)"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.distributed:
        from launcher.doctor.machines import run_distributed_doctor

        return run_distributed_doctor(arguments.out or Path(), arguments.nproc, arguments.wait or 40)
    given = [name for name in ("out", "nproc", "wait") if getattr(arguments, name) is not None]
    if given:
        raise UserError(f"--{given[0]} goes with --distributed: plast doctor alone checks this machine only")
    from launcher.doctor.machine import run_doctor

    return run_doctor()


def _make_tiny_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new model's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        type=Path,
        help="folder of another tokenizer.model (with random weights)",
    )
    parser.add_argument("--random-weights", action="store_true", help="do not train; ready in seconds")


def _make_tiny(arguments: argparse.Namespace) -> int:
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: is already there; give a new folder")
    if arguments.tokenizer and not arguments.random_weights:
        raise UserError(
            "--tokenizer goes with --random-weights: the trained model has a tokenizer of its own"
        )
    from plast_train.run_folder import publish_folder
    from plast_train.tiny.base import make_tiny

    with tempfile.TemporaryDirectory(dir=arguments.out.absolute().parent, prefix=".make-tiny-") as folder:
        unfinished = Path(folder) / "model"
        make_tiny(unfinished, arguments.seed, arguments.tokenizer, arguments.random_weights)
        publish_folder(unfinished, arguments.out)
    print(arguments.out)
    return 0


STAGE_SUMMARIES = {
    "collect": "record which FFN neurons are active for each question in each language",
    "select": "choose the layers that are specific to languages",
    "train": "train the selected layers to translate questions into English",
    "export": "write the trained model as a Hugging Face folder",
    "evaluate": "score the base and the trained model on the benchmarks",
    "analyse": "attention maps, knocked-out layers, stability, representations, neurons of languages",
    "report": "write one HTML page about the run",
}
COMMANDS = {
    "run": Command("all stages in order, skipping what is done", _run_arguments, _run(STAGES)),
    **{
        stage: Command(f"only this stage: {summary}", _run_arguments, _run((stage,)))
        for stage, summary in STAGE_SUMMARIES.items()
    },
    "evaluate": Command(
        "score a model, or a run's base and trained model, on benchmarks", _evaluate_arguments, _evaluate
    ),
    "report": Command(
        "write one HTML page about the run, or one that compares several", _report_arguments, _report
    ),
    "plan": Command("memory, time and traffic of a run, before it costs anything", _plan_arguments, _plan),
    "submit": Command("submit the run to Slurm, as one job or a chain", _submit_arguments, _submit),
    "status": Command(
        "what a run has done, how far it is, and why it was restarted", _status_arguments, _status
    ),
    "attention": Command(
        "draw where in its image the replies to a question come from", _attention_arguments, _attention
    ),
    "compare": Command("several runs side by side", _compare_arguments, _compare),
    "ablate": Command(
        "the recipe's selection against others, LoRA and full fine-tuning", _ablate_arguments, _ablate
    ),
    "doctor": Command("check this machine and say what to mend", _doctor_arguments, _doctor),
    "demo": Command("the whole method on the embedded tiny model, on CPU", _demo_arguments, _demo),
    "make-tiny": Command("make a tiny model like the embedded one", _make_tiny_arguments, _make_tiny),
}

if __name__ == "__main__":
    plast()
