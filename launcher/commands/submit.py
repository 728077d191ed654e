"""`plast submit`: renders one self-contained job script for each job and hands it to sbatch.

A script is the head of slurm/plast_7b.sh, the options and variables given here, and slurm/job.sh, so that a
submitted job does not change when the checkout does. Values reach sbatch and the shell only as checked
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

from plast_train.config import load_config
from plast_train.errors import UserError, nearest
from plast_train.runtime.deepspeed_config import load_deepspeed_config
from plast_train.stages import STAGES

# What sbatch is told, by its own names.
SBATCH_OPTIONS = ("gpus-per-node", "time", "partition", "account", "qos", "constraint")
# Variables of slurm/job.sh that are taken from the environment.
TAKEN_OVER = ("PLAST_CONTAINER", "PLAST_MOUNTS", "PLAST_DOCTOR", "PLAST_MAX_RESTARTS")
# Enough for `a100&nvlink`, `[rack1|rack2]`, `1-12:00:00`, `h100:8`; nothing that ends a line or a word.
OPTION_VALUE = re.compile(r"[\w.,:=@+&|*()\[\]-]+", re.ASCII)


@dataclass(frozen=True)
class Job:
    """One Slurm job: the plast commands it runs, in order, on how many nodes (None: what sbatch does)."""

    name: str
    commands: tuple[str, ...]
    nodes: int | None


def submit(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    nodes: int | None,
    sizes: str | None,
    nproc: int | None,
    options: Mapping[str, str],
    dry_run: bool,
) -> int:
    """Submits the run as one job, or with `sizes` ("collect=1,train=4") as jobs that wait for each other, or
    prints what would be submitted. Returns 0.

    Raises:
        UserError: a wrong recipe, override, option or size, or sbatch refuses; nothing stays submitted then.
    """
    load_deepspeed_config(load_config(recipe, overrides))
    if Path(recipe).is_file():
        recipe = str(Path(recipe).absolute())
    jobs = plan_jobs(recipe, nodes, sizes)
    variables = {
        "PLAST_RECIPE": recipe,
        "PLAST_OVERRIDES": shlex.join(overrides),
        "PLAST_RUN": str(out.absolute()),
        "PLAST_ENV": os.environ.get("PLAST_ENV", sys.prefix),
        "PLAST_NPROC": str(nproc or ""),
        **{name: os.environ.get(name, "") for name in TAKEN_OVER},
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
    print(f"plast status {out} tells how it goes; job N's log is here, in NAME-N.out")
    return 0


def plan_jobs(recipe: str, nodes: int | None, sizes: str | None) -> list[Job]:
    """One job for everything, or one for each stage that `sizes` names, together with the stages that follow
    it up to the next one named.

    Raises:
        UserError: `sizes` is not of the form STAGE=NODES,… in the order of the stages.
    """
    name = "plast-" + re.sub(r"[^\w.-]", "_", Path(recipe).stem, flags=re.ASCII)
    if sizes is None:
        return [Job(name, ("run",), nodes)]
    if nodes is not None:
        raise UserError("--nodes sizes the one job, --stages each of several: give one of them")
    named = [_stage_and_nodes(part) for part in sizes.split(",")]
    starts = [STAGES.index(stage) for stage, _ in named]
    if starts != sorted(set(starts)):
        raise UserError(f"--stages {sizes}: name each stage once, in this order: {', '.join(STAGES)}")
    ends = [*starts[1:], len(STAGES)]
    jobs = []
    for (stage, count), start, end in zip(named, starts, ends, strict=True):
        # The last job does all that is left in one launch, which loads the model once.
        commands = ("run",) if end == len(STAGES) else STAGES[start:end]
        jobs.append(Job(f"{name}-{stage}", commands, count))
    return jobs


def _stage_and_nodes(part: str) -> tuple[str, int]:
    stage, _, nodes = part.partition("=")
    if stage not in STAGES:
        raise UserError(f"--stages: '{stage}' is no stage{nearest(stage, STAGES)}")
    if not nodes.isdecimal() or int(nodes) < 1:
        raise UserError(f"--stages: '{part}' must be STAGE=NODES, e.g. collect=1,train=4")
    return stage, int(nodes)


def render(job: Job, options: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """The script of one job.

    Raises:
        UserError: a value that a line of the head or a variable cannot hold.
    """
    wanted = {"job-name": job.name, **({"nodes": str(job.nodes)} if job.nodes else {}), **options}
    for option, value in wanted.items():
        if not OPTION_VALUE.fullmatch(value):
            raise UserError(f"--{option} '{value}': holds a character that sbatch's options do not have")
    variables = {**variables, "PLAST_STAGES": " ".join(job.commands)}
    for name, value in variables.items():
        if not value.isprintable():
            raise UserError(f"{name}={value!r}: a job's variable holds one line of text")
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
    # A job whose predecessor failed would else wait for ever.
    waiting = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", *waiting]


def submit_all(jobs: Sequence[Job], scripts: Sequence[str]) -> None:
    """Raises UserError if one is refused; those before it are then cancelled."""
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch here: submit on a login node of the cluster, or see --dry-run")
    numbers: list[str] = []
    for job, script in zip(jobs, scripts, strict=True):
        command = sbatch_command(numbers[-1] if numbers else None)
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        if done.returncode != 0:
            if numbers:
                subprocess.run(["scancel", *numbers], check=False)
            raise UserError(f"sbatch refuses {job.name}: {done.stderr.strip()}")
        numbers.append(done.stdout.strip().partition(";")[0])
        nodes = f" on {job.nodes} node{'s' if job.nodes > 1 else ''}" if job.nodes else ""
        print(f"job {numbers[-1]}: {', '.join(job.commands)}{nodes} ({job.name})", flush=True)


def _text(name: str) -> str:
    return (resources.files("slurm") / name).read_text(encoding="utf-8")
