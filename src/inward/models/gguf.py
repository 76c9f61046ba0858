"""A GGUF file to an ordinary bfloat16 model folder, kept in the cache under the digest of the file.

`transformers` does the reading: it knows the architectures and how each names its tensors. It leaves out tensors that it does
not know and fills missing ones at random, both without an error, so both are looked for here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from inward.errors import UsageError
from inward.models.identity import file_digest
from inward.models.kept import Report, kept_folder, models_dir
from inward.storage import read_json, write_json

MAGIC = b"GGUF"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
SOURCE = ".gguf.json"
"""The file in a kept folder that says what the folder was made from. It is hidden, and so no part of the model's identity."""
EXTRA_BYTES = 50_000_000
"""Disk space for what a model folder holds beside its weights: the tokenizer and the settings."""


def is_gguf(path: str) -> bool:
    """Say whether a model's path names a GGUF file, by how it ends."""
    return path.lower().endswith(".gguf")


def get_gguf(path: Path, cache: Path | None = None, report: Report | None = None) -> Path:
    """Return the model folder of a GGUF file, dequantising the file the first time.

    The folder appears whole or not at all, and of several processes that ask at once one does the work.
    `report` is told what takes a while. Raises UsageError where the file is not one that can be converted, StorageError where
    the cache cannot be written.
    """
    _check_file(path)
    digest = file_digest(path)
    target = models_dir(cache) / f"gguf-{digest[:32]}"
    if target.is_dir():
        return target
    weights = _check_content(path)
    make = partial(_make, path, digest, target, report or (lambda _: None))
    return kept_folder(target, make, title=path.name, needed=2 * weights + EXTRA_BYTES)


def kept_files(cache: Path | None = None) -> list[tuple[Path, str]]:
    """Return the folders that GGUF files were made into, each with the name its file had."""
    sources = sorted(models_dir(cache).glob(f"gguf-*/{SOURCE}"))
    return [(source.parent, str(read_json(source)["file"])) for source in sources]


def _make(gguf: Path, digest: str, target: Path, report: Report, folder: Path) -> None:
    report(f"dequantising {gguf} to bfloat16")
    dequantise(gguf, folder)
    write_json(folder / SOURCE, {"file": gguf.name, "sha256": digest})
    report(f"keeping it in {target}")


def dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary bfloat16 model folder with its tokenizer. Raises UsageError where it cannot be read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    weights: dict[str, Any] = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    with no_progress_bars():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(gguf.parent, output_loading_info=True, **weights, **source)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError, ImportError) as error:
            raise _unreadable(gguf, f"transformers cannot read it ({error})") from error
        _require_all_tensors(gguf, model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))
        config = model.config
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        tokenizer.model_max_length = config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check_file(path: Path) -> None:
    """Raise UsageError for what is no GGUF file, or a part of one. Nothing but its first bytes is read."""
    if not path.is_file():
        raise UsageError(f"GGUF file {path} does not exist")
    if part := PART.search(path.name):
        raise UsageError(
            f"{path} is part {int(part[1])} of {int(part[2])} of a split GGUF file, which cannot be read in parts: join them "
            "with `llama-gguf-split --merge` and give the joined file"
        )
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UsageError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()!r}. Was it downloaded whole?")


def _check_content(path: Path) -> int:
    """Return how many weights a GGUF file holds. Raises UsageError where it says itself that it cannot be used."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGUFReader, dequantize

    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _unreadable(path, f"it is damaged or not whole ({error})") from error
    if "tokenizer.chat_template" not in reader.fields:
        raise _unreadable(path, "it has no chat template (tokenizer.chat_template), as files of base models have none")
    if (scaling := _rope_scaling(reader)) not in ("none", "default", ""):
        raise _unreadable(path, f"it stretches positions ({scaling} RoPE scaling), which transformers does not read from it")
    for kind in sorted({tensor.tensor_type for tensor in reader.tensors}):
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise _unreadable(path, f"its quantisation {kind.name} cannot be undone by the package gguf") from error
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _rope_scaling(reader: Any) -> str:
    """Return the kind of RoPE scaling that the settings in a file name, or nothing."""
    architecture = reader.fields.get("general.architecture")
    field = architecture and reader.fields.get(f"{architecture.contents()}.rope.scaling.type")
    return str(field.contents()) if field else ""


def _require_all_tensors(gguf: Path, model: Any, missing: list[str], unused: list[str]) -> None:
    """Raise UsageError where the model is not made of all tensors of the file and of nothing else."""
    unused = unused or _unmapped(gguf, model)
    for names, problem in ((missing, "has no weights for"), (unused, "holds tensors that transformers does not use:")):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise _unreadable(gguf, f"it {problem} {shown}, so that the model would be another one")


def _unmapped(gguf: Path, model: Any) -> list[str]:
    """Return the tensors of a file that the reader of `transformers` has no place for in the model, and passes over."""
    from gguf import GGUFReader
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    file = GGUFReader(gguf)
    architecture = file.fields["general.architecture"].contents()
    if is_gguf_arch_supported(architecture):  # these go by a newer reader, which reports what it does not use
        return []
    processor = reader.TENSOR_PROCESSORS.get(architecture, reader.TensorProcessor)(config={})
    mapped = reader.get_gguf_hf_weights_map(model, processor).keys()
    return [tensor.name for tensor in file.tensors if mapped.isdisjoint({tensor.name, tensor.name.removesuffix(".weight")})]


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"GGUF file {path} cannot be used: {reason}. Use another file of the model (Q8_0 and Q4_K_M can be read), or its "
        "original folder or Hub name"
    )


@contextmanager
def no_progress_bars() -> Iterator[None]:
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
