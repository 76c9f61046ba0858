"""Draw the next token of every row: top-k, temperature, top-p, with random numbers that belong to a row and a position.

Dimensions: R rows, V vocabulary, C candidates (top-k).

The vocabulary is never sorted whole: top-k picks C candidates, and everything after that is C wide. Top-p is taken of the
probability among the candidates, the order of `transformers` (top-k, then top-p); with `top_p` = 1 the draw is from the C
most likely tokens. The random number of a draw depends on (seed, request, index, position) alone, so a completion does
not depend on which others share its batch, nor on when it was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from inward.engines.engine import Decoding
from inward.errors import InwardError
from inward.hardware import to_device
from inward.records import content_id

SLICES = 16
NOT_FINITE = -1
"""Stands for a token where the model's logits allow none."""


def row_key(seed: int, request_id: str, index: int) -> int:
    """Return the 64-bit key that all random numbers of one completion derive from."""
    return int(content_id(str(seed), request_id, str(index)), 16)


def uniforms(keys_R: Sequence[int], positions_R: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for every (key, position).

    SplitMix64 at the position-th step of the stream that begins at the key: Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators" (OOPSLA 2014).
    """
    state = np.array(keys_R, dtype=np.uint64)
    state += (np.array(positions_R, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def largest(logits_RV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest logits of each row, descending, and their token ids: the values of `torch.topk`.

    Exact: the vocabulary is cut into columns of `SLICES` tokens; a token among the `count` largest stands in one of the
    `count` columns with the largest maxima, so only those are searched.
    """
    rows, vocabulary = logits_RV.shape
    width = vocabulary // SLICES
    if width <= 2 * count:
        values, ids = logits_RV.topk(min(count, vocabulary))
        return values, ids
    slices_RSW = logits_RV[:, : SLICES * width].reshape(rows, SLICES, width)
    columns = slices_RSW.amax(1).topk(count, sorted=False).indices
    index = columns[:, None, :].expand(rows, SLICES, count)
    candidates = slices_RSW.gather(2, index).flatten(1)
    ids = (index + width * torch.arange(SLICES, device=index.device)[None, :, None]).flatten(1)
    rest = torch.arange(SLICES * width, vocabulary, device=index.device)
    candidates = torch.cat([candidates, logits_RV[:, SLICES * width :]], dim=1)
    ids = torch.cat([ids, rest.expand(rows, -1)], dim=1)
    values, picked = candidates.topk(count)
    return values, ids.gather(1, picked)


def draw(logits_RV: torch.Tensor, decoding: Decoding, uniforms_R: npt.NDArray[np.float64]) -> torch.Tensor:
    """Draw one token id for each row [R] by inverting the cumulative distribution at its uniform number.

    Nothing is read from the device: a row whose numbers were not finite gets `NOT_FINITE`, which `check_finite` looks for.
    """
    values, ids = largest(logits_RV, decoding.top_k)
    probs = torch.softmax(values.float() / decoding.temperature, dim=-1)
    cumulative = probs.cumsum(-1)
    kept = (cumulative - probs < decoding.top_p).sum(-1, keepdim=True).clamp(min=1)  # 0 where the numbers are not finite
    mass = cumulative.gather(1, kept - 1)
    target = to_device(torch.as_tensor(uniforms_R, dtype=torch.float32), mass.device)[:, None] * mass
    picked = torch.minimum((cumulative <= target).sum(-1, keepdim=True), kept - 1)
    return ids.gather(1, picked)[:, 0].where(cumulative[:, -1].isfinite(), NOT_FINITE)


def check_finite(tokens: Sequence[int]) -> None:
    """Raise InwardError if the model's logits allowed no token."""
    if NOT_FINITE in tokens:
        raise InwardError("the model gave logits that are not finite; its weights are damaged or its training diverged")
