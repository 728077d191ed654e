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
def describe_environment(num_gpus: int) -> dict[str, Any]:
    """Plain JSON: `host, platform, python, packages, cores, memory_bytes, cuda, gpus`.

    The GPUs are examined by another process: CUDA, once initialized, holds some of their memory.
    """
    from plast_train.runtime.devices import cuda_version

    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cuda": cuda_version(),
        "gpus": _gpus_from_other_process() if num_gpus else [],
    }


def _gpus_from_other_process() -> Any:
    code = "import json; from plast_train.runtime.devices import describe_gpus as d; print(json.dumps(d()))"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output)


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
