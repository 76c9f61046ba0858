"""How much memory a training will take, reckoned before it starts, and what to do when it runs out all the same.

An estimate: what is held for certain (weights, gradients, optimiser), and the activations of a decoder layer with gated
feed-forward as `transformers` keeps them for the backward pass. The peak of a process is higher, on processors by a quarter
to two thirds: it holds the libraries and what the allocator keeps for the next tensor (docs/log.md). Only what is beyond the
machine as a whole is refused, never what merely looks tight: other programs may go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inward.config import Dtype, TrainingSettings
from inward.errors import TrainingError, UsageError
from inward.hardware import device, memory_of_process
from inward.models.size import attention_shape, count_parameters, whole_number
from inward.training.batches import held_tokens, micro_batches
from inward.training.examples import Example
from inward.training.logps import chunk_logits
from inward.training.weights import working_dtype

if TYPE_CHECKING:
    from inward.training.trainee import Trainee

log = logging.getLogger(__name__)
GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""What a number takes: 4 bits, its share of a block's scale in 8 bits, and of that scale's own, one for 256 blocks, in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes that a training holds at its peak. `activations` are those of one micro-batch."""

    weights: int
    optimiser: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.optimiser + self.activations + self.logits


def training_needs(
    config: Any,
    parameters: int,
    settings: TrainingSettings,
    dtype: torch.dtype,
    tokens: int,
    *,
    on: torch.device,
    parts: int = 1,
) -> Needs | None:
    """Return what training a model of a (text) configuration takes, `tokens` at a time in `dtype`, on a device of this type.

    None where it is not known.

    Full training holds working weights, beside bf16 ones their fp32 masters, and gradients in fp32; AdamW holds two moments.
    Gradients in bf16 stand for one weight at a time (`head` has the largest). Of a quantised base one matrix at a time is
    restored to `dtype`.
    Where weights are cut into `parts`, this is what one process holds.
    """
    size = dtype.itemsize
    shape = _shape_of(config)
    if shape is None:
        return None
    trained = parameters if settings.lora is None else settings.lora.rank * shape.layers * shape.lora_widths
    weights = size * parameters
    if settings.quantise:
        packed = min(parameters, shape.layers * shape.matrices)
        weights -= round((size - NF4_BYTES) * packed) - size * shape.width * shape.inner
    weights += trained * (8 if size < 4 else 4)
    if settings.lora is not None:
        weights += size * trained
    moments = 2 if settings.optimiser == "adamw_8bit" else 8
    if parts > 1:
        frozen = 0 if settings.lora is None else parameters
        weights = (size * frozen + 8 * trained) // parts + _put_together(shape, parameters, size, learned=not frozen)
        trained //= parts
    layer = tokens * shape.kept(size)
    activations = (
        tokens * size * shape.width * shape.layers + layer if settings.gradient_checkpointing else layer * shape.layers
    )
    logits = (size + 4) * chunk_logits(on)  # and their exponentials in fp32, all at once on a GPU
    head = (4 + size) * shape.vocabulary * shape.width if settings.lora is None else 0
    return Needs(weights=weights, optimiser=moments * trained, activations=activations, logits=logits + head)


def _put_together(shape: _Shape, parameters: int, size: int, *, learned: bool) -> int:
    """Return the bytes of what stands whole at once, though weights are cut: embeddings and head, a layer, and the one after.

    Gradients stand whole beside them, in their own format and in the fp32 that they are added up in.
    """
    layer = max(0, parameters - shape.outside) // shape.layers
    gradients = (size + 4) * (shape.outside + layer) if learned else 0
    return size * (shape.outside + 2 * layer) + gradients


def estimate(
    model_path: Path,
    settings: TrainingSettings,
    *,
    dtype: Dtype,
    tokens: int,
    processes: int = 1,
    sharded: bool = False,
    trust_remote_code: bool = False,
) -> Needs | None:
    """Return what one of `processes` takes that train `tokens` at a time; `sharded` says that they cut the weights.

    None where a model's shape cannot be read off its folder: another kind of layer, or an architecture that is not known.
    """
    from transformers import AutoConfig

    parameters = count_parameters(model_path, trust_remote_code=trust_remote_code)
    if not parameters:
        return None
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).get_text_config()
    parts = processes if sharded else 1
    return training_needs(config, parameters, settings, working_dtype(dtype), tokens, on=device(), parts=parts)


