"""How much memory drawing takes, reckoned before it starts: a model's weights, and the keys and values of every row.

Certain are the weights and one row: what is beyond them is refused. That every row grows to its full length at the same time
is the most there can be, and is only told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from inward.errors import UsageError
from inward.models.size import cache_bytes, count_parameters, whole_number
from inward.models.tokenizer import load_config

GIB = 2**30
ROWS = 128
"""Rows that are drawn side by side where nobody says how many, and where free memory does not tell."""
MOST_ROWS = 1024
USABLE = 0.8
"""The part of free memory that rows may fill: what reading the prompts and a step's products take fits into the rest."""
LOGIT_BYTES = 12
"""Bytes of a row for each token of the vocabulary: its logits, and two copies in fp32 while a token is drawn and noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingNeeds:
    """Bytes that a process holds while it draws: `weights`, and the keys and values of `rows` rows of `tokens` tokens."""

    weights: int
    token: int
    rows: int
    tokens: int

    @property
    def cache(self) -> int:
        return self.token * self.rows * self.tokens

    @property
    def least(self) -> int:
        """What it cannot do with less of: the weights, and one row."""
        return self.weights + self.token * self.tokens

    @property
    def total(self) -> int:
        return self.weights + self.cache


def drawing_needs(
    folder: Path, *, dtype: torch.dtype, rows: int, tokens: int, parts: int = 1, trust_remote_code: bool = False
) -> DrawingNeeds | None:
    """Return what a model takes that draws `rows` rows of at most `tokens` tokens side by side, prompt included.

    Where it is cut over `parts` devices, this is what one of them holds. No row is longer than the model's context. None where
    its folder does not tell. Raises UsageError where that holds no configuration.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    parameters = count_parameters(folder, trust_remote_code=trust_remote_code)
    token, context = cache_bytes(config, dtype.itemsize), whole_number(config.get_text_config(), "max_position_embeddings")
    if parameters is None or token is None:
        return None
    return DrawingNeeds(
        weights=dtype.itemsize * parameters // parts, token=token // parts, rows=rows, tokens=min(tokens, context or tokens)
    )


def rows_that_fit(free: int, *, token: int, tokens: int, vocabulary: int) -> int:
    """Return how many rows of `tokens` tokens, `token` bytes each, may be drawn side by side in `free` bytes, by steps of 8.

    Every row counts as if it grew to its full length and shared no prompt, and with a quarter more: blocks of keys begin before
    they are needed, and are copied layer by layer when rows have gone. One row is always tried.
    """
    row = token * tokens * 5 // 4 + LOGIT_BYTES * vocabulary
    rows = min(MOST_ROWS, int(USABLE * free) // row)
    return max(1, rows // 8 * 8 if rows >= 8 else rows)


def require_memory(needs: DrawingNeeds, there: int, *, what: str, remedy: str) -> None:
    """Raise UsageError where `what`, a model, does not fit into `there` bytes even with a single row."""
    if needs.least > there:
        raise UsageError(
            f"{what} would take at least {needs.least / GIB:.1f} GiB: {needs.weights / GIB:.1f} for its weights and "
            f"{needs.token * needs.tokens / GIB:.1f} for the keys and values of one row of {needs.tokens} tokens. "
            f"Its process has {there / GIB:.1f}. {remedy}"
        )
