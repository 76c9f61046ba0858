"""What a run was made with: versions, hardware, seed, and the commit of a source checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from inward.config import Recipe
from inward.hardware import processors

PACKAGES = (
    "inward",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "pyarrow",
    "numpy",
    "scipy",
    "if-verifiable",
    "math-verify",
)


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Return what the run was made with: versions, seed, hardware, and the commit of a source checkout."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "seed": recipe.seed,
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": processors(), **_devices()},
        "git": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    return {"devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]}


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
