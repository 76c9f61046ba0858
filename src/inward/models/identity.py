"""Which model a folder holds: a digest of its content, since a path or a name can come to hold another one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from inward.records import content_id

SAMPLE = 1 << 20
"""Bytes at the end of each weight file that a fingerprint reads: weights, since the header stands first."""


def content_digest(folder: Path) -> str:
    """Return a SHA-256 over all files of a model folder, whole: a path, or a name, can come to hold another model.

    It reads at about the speed of loading the model, which finds the files in memory afterwards.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        with path.open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{part}\0".encode())
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a digest of a model folder: its settings whole, of each weight file the size and the last mebibyte."""
    parts = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja"):
            parts += [path.name, path.read_text(encoding="utf-8")]
        elif path.suffix in (".safetensors", ".bin"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - SAMPLE))
                parts += [path.name, str(path.stat().st_size), file.read().hex()]
    return content_id(*parts)
