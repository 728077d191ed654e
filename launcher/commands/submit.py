"""`plast submit`: renders one self-contained script for each job and passes it to sbatch.

A script consists of the head of slurm/plast_7b.sh, the options and variables given here, and slurm/job.sh, so
that a submitted job does not change when the checkout does. Values reach sbatch and the shell only as checked
options and quoted words.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from launcher.arguments import RECIPE_HELP, Command, arguments, out, recipe
from plast_train.errors import UserError, nearest
from plast_train.run_folder import STAGES

# Passed on to sbatch under its own names.
SBATCH_OPTIONS = ("gpus-per-node", "time", "partition", "account", "qos", "constraint")
# Variables of slurm/job.sh that are taken from the environment of `plast submit`.
PASSED_ON = ("PLAST_CONTAINER", "PLAST_MOUNTS", "PLAST_DOCTOR", "PLAST_MAX_RESTARTS")
# Enough for `a100&nvlink`, `[rack1|rack2]`, `1-12:00:00`, `h100:8`; nothing that ends a line or a word.
OPTION_VALUE = re.compile(r"[\w.,:=@+&|*()\[\]-]+", re.ASCII)


@dataclass(frozen=True)
class Job:
    """One Slurm job: the plast commands it runs, in order, on how many nodes (None: sbatch's default)."""

    name: str
    commands: tuple[str, ...]
    nodes: int | None


@click.command(cls=Command, epilog=RECIPE_HELP)
@recipe
@out
@click.option("--nodes", metavar="N", type=click.IntRange(min=1), help="nodes of the one job")
@click.option(
    "--stages",
    metavar="STAGE=N,...",
    help="jobs of different sizes that wait for each other, e.g. collect=1,train=4: the nodes of a stage "
    "and of those that follow it",
)
@click.option(
    "--nproc", metavar="N", type=click.IntRange(min=1), help="ranks a node (default: one for each GPU)"
)
@arguments(
    *(click.option(f"--{name}", metavar=name.upper(), help=f"sbatch's --{name}") for name in SBATCH_OPTIONS)
)
@click.option("--dry-run", is_flag=True, help="print what would be submitted")
def submit(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    nodes: int | None,
    stages: str | None,
    nproc: int | None,
    dry_run: bool,
    **sbatch: str | None,
) -> int:
    """
    Raises:
        UserError: a wrong recipe, override, option or size, or sbatch refuses; nothing stays submitted then.
    """
    from plast_train.config import load_config
    from plast_train.runtime.deepspeed_config import load_deepspeed_config

    # A wrong value is found now rather than when the job has waited in the queue.
    load_deepspeed_config(load_config(recipe, overrides))
    if Path(recipe).is_file():
        recipe = str(Path(recipe).absolute())
    jobs = plan_jobs(recipe, nodes, stages)
    options = {name.replace("_", "-"): value for name, value in sbatch.items() if value is not None}
    variables = {
        "PLAST_RECIPE": recipe,
        "PLAST_OVERRIDES": shlex.join(overrides),
        "PLAST_RUN": str(out.absolute()),
        "PLAST_ENV": os.environ.get("PLAST_ENV", sys.prefix),
        "PLAST_NPROC": str(nproc or ""),
        **{name: os.environ.get(name, "") for name in PASSED_ON},
    }
    scripts = [render(job, options, variables) for job in jobs]
    if dry_run:
        for number, script in enumerate(scripts):
            after = f"the number of job {number}" if number else None
            if len(scripts) > 1:
                print(f"### job {number + 1}: {' '.join(sbatch_command(after))}")
            print(script)
        return 0
    submit_all(jobs, scripts)
    print(f"plast status {out} shows its progress; job N's log is NAME-N.out in this folder")
    return 0


def plan_jobs(recipe: str, nodes: int | None, sizes: str | None) -> list[Job]:
    """One job for everything, or one for each stage that `sizes` ("collect=1,train=4") names, together with
    the stages that follow it up to the next one named.

    Raises:
        UserError: `sizes` is not of the form STAGE=NODES,… in the order of the stages.
    """
    name = "plast-" + re.sub(r"[^\w.-]", "_", Path(recipe).stem, flags=re.ASCII)
    if sizes is None:
        return [Job(name, ("run",), nodes)]
    if nodes is not None:
        raise UserError("--nodes sizes the one job, --stages each of several: give one of them")
    named = []
    for part in sizes.split(","):
        stage, _, count = part.partition("=")
        if stage not in STAGES:
            raise UserError(f"--stages: unknown stage '{stage}'{nearest(stage, STAGES)}")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"--stages: '{part}' must be STAGE=NODES, e.g. collect=1,train=4")
        named.append((stage, int(count)))
    starts = [STAGES.index(stage) for stage, _ in named]
    if starts != sorted(set(starts)):
        raise UserError(f"--stages {sizes}: name each stage once, in this order: {', '.join(STAGES)}")
    ends = [*starts[1:], len(STAGES)]
    jobs = []
    for (stage, num_nodes), start, end in zip(named, starts, ends, strict=True):
        # The last job does all that is left in one launch, which loads the model once.
        commands = ("run",) if end == len(STAGES) else STAGES[start:end]
        jobs.append(Job(f"{name}-{stage}", commands, num_nodes))
    return jobs


def render(job: Job, options: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """The script of one job.

    Raises:
        UserError: a value that a line of the head or a variable cannot hold.
    """
    wanted = {"job-name": job.name, **({"nodes": str(job.nodes)} if job.nodes else {}), **options}
    for option, value in wanted.items():
        if not OPTION_VALUE.fullmatch(value):
            raise UserError(f"--{option} '{value}' has a character that no sbatch option takes")
    variables = {**variables, "PLAST_STAGES": " ".join(job.commands)}
    for name, value in variables.items():
        if not value.isprintable():
            raise UserError(f"{name}={value!r}: a variable of the job must be one line of text")
    lines = _text("plast_7b.sh").splitlines()
    head = [line for line in lines if line.startswith("#SBATCH ") and "--job-name" not in line]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *head,
            *(f"#SBATCH --{option}={value}" for option, value in wanted.items()),
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items() if value),
            _text("job.sh"),
        ]
    )


def sbatch_command(after: str | None) -> list[str]:
    """sbatch's argument list for a script on its standard input; `after` is the job to wait for."""
    # Without the second option a job whose predecessor failed would wait for ever.
    waiting = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", *waiting]


def submit_all(jobs: Sequence[Job], scripts: Sequence[str]) -> None:
    """Raises UserError if one is refused; those before it are then cancelled."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch was not found; submit on a login node of the cluster, or use --dry-run")
    numbers: list[str] = []
    for job, script in zip(jobs, scripts, strict=True):
        command = sbatch_command(numbers[-1] if numbers else None)
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        if done.returncode != 0:
            if numbers:
                subprocess.run(["scancel", *numbers], check=False)
            raise UserError(f"sbatch refused {job.name}: {done.stderr.strip()}")
        numbers.append(done.stdout.strip().partition(";")[0])
        nodes = f" on {job.nodes} node{'s' if job.nodes > 1 else ''}" if job.nodes else ""
        print(f"job {numbers[-1]}: {', '.join(job.commands)}{nodes} ({job.name})", flush=True)


def _text(name: str) -> str:
    return (resources.files("slurm") / name).read_text(encoding="utf-8")
