"""What one machine tells the others about itself: versions, code, GPUs, disks."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from launcher.checks.machine import nearest_existing
from launcher.environment import describe_environment

PACKAGES = ("launcher", "plast_train", "ds_configs")
DRIVER = Path("/sys/module/nvidia/version")


def describe_machine(out: Path, nproc: int | None) -> dict[str, Any]:
    """Plain JSON: `host, ranks, cores, gpus, versions, code, out, disks, interfaces`; sizes in bytes."""
    from plast_train.runtime.devices import count_gpus

    gpus = count_gpus()
    environment = describe_environment(gpus)
    return {
        "host": environment["host"],
        "ranks": nproc or max(1, gpus),
        "cores": environment["cores"],
        "gpus": [{"name": gpu["name"], "memory_bytes": gpu["memory_bytes"]} for gpu in environment["gpus"]],
        "versions": {
            "python": environment["python"],
            **environment["packages"],
            "NCCL": nccl_version(gpus),
            "driver": DRIVER.read_text(encoding="ascii").strip() if DRIVER.exists() else None,
        },
        "code": code_hashes(Path(__file__).parents[2]),
        "out": str(out.absolute()),
        "disks": {"run folder": _free(out), "temporary folder": _free(Path(tempfile.gettempdir()))},
        "interfaces": {
            name: os.environ[name]
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
            if name in os.environ
        },
    }


def nccl_version(gpus: int) -> str | None:
    """None where no rank uses it."""
    import torch

    return ".".join(map(str, torch.cuda.nccl.version())) if gpus else None


def code_hashes(root: Path) -> dict[str, str]:
    """Path → SHA-256 (16 digits) of each Python and JSON file of the program, so that the ones that differ
    can be named."""
    files = (path for package in PACKAGES for path in (root / package).rglob("*"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(files)
        if path.suffix in {".py", ".json"}
    }


def code_version(hashes: dict[str, str]) -> str:
    """One short name for all files."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def _free(folder: Path) -> dict[str, Any]:
    return {"path": str(folder.absolute()), "free": shutil.disk_usage(nearest_existing(folder)).free}