def check_memory(
    model_path: Path,
    settings: TrainingSettings,
    *,
    dtype: Dtype,
    tokens: int,
    processes: int = 1,
    sharded: bool = False,
    trust_remote_code: bool = False,
) -> Needs | None:
    """Raise UsageError where training `tokens` at a time is beyond the machine; return the estimate for one process.

    On processors `processes` share the memory; a GPU's belongs to one. `sharded` says that they cut the weights between them.
    Where there is no `estimate`, that is logged: what cannot be reckoned stops nothing.
    """
    needs = estimate(
        model_path,
        settings,
        dtype=dtype,
        tokens=tokens,
        processes=processes,
        sharded=sharded,
        trust_remote_code=trust_remote_code,
    )
    if needs is None:
        log.warning("how much memory training %s takes is not known beforehand: its shape cannot be read", model_path)
        return None
    there = memory_of_process(processes)
    if needs.total <= there:
        return needs
    cut = "" if sharded else ", share it out among more GPUs with execution.shard = true"
    raise UsageError(
        f"training {model_path} would take about {needs.total / GIB:.1f} GiB: {needs.weights / GIB:.1f} for weights and "
        f"gradients, {needs.optimiser / GIB:.1f} for the optimiser, {needs.activations / GIB:.1f} for the activations of "
        f"{tokens} tokens. {'The machine' if processes == 1 else 'Each process'} has {there / GIB:.1f}. Lower "
        f"training.batch_tokens, set training.gradient_checkpointing = true{cut}, or train an adapter with training.lora, its "
        "base in 4 bits with training.lora.quantise_base = 'nf4'"
    )


@dataclass(slots=True)
class Budget:
    """How many tokens are computed at once: `training.batch_tokens`, until memory runs out."""

    tokens: int


def lower_budget(budget: Budget, pairs: Sequence[Example], trainee: Trainee) -> None:
    """After memory ran out: let go of what the step had come to, and halve the budget below what it just was.

    The step that follows has the same pairs, the same mean and the same dropout, so only rounding differs. Raises TrainingError
    where one pair alone is too much.
    """
    tried = max(held_tokens(micro, trainee.batching) for micro in micro_batches(pairs, budget.tokens, trainee.batching))
    trainee.optimiser.zero_grad(set_to_none=True)
    trainee.model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if max(held_tokens([pair], trainee.batching) for pair in pairs) >= tried:
        raise TrainingError(
            f"a pair of {tried} tokens does not fit into memory by itself. Set training.gradient_checkpointing = true, train "
            "an adapter with training.lora, or sample shorter outputs (sampling.max_new_tokens). What was trained is kept"
        )
    budget.tokens = tried // 2
    log.warning(
        "out of memory: from here on %d tokens are computed at a time instead of %d. The pairs of a step stay the same; set "
        "training.batch_tokens = %d to begin with it",
        budget.tokens,
        tried,
        budget.tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The widths of a decoder layer, in numbers a token."""

    layers: int
    width: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    outside: int

    def kept(self, size: int) -> int:
        """Return the bytes that a layer keeps for a token: two norms (fp32 inputs), attention, and a gated feed-forward."""
        norms = 2 * (4 + size) * self.width
        products = 2 * self.width + 2 * self.queries + 2 * self.keys + 4 * self.inner
        return norms + size * products

    @property
    def matrices(self) -> int:
        """Return the numbers in a layer's seven matrices."""
        return 2 * self.width * (self.queries + self.keys) + 3 * self.width * self.inner

    @property
    def lora_widths(self) -> int:
        """Return the rows and columns that an adapter of rank 1 has on a layer's seven matrices."""
        return 2 * (self.width + self.queries) + 2 * (self.width + self.keys) + 3 * (self.width + self.inner)


def _shape_of(config: Any) -> _Shape | None:
    """Return the shape of a decoder layer, as most configurations name it; None for one that does not, or if layers differ."""
    heads, head = attention_shape(config)
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    layers, width, inner, vocabulary = (whole_number(config, name) for name in names)
    if not (heads and head and layers and width and inner and vocabulary):
        return None
    matrices = 1 if getattr(config, "tie_word_embeddings", True) else 2
    return _Shape(
        layers=layers,
        width=width,
        queries=heads * head,
        keys=(whole_number(config, "num_key_value_heads") or heads) * head,
        inner=inner,
        vocabulary=vocabulary,
        outside=vocabulary * width * matrices,
    )
