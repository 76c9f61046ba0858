"""Log-probabilities of the reference, computed once before the first step and stored.

They come by the same path, number format and layout as the policy's. A packed sequence does not depend on what it is packed
with: attention is computed sequence by sequence, and everything else token by token. So a pair's values are the same in every
shard, step and epoch wherever the hardware computes the rows of a matrix product alike whatever their number (checked for bf16
on AVX512 processors, docs/log.md), and the first step's DPO loss is log 2 to the last bit. Elsewhere, as in padded bf16
batches, the two differ by rounding: about one nat for 200 tokens was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inward.config import Batching, Dtype, TrainingSettings
from inward.errors import TrainingError
from inward.hardware import to_device
from inward.training.batches import collate, micro_batches
from inward.training.examples import Example, ReferenceLogps
from inward.training.logps import sequence_logps
from inward.training.support import check_positions, choose_batching
from inward.training.weights import load_model, working_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Reference", "ReferenceLogps", "align_reference", "load_reference", "reference_logps", "require_finite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The reference model, and how its micro-batches are laid out."""

    model: PreTrainedModel
    batching: Batching
    path: Path


def load_reference(path: Path, settings: TrainingSettings, *, dtype: Dtype, trust_remote_code: bool = False) -> Reference:
    """Load the reference as the policy is loaded: over a quantised base, it is that base with no adapter."""
    working = working_dtype(dtype)
    model = load_model(path, working, quantise=settings.quantise, trust_remote_code=trust_remote_code)
    return Reference(model=model, batching=choose_batching(model, settings.batching), path=path)


@torch.no_grad()
def reference_logps(reference: Reference, examples: Sequence[Example], settings: TrainingSettings) -> list[ReferenceLogps]:
    """Return the reference's log-probabilities of every example, in the order of the examples.

    Raises TrainingError where one is not finite, naming the pair, and UsageError for one that is too long (`check_positions`).
    """
    check_positions(reference.model, examples)
    micros = micro_batches(examples, settings.batch_tokens, reference.batching)
    batches = (collate(micro, reference.model.device, reference.batching) for micro in micros)
    sums_2B = [sequence_logps(reference.model, batch).view(2, -1) for batch in batches]
    chosen, rejected = torch.cat(sums_2B, dim=1).tolist() if sums_2B else ([], [])
    logps_of = {
        example.pair_id: ReferenceLogps(pair_id=example.pair_id, chosen=good, rejected=bad)
        for example, good, bad in zip(chain.from_iterable(micros), chosen, rejected, strict=True)
    }
    remedy = f"its weights may be damaged, or overflow in {reference.model.dtype}; try model.dtype = 'float32'"
    require_finite(logps_of.values(), f"the reference {reference.path} gives", remedy)
    return [logps_of[example.pair_id] for example in examples]


def require_finite(logps_of: Iterable[ReferenceLogps], who: str, remedy: str) -> None:
    for logps in logps_of:
        if not (math.isfinite(logps.chosen) and math.isfinite(logps.rejected)):
            raise TrainingError(
                f"{who} pair {logps.pair_id} the log-probabilities {logps.chosen} and {logps.rejected}: {remedy}"
            )


def align_reference(reference: Mapping[str, ReferenceLogps], pair_ids: Sequence[str], device: torch.device) -> Tensor:
    """Return the stored values of a micro-batch's rows [2B], fp32: all chosen, then all rejected; 0 without a reference."""
    if not reference:
        return torch.zeros(2 * len(pair_ids), dtype=torch.float32, device=device)
    values = [reference[pair_id].chosen for pair_id in pair_ids] + [reference[pair_id].rejected for pair_id in pair_ids]
    return to_device(torch.tensor(values, dtype=torch.float32), device)
