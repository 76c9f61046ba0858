"""Early stop: some pairs are held out of training, and their loss after each epoch says when to stop.

    out/held_out.jsonl   one line an epoch

What the trained pairs say would not do: a small model knows them by heart within two epochs, accuracy 1, while nothing has
changed on others (docs/log.md). Which checkpoint is best is a later choice, on fresh samples; this only saves epochs. Which
pairs are held out depends on the seed and their ids alone, and a stop on the stored lines alone, so a resumed training ends
where an uninterrupted one does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inward.config import EarlyStopSettings, TrainingSettings
from inward.errors import TrainingError
from inward.records import content_id
from inward.storage import write_bytes
from inward.training.examples import Example
from inward.training.metrics import PairTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What an epoch's checkpoint makes of the pairs that were held out; means over them."""

    epoch: int
    pairs: int
    loss: float
    margin: float
    accuracy: float


def hold_out(examples: Sequence[Example], settings: TrainingSettings, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into what is trained on and what is held out, both in the order given; nothing is without `early_stop`.

    Raises TrainingError where there are not two pairs to split.
    """
    if settings.early_stop is None:
        return list(examples), []
    if len(examples) < 2:
        raise TrainingError(
            f"training.early_stop holds pairs out of training, and there is only {len(examples)}: use more prompts "
            "(prompts.per_iteration), or leave training.early_stop out"
        )
    count = min(max(1, round(settings.early_stop.share * len(examples))), len(examples) - 1)
    ranked = sorted(examples, key=lambda example: content_id("held out", str(seed), example.pair_id))
    held = {example.pair_id for example in ranked[:count]}
    return [e for e in examples if e.pair_id not in held], [e for e in examples if e.pair_id in held]


def summarise_held_out(terms: Sequence[PairTerms], epoch: int) -> HeldOut:
    """Average an epoch's held-out pairs; the sums are exact."""
    margins = [term.chosen_reward - term.rejected_reward for term in terms]
    return HeldOut(
        epoch=epoch,
        pairs=len(terms),
        loss=math.fsum(term.loss for term in terms) / len(terms),
        margin=math.fsum(margins) / len(terms),
        accuracy=sum(margin > 0 for margin in margins) / len(terms),
    )


def stops(losses: Sequence[float], settings: EarlyStopSettings) -> bool:
    """Say whether the lowest loss, the first of equals, is `patience` epochs old. A loss that is not finite is no lowest."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return bool(finite) and len(finite) - 1 - finite.index(min(finite)) >= settings.patience


def read_held_out(out: Path) -> list[HeldOut]:
    path = out / "held_out.jsonl"
    if not path.exists():
        return []
    return [HeldOut(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def add_held_out(out: Path, row: HeldOut) -> None:
    """Add an epoch's line; the file is written whole or not at all. Raises StorageError."""
    lines = [json.dumps(asdict(line)) + "\n" for line in (*read_held_out(out), row)]
    write_bytes(out / "held_out.jsonl", "".join(lines).encode())
