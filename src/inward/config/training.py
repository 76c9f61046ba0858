"""The objective, its optimiser and its batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from inward.config.base import Batching, Harmless, Quantisation, Settings
from inward.config.objectives import OBJECTIVES, OPTIONAL, check_objective, check_taken

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def _default_beta(earlier: dict[str, Any]) -> float:
    objective = earlier.get("objective")  # absent where it was refused
    return OBJECTIVES[objective or "dpo"].beta


class LoraSettings(Settings):
    """An adapter of this `rank` on the layers named by `targets` (unset: every linear layer but the head); all else is frozen.

    `quantise_base = "nf4"` holds the frozen linear layers in 4 bits, as in QLoRA (package bitsandbytes), for the policy and
    for the reference. It is for the memory of GPUs: on processors none was saved. The next model is the adapter merged into
    the unquantised base.
    """

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = None
    quantise_base: Quantisation | None = None


class EarlyStopSettings(Settings):
    """Stop when the pairs that training never sees have not got a lower loss for `patience` epochs.

    A `share` of the pairs is held out for it. The schedule is that of all `epochs`, and every epoch that was trained stays
    a checkpoint to choose from.
    """

    share: float = Field(default=0.1, gt=0.0, lt=1.0)
    patience: int = Field(default=1, gt=0)


class TrainingSettings(Settings):
    """The objective, from M_t. The reference is the model that sampled, M_t ("previous"), as in the method, or M_0 ("seed").
    "sampler" is M_t as well, by the log-probabilities that were noted while sampling: no forward pass but on a few pairs, to
    tell how far the two are apart (by rounding).

    Objectives: DPO; IRPO (`nll_weight` is its alpha, 1 unless given); IPO; `hinge` (SLiC's loss on DPO's margin); `dpo_norm`
    (DPO on means over tokens); SimPO (`gamma` is its target margin, 1 unless given; it has no reference). `beta` is 2 for
    SimPO and 5 for `dpo_norm` unless given. `label_smoothing` is conservative DPO's share of wrong labels. `gap_offset`
    asks for a margin larger by that much times the judge's score gap (ODPO).

    `thought_weight` and `response_weight` are what a token of either part counts; tokens that the engine wrote while
    scaffolding count nothing unless `learn_written`. `batch_pairs` pairs make one optimiser step, computed `batch_tokens`
    tokens at a time: "shared", without padding and each prompt once for its two outputs, "packed", without padding, or
    "padded", the only way for a model whose attention is not plain causal attention.

    With `carry_optimiser` the fp32 weights, the moments and the learning-rate schedule go on from one iteration to the next,
    for many short iterations: `warmup` and `schedule` are then those of the whole run, whose progress counts in iterations.

    A state to resume from is saved every `save_steps` steps. `trackers` get every step's metrics beside metrics.jsonl;
    there, runs of this one carry the name `tracker_run` (unless given, the run directory's), arm and iteration, under
    `tracker_project`.
    """

    objective: Annotated[str, AfterValidator(check_objective)] = Field(default="dpo", examples=list(OBJECTIVES))
    reference: Literal["previous", "seed", "sampler"] = "previous"
    beta: float = Field(default_factory=_default_beta, gt=0.0)
    nll_weight: float | None = Field(default=None, ge=0.0)
    gamma: float | None = Field(default=None, ge=0.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    gap_offset: float = Field(default=0.0, ge=0.0)
    thought_weight: float = Field(default=1.0, ge=0.0)
    response_weight: float = Field(default=1.0, ge=0.0)
    learn_written: bool = False
    epochs: int = Field(default=10, gt=0)
    early_stop: EarlyStopSettings | None = None
    optimiser: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: float = Field(default=5e-7, gt=0.0)
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    batch_pairs: int = Field(default=16, gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    batching: Batching = "shared"
    gradient_checkpointing: bool = False
    save_steps: int = Field(default=50, gt=0)
    carry_optimiser: bool = False
    lora: LoraSettings | None = None
    trackers: Annotated[tuple[Tracker, ...], Harmless()] = ()
    tracker_project: Annotated[str, Harmless()] = Field(default="inward", min_length=1)
    tracker_run: Annotated[str | None, Harmless()] = Field(default=None, min_length=1)

    @property
    def needs_reference(self) -> bool:
        return OBJECTIVES[self.objective].needs_reference

    @property
    def quantise(self) -> Quantisation | None:
        """The format that the frozen linear layers are held in, the reference's as well; None: as they are."""
        return self.lora.quantise_base if self.lora else None

    @model_validator(mode="after")
    def _objective_consistent(self) -> Self:
        fields = type(self).model_fields
        check_taken(self.objective, [name for name in OPTIONAL if getattr(self, name) != fields[name].default])
        if self.reference != "previous" and not self.needs_reference:
            raise ValueError(
                f"training.reference = {self.reference!r} is set but training.objective = '{self.objective}' has no reference: "
                "leave training.reference out"
            )
        return self

    @model_validator(mode="after")
    def _rest_consistent(self) -> Self:
        if not self.thought_weight and not self.response_weight:
            raise ValueError("training.thought_weight and training.response_weight are both 0: there is nothing to learn")
        if self.quantise and self.reference == "sampler":
            raise ValueError(
                f"training.lora.quantise_base = '{self.quantise}' trains over another base than the one that sampled, whose "
                "log-probabilities training.reference = 'sampler' takes: leave one of them out"
            )
        if self.carry_optimiser and self.lora:
            raise ValueError(
                "training.carry_optimiser does not go with training.lora: every iteration begins a new adapter, whose weights "
                "have no moments yet. Leave one of the two out"
            )
        if self.early_stop and self.early_stop.patience >= self.epochs:
            raise ValueError(
                f"training.early_stop.patience ({self.early_stop.patience}) never ends a training of "
                f"training.epochs = {self.epochs}: it must be smaller"
            )
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError("training.trackers names the same tracker twice")
        if self.tracker_run is not None and not self.trackers:
            raise ValueError("training.tracker_run is set but training.trackers names none")
        return self
