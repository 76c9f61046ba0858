"""Model folders in and out: loading for training, and writing a trained one in the form and dtype it came in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inward.config import Dtype, Quantisation
from inward.errors import MissingExtraError, UsageError
from inward.hardware import device, exact_float32, named_dtype, resolve_dtype
from inward.storage import read_json, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT_FILES = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def stored_dtype(model_path: Path) -> torch.dtype:
    """Return the dtype of a model folder's weights: what its config says, else the first floating tensor's."""
    from safetensors import safe_open

    settings = _config_of(model_path)
    named = settings.get("dtype") or settings.get("torch_dtype")
    if named:
        return named_dtype(named)
    for file in sorted(model_path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                if (tensor := tensors.get_tensor(key)).is_floating_point():
                    return named_dtype(str(tensor.dtype))
    return torch.float32


def working_dtype(dtype: Dtype) -> torch.dtype:
    """Return the dtype that forward and backward run in; "auto" is what sampling takes it for on this hardware.

    The dtype that a model is stored in does not matter: masters are float32, and checkpoints are written as the model came.
    float16 is trained in float32: its gradients would vanish without loss scaling, bfloat16's do not.
    """
    return torch.bfloat16 if resolve_dtype(dtype, device()) is torch.bfloat16 else torch.float32


def load_model(
    model_path: Path,
    dtype: torch.dtype,
    *,
    quantise: Quantisation | None = None,
    trust_remote_code: bool = False,
    onto: torch.device | None = None,
) -> PreTrainedModel:
    """Load a model folder without dropout, its linear layers but the head in 4 bits with `quantise`.

    It goes to the device `onto`, the accelerator if there is one unless given.
    Raises UsageError where it holds no causal language model or one that is quantised already, MissingExtraError without
    the `bitsandbytes` extra.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    _config_of(model_path)
    how = {} if quantise is None else _four_bits(quantise, dtype)
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        stored = AutoConfig.from_pretrained(model_path, **where)
        if getattr(stored, "quantization_config", None) is not None:
            raise UsageError(
                f"{model_path} holds quantised weights, which cannot be trained: give the unquantised model; "
                "training.lora.quantise_base holds it in 4 bits while an adapter is trained"
            )
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, **how, **where)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(f"cannot load a causal language model from {model_path}: {error}") from error
    if quantise is None:
        return model.to(onto or device()).eval()
    _multiply_plainly(model)
    return model.eval()


def write_model(model: PreTrainedModel, trained: Mapping[str, Tensor], base: Path, folder: Path) -> None:
    """Write a complete model folder: `trained` weights by parameter name, all else as in `base`, in `base`'s dtype.

    Everything in `base` but its weights (config, tokenizer, chat template, code) is copied as it is.
    """
    dtype = stored_dtype(base)
    # Tied weights are one parameter under two names; they must stay one tensor, or they would be stored twice.
    cast = {
        id(parameter): trained[name].detach().to("cpu", dtype)
        for name, parameter in model.named_parameters()
        if name in trained
    }
    state = {name: cast.get(id(tensor), tensor.detach()) for name, tensor in model.state_dict(keep_vars=True).items()}
    model.save_pretrained(folder, state_dict=state)
    shutil.copytree(base, folder, ignore=_only_beside_weights, dirs_exist_ok=True)


def merge_adapter(base: Path, adapter: Path, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Add a LoRA adapter to its base in fp32 and store the sum as a model folder in the base's dtype. Returns `out`.

    The base is the unquantised one also where the adapter was trained over 4 bits (`training.lora.quantise_base`), as is usual
    with QLoRA. So the next model loses nothing to rounding, but is not exactly what was trained (docs/log.md has by how much);
    checkpoints are sampled from merged, and so chosen as what they will be.
    """
    from peft import PeftModel

    model = load_model(base, torch.float32, trust_remote_code=trust_remote_code)
    with exact_float32():
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with whole_folder(out) as folder:
        write_model(merged, dict(merged.named_parameters()), base, folder)
    return out


def _config_of(model_path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_json(model_path / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{model_path} is not a model folder: it holds no config.json") from None
    return config


def _four_bits(quantise: Quantisation, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `from_pretrained` takes to quantise while loading, scales included (QLoRA, arXiv 2305.14314)."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bitsandbytes")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantise, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {
        "quantization_config": config,
        "device_map": {"": torch.cuda.current_device() if device().type == "cuda" else "cpu"},
    }


def _multiply_plainly(model: PreTrainedModel) -> None:
    """Have each quantised layer restore its weights for every product, whatever it is used for.

    On processors with AVX512-BF16, bitsandbytes repacks the weights of a layer that is called without gradients, for good, and
    multiplies by a kernel of other rounding and without a backward pass. The policy would then get no gradient from any layer
    that a trial had called before, and differ from the reference. Raises UsageError where nothing was quantised.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not layers:
        raise UsageError(
            f"training.lora.quantise_base is set but {type(model).__name__} has no linear layers that bitsandbytes can hold "
            "in 4 bits: leave it out"
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def _only_beside_weights(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(WEIGHT_FILES) or name.startswith(".")}
