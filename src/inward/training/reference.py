"""Log-probabilities of the reference, computed once before the first step and stored.

They come by the same path, dtype and micro-batches as the policy's in its first epoch, so that the first step's DPO loss
is log 2 to the last bit. In bf16 that matters: a matrix product rounds differently in a batch of another shape, which moves
the log-probability of a sequence of 200 tokens by about one nat (SmolLM2-135M, two cores); in fp32 by nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.errors import TrainingError
from inward.training.batches import collate, epoch_steps
from inward.training.early_stop import hold_out
from inward.training.examples import Example, ReferenceLogps
from inward.training.logps import check_head, sequence_logps
from inward.training.weights import load_model, working_dtype

__all__ = ["ReferenceLogps", "align_reference", "reference_logps"]


def reference_logps(
    model_path: Path,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    seed: int,
    dtype: str,
    trust_remote_code: bool = False,
) -> list[ReferenceLogps]:
    """Return the reference's log-probabilities of every example, in the order of the examples.

    Raises TrainingError where one is not finite, naming the pair.
    """
    model = load_model(model_path, working_dtype(model_path, dtype), trust_remote_code=trust_remote_code)
    check_head(model)
    found: dict[str, ReferenceLogps] = {}
    with torch.no_grad():
        for micro in _micro_batches(examples, settings, seed):
            chosen, rejected = sequence_logps(model, collate(micro, model.device)).view(2, -1).tolist()
            for example, good, bad in zip(micro, chosen, rejected, strict=True):
                found[example.pair_id] = ReferenceLogps(pair_id=example.pair_id, chosen=good, rejected=bad)
    for logps in found.values():
        if not (math.isfinite(logps.chosen) and math.isfinite(logps.rejected)):
            raise TrainingError(
                f"the reference {model_path} gives pair {logps.pair_id} the log-probabilities {logps.chosen} and "
                f"{logps.rejected}: its weights may be damaged, or overflow in {dtype}; try model.dtype = 'float32'"
            )
    return [found[example.pair_id] for example in examples]


def _micro_batches(examples: Sequence[Example], settings: TrainingSettings, seed: int) -> Iterator[tuple[Example, ...]]:
    """Yield the micro-batches of training's first epoch, then those of the pairs that are held out."""
    for part in hold_out(examples, settings, seed=seed):
        for step in epoch_steps(part, settings, seed=seed, epoch=1):
            yield from step


def align_reference(reference: Mapping[str, ReferenceLogps], pair_ids: Sequence[str], device: torch.device) -> Tensor:
    """Return the stored values of a micro-batch's rows [2B], fp32: all chosen, then all rejected; 0 without a reference."""
    if not reference:
        return torch.zeros(2 * len(pair_ids), dtype=torch.float32, device=device)
    values = [reference[pair_id].chosen for pair_id in pair_ids] + [reference[pair_id].rejected for pair_id in pair_ids]
    return torch.tensor(values, dtype=torch.float32, device=device)
