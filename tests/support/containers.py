"""The image and its containers without a Docker daemon, for tests: debootstrap makes the base, buildah builds
the Dockerfile on it, podman runs it. Needs root and Debian's buildah, debootstrap, podman and runc.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = ("buildah", "debootstrap", "podman", "runc")
CERTIFICATES = Path("/etc/ssl/certs")
BASE, IMAGE = "localhost/plast-base", "localhost/plast"
PODMAN = ("--cgroup-manager=cgroupfs", "--events-backend=none")
SETTINGS = (
    *("--runtime=runc", "--cgroups=no-conmon", "--network=host"),
    # podman's own limits are higher than what root may set on some machines.
    *("--ulimit=nofile=8192", "--ulimit=nproc=8192"),
    "--no-healthcheck",  # systemd would ask for health
)


def missing() -> str:
    """Why no image can be built here; empty if one can."""
    if os.geteuid() != 0:
        return "building the image without a Docker daemon needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}: apt-get install {' '.join(PROGRAMS)}" if absent else ""


class Images:
    """A store of images in a folder. What is in there already is built on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def store(self) -> list[str]:
        """Options that lead buildah and podman here."""
        return [f"--root={self.folder}/store", f"--runroot={self.folder}/run", "--storage-driver=overlay"]

    def podman(self, *arguments: str, check: bool = True) -> str:
        """What it prints."""
        command = ["podman", *self.store(), *PODMAN, *arguments]
        return subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True).stdout.strip()

    def make_base(self) -> None:
        """A Debian 12 with nothing in it but certificates."""
        if self.podman("images", "--quiet", BASE):
            return
        system = self.folder / "base"
        shutil.rmtree(system, ignore_errors=True)
        say = ["--variant=minbase", "--include=ca-certificates", "bookworm"]
        subprocess.run(["debootstrap", *say, str(system)], check=True, stdout=sys.stderr)
        # Published images of Debian come without these either.
        left_out = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        with subprocess.Popen(["tar", "-C", system, *left_out, "-c", "."], stdout=subprocess.PIPE) as tar:
            command = ["podman", *self.store(), "import", "-", BASE]
            subprocess.run(command, stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
        shutil.rmtree(system)

    def build(self) -> None:
        """The CPU image, from this checkout."""
        arguments = {"BASE_IMAGE": BASE, "COMPILER": ""}
        with tempfile.TemporaryDirectory() as folder:
            configuration = Path(folder) / "pip.conf"
            configuration.write_text(pip_configuration())
            subprocess.run(
                [
                    *("buildah", *self.store(), "bud", "--layers", "--isolation=chroot", "--network=host"),
                    *("--format=docker", f"--tag={IMAGE}", f"--file={ROOT}/docker/Dockerfile"),
                    *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                    f"--volume={configuration}:/etc/pip.conf:ro",
                    *(f"--volume={path}:{path}:ro" for path in local_indexes(pip_configuration())),
                    *([f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.is_dir() else []),
                    str(ROOT),
                ],
                check=True,
                stdout=sys.stderr,
            )

    def inspect(self) -> dict[str, Any]:
        tree: list[dict[str, Any]] = json.loads(self.podman("image", "inspect", IMAGE))
        return tree[0]

    def start(self, name: str, runs: Path, *arguments: str, options: Sequence[str] = ()) -> Container:
        """A container with `runs` as /runs, in the background."""
        own = ["--detach", f"--name={name}", f"--volume={runs}:/runs"]
        self.podman("run", *SETTINGS, *own, *options, IMAGE, *arguments)
        return Container(self, name)

    def refusal(self) -> str:
        """Why this machine runs no container at all, not even of the base; empty if it does."""
        try:
            self.make_base()
        except subprocess.CalledProcessError as error:
            return f"no base can be made on this machine: {error}"
        command = ["podman", *self.store(), *PODMAN, "run", *SETTINGS, "--rm", BASE, "true"]
        done = subprocess.run(command, capture_output=True, text=True)
        return f"no container runs on this machine: {done.stderr.strip()}" if done.returncode else ""

    def close(self) -> None:
        """Ends the containers and takes away the mounts that the overlay driver leaves behind."""
        self.podman("rm", "--all", "--force", "--time=0", check=False)
        for mount in [*self.folder.glob("store/overlay/*/merged"), self.folder / "store" / "overlay"]:
            subprocess.run(["umount", str(mount)], check=False, stderr=subprocess.DEVNULL)


class Container:
    def __init__(self, images: Images, name: str) -> None:
        self.images, self.name = images, name

    def stop(self, seconds: int) -> None:
        """As `docker stop`: SIGTERM to process 1, and SIGKILL after that time."""
        self.images.podman("stop", f"--time={seconds}", self.name)

    def wait(self) -> int:
        """The exit code."""
        return int(self.images.podman("wait", self.name))

    def run(self, *command: str) -> str:
        """What a command in the running container prints."""
        return self.images.podman("exec", self.name, *command)

    def said(self) -> str:
        command = ["podman", *self.images.store(), "logs", self.name]
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout


def pip_configuration() -> str:
    """This machine's settings of pip, from files and environment, as one file: the build takes packages from
    where this Python's pip does, and nothing of that is in the image."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    values: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        values[name.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def local_indexes(configuration: str) -> Iterator[Path]:
    """Files and folders that a pip configuration names; of an index, the files that lie beside it too."""
    for name in re.findall(r"(?:file://|(?<=\s))(/\S+)", configuration):
        path = Path(name)
        if path.exists() and CERTIFICATES not in path.parents:
            yield path.parent if path.name == "simple" else path
