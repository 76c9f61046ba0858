"""The objective, its optimiser and its batches."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from inward.config.base import Batching, Settings


class LoraSettings(Settings):
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = None  # None: every linear layer but the head


class TrainingSettings(Settings):
    """DPO or IRPO from M_t. The reference is the model that sampled, M_t ("previous"), as in the method, or M_0 ("seed").

    `batch_pairs` pairs make one optimiser step, computed `batch_tokens` tokens at a time without padding; with `batching`
    "shared" a prompt is computed once for its two outputs (a model whose attention does not allow it is trained "padded"); `nll_weight` is IRPO's alpha (1 unless given); tokens that the engine
    wrote while scaffolding are masked unless `learn_written`. A state to resume from is saved every `save_steps` steps.
    """

    objective: Literal["dpo", "irpo"] = "dpo"
    reference: Literal["previous", "seed"] = "previous"
    beta: float = Field(default=0.1, gt=0.0)
    nll_weight: float | None = Field(default=None, ge=0.0)
    epochs: int = Field(default=10, gt=0)
    learning_rate: float = Field(default=5e-7, gt=0.0)
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    batch_pairs: int = Field(default=16, gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    batching: Batching = "shared"
    save_steps: int = Field(default=50, gt=0)
    learn_written: bool = False
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.objective == "dpo" and self.nll_weight is not None:
            raise ValueError("training.nll_weight is set but training.objective = 'dpo' has no NLL term: use 'irpo'")
        return self
