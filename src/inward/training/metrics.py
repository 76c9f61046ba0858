"""What is measured in every optimiser step, and the file it goes to: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from inward.storage import storage_errors, write_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimiser step. Means are over its pairs; log-probabilities in nats, per sequence, but `nll` per token.

    `step` and `epoch` count from 1. `pair_loss` is `loss` without IRPO's NLL; `nll` is the chosen outputs' and is reported
    whether or not the objective holds it. `accuracy` is the share of pairs with a positive margin. `grad_norm` is taken
    before clipping. `tokens` counts prompt and completion of both outputs, without padding.

    `kl_on_pairs` is what there is of a KL to the reference: the mean of log(reference / policy) per token that counts, over
    the chosen and the rejected outputs. Over fresh samples of the reference it would estimate KL(reference || policy)
    without bias. These are its best and worst of K, drawn with top-p, and trained on: read it as how far the policy has
    moved on its own pairs. It can be negative. None where the objective has no reference.

    `flops` is the work of the step and `mfu` its share of what the hardware was measured to do; None where not known.
    """

    step: int
    epoch: int
    loss: float
    pair_loss: float
    nll: float
    chosen_reward: float
    rejected_reward: float
    margin: float
    accuracy: float
    chosen_logp: float
    rejected_logp: float
    kl_on_pairs: float | None
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    tokens_per_s: float
    flops: float | None = None
    mfu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTerms:
    """One pair's part of a step."""

    pair_id: str
    loss: float
    pair_loss: float
    nll: float
    chosen_reward: float
    rejected_reward: float
    chosen_logp: float
    rejected_logp: float
    log_ratio: float


TERMS = tuple(field.name for field in fields(PairTerms) if field.name != "pair_id")


def stack_terms(columns: Mapping[str, Tensor]) -> Tensor:
    """Return what `objective.losses` gives for a micro-batch, a column [B] a quantity, as one tensor [terms, B]."""
    return torch.stack([columns[name].detach() for name in TERMS])


def read_terms(pair_ids: Sequence[str], terms: Sequence[Tensor]) -> list[PairTerms]:
    """Return micro-batches' terms, as `stack_terms` gives them, as plain numbers, a row a pair.

    On a GPU this waits for all that is under way, once for all the micro-batches.
    """
    if not terms:
        return []
    rows = torch.cat(list(terms), dim=1).T.tolist()
    return [
        PairTerms(pair_id=pair_id, **dict(zip(TERMS, row, strict=True))) for pair_id, row in zip(pair_ids, rows, strict=True)
    ]


def summarise(
    terms: Sequence[PairTerms],
    *,
    step: int,
    epoch: int,
    grad_norm: float,
    lr: float,
    tokens: int,
    seconds: float,
    referenced: bool = True,
    flops: float | None = None,
    peak_flops: float | None = None,
) -> StepMetrics:
    """Average a step's pairs. The sums are exact, so they do not depend on the order of the micro-batches.

    `referenced` says whether there is a reference; `peak_flops` is what the hardware was measured to do in a second.
    """

    def mean(name: str) -> float:
        return math.fsum(getattr(term, name) for term in terms) / len(terms)

    chosen, rejected = mean("chosen_reward"), mean("rejected_reward")
    return StepMetrics(
        step=step,
        epoch=epoch,
        loss=mean("loss"),
        pair_loss=mean("pair_loss"),
        nll=mean("nll"),
        chosen_reward=chosen,
        rejected_reward=rejected,
        margin=chosen - rejected,
        accuracy=sum(term.chosen_reward > term.rejected_reward for term in terms) / len(terms),
        chosen_logp=mean("chosen_logp"),
        rejected_logp=mean("rejected_logp"),
        kl_on_pairs=0.0 - mean("log_ratio") if referenced else None,
        grad_norm=grad_norm,
        lr=lr,
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        flops=flops,
        mfu=flops / seconds / peak_flops if flops and peak_flops else None,
    )


def append_metrics(path: Path, metrics: StepMetrics) -> None:
    with storage_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(metrics)) + "\n")


def sync_metrics(path: Path) -> None:
    """Flush the file to disk. Done before a state is stored, so that no state is ahead of its metrics."""
    with storage_errors(path), path.open("a") as file:
        os.fsync(file.fileno())


def cut_metrics(path: Path, steps: int) -> None:
    """Keep the first `steps` lines: those beyond the state that training goes on from will be written again."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    assert len(lines) >= steps, f"{path} ends before step {steps}, which was saved"
    write_bytes(path, b"".join(lines[:steps]))


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return every step of a training that has ended, in order."""
    return [StepMetrics(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
