"""Which versions and which hardware this machine has."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

# What results can depend on.
PACKAGES = (
    "plast",
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "peft",
    "safetensors",
    "sentencepiece",
    "numpy",
    "pillow",
)


@functools.cache
def describe_environment(gpus: int) -> dict[str, Any]:
    """Plain JSON: `host, platform, python, packages, cores, memory_bytes, cuda, gpus`.

    The GPUs are looked at by another process: CUDA, once asked, may hold some of their memory.
    """
    import torch

    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cuda": torch.version.cuda,
        "gpus": _ask_other_process() if gpus else [],
    }


def describe_gpus() -> list[dict[str, Any]]:
    """`name, memory_bytes, capability` of each GPU that is visible to this process."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        gpus.append(
            {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}
        )
    return gpus


def _ask_other_process() -> Any:
    code = "import json; from launcher.environment import describe_gpus; print(json.dumps(describe_gpus()))"
    asked = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return json.loads(asked.stdout)


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
