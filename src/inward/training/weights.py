"""Model folders in and out: loading for training, and writing a trained one in the form and dtype it came in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.errors import UsageError
from inward.hardware import device, named_dtype
from inward.storage import read_json, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_FILES = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def stored_dtype(model_path: Path) -> torch.dtype:
    """Return the dtype of a model folder's weights: what its config says, else the first floating tensor's."""
    from safetensors import safe_open

    try:
        settings = read_json(model_path / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{model_path} is not a model folder: it holds no config.json") from None
    named = settings.get("dtype") or settings.get("torch_dtype")
    if named:
        return named_dtype(named)
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                if (tensor := tensors.get_tensor(key)).is_floating_point():
                    return named_dtype(str(tensor.dtype))
    return torch.float32


def working_dtype(model_path: Path, dtype: str) -> torch.dtype:
    """Return the dtype that forward and backward run in: `dtype`, or the stored one where that is "auto".

    float16 is trained in float32: its gradients would vanish without loss scaling, bfloat16's do not.
    """
    named = stored_dtype(model_path) if dtype == "auto" else named_dtype(dtype)
    return torch.bfloat16 if named is torch.bfloat16 else torch.float32


def load_model(model_path: Path, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a model folder onto the device without dropout. Raises UsageError where it holds no causal language model."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(f"cannot load a causal language model from {model_path}: {error}") from error
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{model_path} holds quantised weights, which cannot be trained: give the unquantised model")
    return model.to(device()).eval()


def write_model(model: PreTrainedModel, trained: Mapping[str, Tensor], base: Path, folder: Path) -> None:
    """Write a complete model folder: `trained` weights by parameter name, all else as in `base`, in `base`'s dtype.

    Everything in `base` but its weights (config, tokenizer, chat template, code) is copied as it is.
    """
    dtype = stored_dtype(base)
    # Tied weights are one tensor under two names; they must stay one, or they would be stored twice.
    cast = {
        parameter.data_ptr(): trained[name].detach().to("cpu", dtype)
        for name, parameter in model.named_parameters()
        if name in trained
    }
    state = {name: cast.get(tensor.data_ptr(), tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    shutil.copytree(base, folder, ignore=_only_beside_weights, dirs_exist_ok=True)


def merge_adapter(base: Path, adapter: Path, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Add a LoRA adapter to its base in fp32 and store the sum as a model folder in the base's dtype. Returns `out`."""
    from peft import PeftModel

    model = load_model(base, torch.float32, trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with whole_folder(out) as folder:
        write_model(merged, dict(merged.named_parameters()), base, folder)
    return out


def promote(checkpoint: Path, base: Path, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Make a checkpoint the next model folder `out`, whole or not at all: a copy, or a LoRA adapter merged into `base`.

    An `out` that exists is complete and left as it is.
    """
    if out.exists():
        return out
    if (checkpoint / "adapter_config.json").exists():
        return merge_adapter(base, checkpoint, out, trust_remote_code=trust_remote_code)
    with whole_folder(out) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    return out


def _only_beside_weights(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(WEIGHT_FILES) or name.startswith(".")}
