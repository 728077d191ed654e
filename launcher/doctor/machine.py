"""`plast doctor`: what this machine has, what is missing, and how to fix it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from launcher.environment import installed_version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
NEEDED = ("torch", "transformers", "deepspeed", "tokenizers", "safetensors", "sentencepiece", "pydantic")
GIGABYTE = 10**9


@dataclass(frozen=True)
class Finding:
    """`remedy` is empty where the level is ok."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':21}→ {self.remedy}" if self.remedy else ""
        return f"{self.level:4}  {self.subject:13}  {self.text}{remedy}"


def run_doctor() -> int:
    """Prints a line for each finding. Returns 2 if something fails, else 0."""
    failed = False
    for check in (python, packages, devices, communication, compiler, disk, slurm):
        if failed and check is devices:
            break  # the rest needs the packages
        for finding in check():
            print(finding, flush=True)
            failed = failed or finding.level == "fail"
    return 2 if failed else 0


def python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} ({sys.executable})")


def packages(constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """Against the versions this release was tested with, where its checkout is at hand."""
    tested = tested_versions(constraints)
    for name in NEEDED:
        found, wanted = installed_version(name), tested.get(name)
        install = f"pip install {name}{'==' + wanted if wanted else ''}"
        if found is None:
            yield Finding("fail", name, "is not installed", install)
        elif wanted and found.partition("+")[0] != wanted:
            yield Finding("warn", name, f"{found}, but {wanted} is the tested version", install)
        else:
            yield Finding("ok", name, found)


def tested_versions(constraints: Path) -> dict[str, str]:
    """Package → version, of a file of `name==version` lines; empty if there is none."""
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name.lower(): pinned for name, equals, pinned in pairs if equals}


def devices() -> Iterator[Finding]:
    from plast_train.runtime.devices import cuda_version, describe_gpus, has_bfloat16

    memory = psutil.virtual_memory().total
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, {memory / GIGABYTE:.0f} GB memory")
    gpus = describe_gpus()
    for index, gpu in enumerate(gpus):
        size = f"{gpu['memory_bytes'] / GIGABYTE:.0f} GB"
        yield Finding("ok", f"gpu {index}", f"{gpu['name']}, {size}, compute capability {gpu['capability']}")
    if gpus and not has_bfloat16():
        yield Finding("warn", "bfloat16", "this GPU has none in hardware", "use model.dtype=float32")
    elif gpus:
        yield Finding("ok", "bfloat16", "in hardware")
    elif cuda := cuda_version():
        text = f"torch is built for CUDA {cuda}, but no GPU is visible"
        remedy = "check nvidia-smi and CUDA_VISIBLE_DEVICES; start a container with --gpus all"
        yield Finding("warn", "gpu", text, remedy)
    else:
        yield Finding("ok", "gpu", "none; ranks run on the CPU, enough for the tiny model (plast demo)")


def communication() -> Iterator[Finding]:
    """What ranks exchange through: NCCL between GPUs, else gloo, which needs this host's name to resolve."""
    from plast_train.runtime.devices import count_gpus, nccl_version

    num_gpus = count_gpus()
    if not num_gpus:
        yield Finding("ok", "gloo", "between CPU ranks")
    elif nccl := nccl_version():
        yield Finding("ok", "nccl", nccl)
    else:
        yield Finding("fail", "nccl", "torch has none", "install a torch build with CUDA")
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        remedy = "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to an interface"
        yield Finding("warn", "hostname", f"{socket.gethostname()} does not resolve", remedy)
    shared = Path("/dev/shm")
    # Ranks of one machine exchange through it; Docker's default is 64 MB.
    if num_gpus > 1 and shared.is_dir() and shutil.disk_usage(shared).total < GIGABYTE:
        remedy = "start the container with --shm-size=8g"
        yield Finding("warn", "/dev/shm", "smaller than 1 GB; NCCL may fail", remedy)


def compiler() -> Iterator[Finding]:
    """On a GPU Triton compiles flex attention; DeepSpeed compiles its optimizer for the CPU."""
    from plast_train.runtime.devices import count_gpus

    if count_gpus():
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # as Triton searches
        if found := next(filter(shutil.which, names), None):
            yield Finding("ok", "C compiler", f"{found}, for Triton")
        else:
            text = f"no {' or '.join(names)} on the path; attention on a GPU needs it (Triton)"
            yield Finding("fail", "C compiler", text, "apt-get install gcc, or name another in CC")
    # The ranks find what lies beside Python also where the environment is not activated (`rank_environment`).
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    missing = [name for name in ("ninja", "g++") if shutil.which(name, path=path) is None]
    if missing:
        text = f"no {' and no '.join(missing)}; only train.deepspeed=zero3_offload needs it"
        yield Finding("warn", "compiler", text, "apt-get install g++; pip install ninja")
    else:
        yield Finding("ok", "compiler", "g++ and ninja, for train.deepspeed=zero3_offload")


def disk() -> Iterator[Finding]:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("fail", "disk", f"no permission to write in {folder}", "change to a folder of your own")
    elif free < 5 * GIGABYTE:
        text = f"{free / GIGABYTE:.1f} GB free in {folder}"
        yield Finding("warn", "disk", text, "a 7B run needs about 60 GB; give --out on another disk")
    else:
        yield Finding("ok", "disk", f"{free / GIGABYTE:.0f} GB free in {folder}")


def slurm() -> Iterator[Finding]:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "?")
        yield Finding("ok", "slurm", f"inside job {job} on {nodes} nodes")
    elif shutil.which("sbatch"):
        yield Finding("ok", "slurm", "sbatch is installed; this machine is not inside a job")
    else:
        yield Finding("ok", "slurm", "none on this machine")
