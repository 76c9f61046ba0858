"""What the hardware is and which number format suits it; torch is imported only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inward.config import Dtype

if TYPE_CHECKING:
    import torch


def device() -> torch.device:
    """Return the CUDA device where there is one, else the processor."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def named_dtype(name: str) -> torch.dtype:
    """Return the number format of a name such as "bfloat16" or "torch.bfloat16"."""
    import torch

    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the number format: as asked, or for "auto" bf16 where the hardware multiplies in it and fp32 elsewhere."""
    import torch

    if dtype != "auto":
        return named_dtype(dtype)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
