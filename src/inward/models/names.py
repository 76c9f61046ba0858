"""Which model a name stands for: a folder, a GGUF file, an embedded model, a URL or a name on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from inward.errors import UsageError
from inward.models.embedded import EMBEDDED, get_smollm2
from inward.models.gguf import get_gguf, is_gguf
from inward.models.kept import Report
from inward.models.origins import note_origin, origin_of
from inward.store.models import fetched_model
from inward.store.remote import is_url, path_of

DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt")
"""The files of a Hub model that hold its configuration and its tokenizer."""
PUBLISHED_WITHIN_S = 1800.0
"""How long a worker waits for a model that its run is still bringing to the store."""


def resolve(path: str, report: Report | None = None, *, code: bool = False, weights: bool = True) -> Path | str:
    """Return the folder of an existing model, of an embedded name, of a GGUF file or of a URL, else the Hub name as it is.

    An embedded model and one in a store are fetched and a GGUF file dequantised where that has not been done; `report` is
    told. From a store, Python files are fetched only with `code`, and weights only with `weights`. Raises UsageError where
    `path` can only be a folder or file and is not one, or does not hold a model.
    """
    if path in EMBEDDED:
        return get_smollm2(report=report)
    folder = fetched_model(path, code=code, weights=weights, report=report) if is_url(path) else path_of(path)
    if is_gguf(path) and not folder.is_dir():
        return get_gguf(folder, report=report)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        if (folder / "adapter_config.json").is_file():
            raise UsageError(f"{folder} holds an adapter, not a whole model: merge it into its base model first")
        raise UsageError(f"{folder} holds no config.json, so it is not a model folder (`save_pretrained` makes one)")
    if folder.exists():
        raise UsageError(f"{folder} is a file; a model is a GGUF file or a folder with config.json, weights and a tokenizer")
    if _only_a_path(path):
        raise UsageError(f"model folder {folder} does not exist")
    return path


def local_folder(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, report: Report | None = None
) -> Path:
    """Return the folder of any model that `resolve` knows. `report` is told what takes a while.

    Of a Hub name the files are downloaded first, at `revision`: a branch, tag or commit. Code is among them only if it is
    trusted.
    Raises UsageError where there is no such model or no way to it.
    """
    folder = _fetched(path, revision, ["*.safetensors"], trust_remote_code, report)
    if is_url(path) or folder != path_of(path):
        note_origin(folder, path, revision=revision, code=trust_remote_code)
    return folder


def config_folder(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, report: Report | None = None
) -> Path:
    """Return the folder of any model that `resolve` knows: its configuration and tokenizer.

    Of a Hub name or a URL no weights are fetched for it. Raises as `local_folder` does.
    """
    return _fetched(path, revision, [], trust_remote_code, report)


def _fetched(path: str, revision: str | None, weights: list[str], code: bool, report: Report | None) -> Path:
    resolved = resolve(path, report, code=code, weights=bool(weights))
    if isinstance(resolved, Path):
        return resolved
    from huggingface_hub import snapshot_download

    files = [*DESCRIPTION, *weights, *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(resolved, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise missing_model(path, error) from error


def local_copy(folder: Path) -> Path:
    """Return a model's folder as this machine has it: as it is, or made from what the machine that named it made it from.

    That is for the workers of a cluster: a model of a run in a store is fetched as soon as it is published whole, and models
    from the Hub, embedded ones and those in stores by their names. Folders that were made from nothing of the kind are
    expected at the same path, on a shared file system. Raises UsageError, StorageError.
    """
    found = origin_of(folder)
    if found is None:
        return folder
    origin, inside = found
    if inside.parts:
        return fetched_model(f"{origin.name}/{inside.as_posix()}", patience_s=PUBLISHED_WITHIN_S)
    return local_folder(origin.name, revision=origin.revision, trust_remote_code=origin.code)


def missing_model(path: str, error: Exception) -> UsageError:
    """Return the error for a Hub name that could not be loaded, with the first line of why."""
    lines = str(error).strip().splitlines()
    reason = f" ({lines[0]})" if lines else ""
    return UsageError(
        f"model {path!r} is neither a folder here nor a model that could be loaded from the Hugging Face Hub{reason}. "
        f"Give a folder made by `save_pretrained`, its URL, a GGUF file, a Hub name such as 'owner/model', or "
        f"{', '.join(map(repr, EMBEDDED))}."
    )


def _only_a_path(path: str) -> bool:
    """True for what cannot be a Hub name, which is `name` or `owner/name`."""
    return path.startswith((".", "~", "/")) or path.endswith("/") or path.count("/") > 1 or "\\" in path
