"""What each machine reports about itself (versions, code, GPUs, disks), and the table of all reports."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.checks.machine import nearest_existing
from launcher.environment import describe_environment

# Machine (from 0) → its report. A machine that did not come has none.
Facts = Mapping[int, Mapping[str, Any]]
GIGABYTE = 10**9
PACKAGES = ("launcher", "plast_train", "ds_configs")
DRIVER = Path("/sys/module/nvidia/version")
COLUMNS = ("python", "torch", "transformers", "deepspeed", "NCCL", "driver")


def describe_machine(out: Path, nproc: int | None) -> dict[str, Any]:
    """Plain JSON: `host, ranks, cores, gpus, versions, code, out, disks, interfaces`; sizes in bytes."""
    from plast_train.runtime.devices import count_gpus, nccl_version

    num_gpus = count_gpus()
    environment = describe_environment(num_gpus)
    disks = {"run folder": out, "temporary folder": Path(tempfile.gettempdir())}
    return {
        "host": environment["host"],
        "ranks": nproc or max(1, num_gpus),
        "cores": environment["cores"],
        "gpus": environment["gpus"],
        "versions": {
            "python": environment["python"],
            **environment["packages"],
            "NCCL": nccl_version() if num_gpus else None,
            "driver": DRIVER.read_text(encoding="ascii").strip() if DRIVER.exists() else None,
        },
        "code": code_hashes(Path(__file__).parents[2]),
        "out": str(out.absolute()),
        "disks": {
            name: {"path": str(path.absolute()), "free": shutil.disk_usage(nearest_existing(path)).free}
            for name, path in disks.items()
        },
        "interfaces": [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ],
    }


def code_hashes(root: Path) -> dict[str, str]:
    """Path → SHA-256 (16 digits) of each Python and JSON file of the program, so that the files that differ
    can be named."""
    files = (path for package in PACKAGES for path in (root / package).rglob("*"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(files)
        if path.suffix in {".py", ".json"}
    }


def code_version(hashes: Mapping[str, str]) -> str:
    """One short name for all files."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def kind_of_gpus(gpus: Sequence[Mapping[str, Any]]) -> str:
    """Names and memory in whole gigabytes: two cards of one kind may differ by a few megabytes."""
    return " and ".join(sorted({f"{gpu['name']} {gpu['memory_bytes'] / GIGABYTE:.0f} GB" for gpu in gpus}))


def machine_table(
    facts: Facts, num_nodes: int, skews: Mapping[int, float], bandwidths: Mapping[int, float]
) -> str:
    """A line a machine. `skews` in seconds, `bandwidths` to the best neighbour in bytes a second; `-` stands
    for what is not known."""
    rows = [["node", "host", *COLUMNS, "code", "ranks on", "run free", "tmp free", "clock", "GB/s"]]
    for node in range(num_nodes):
        if node not in facts:
            rows.append([str(node + 1), *["-"] * (len(rows[0]) - 1)])
            continue
        own = facts[node]
        gpus = own["gpus"]
        where = f"{len(gpus)} × {kind_of_gpus(gpus)}" if gpus else f"{own['cores']} cores"
        rows.append(
            [
                str(node + 1),
                own["host"],
                *(own["versions"].get(name) or "-" for name in COLUMNS),
                code_version(own["code"]),
                f"{own['ranks']} on {where}",
                *(f"{disk['free'] / GIGABYTE:.0f} GB" for disk in own["disks"].values()),
                f"{skews[node]:+.3f} s" if node in skews else "-",
                f"{bandwidths[node] / GIGABYTE:.2f}" if node in bandwidths else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
