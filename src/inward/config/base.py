"""What all settings share: strict, frozen, and no key that is not known."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Arm = Literal["thinking", "direct"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Batching = Literal["shared", "packed", "padded"]
Quantisation = Literal["nf4"]
EngineKind = Literal["transformers"]
VerdictForm = Literal["ab", "abc", "arena"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
