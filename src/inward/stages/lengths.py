"""Lengths of outputs in tokens, and where their responses begin, by the tokenizer of the model that sampled them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inward.records import Output
from inward.stages.run import ArmIteration

if TYPE_CHECKING:
    from inward.sampling.lengths import Length, Measure


def measure_of(now: ArmIteration, model: Path) -> Measure | None:
    """Return what measures outputs in the unit that the recipe asks for, None for characters."""
    if now.run.recipe.pairing.length == "characters":
        return None
    return partial(measure_tokens, model, now.run.recipe.model.trust_remote_code)


def measure_tokens(model: Path, trust_remote_code: bool, outputs: Sequence[Output]) -> dict[str, Length]:
    """Return the lengths of responses and thoughts in tokens, of outputs sampled by the tokenizer of `model`."""
    from inward.models.tokenizer import plain_text
    from inward.sampling.lengths import token_length

    tokenizer = _tokenizer(model, trust_remote_code)
    special = frozenset(tokenizer.all_special_ids)
    return {output.id: token_length(output, partial(plain_text, tokenizer), special) for output in outputs}


def find_response_starts(now: ArmIteration, model: Path, outputs: Sequence[Output]) -> dict[str, int]:
    """Return by output id how many tokens stand before the response."""
    from inward.models.tokenizer import plain_text
    from inward.training.examples import response_start

    recipe = now.run.recipe
    tokenizer = _tokenizer(model, recipe.model.trust_remote_code)
    marker = recipe.thought_format(now.arm).response_marker
    return {output.id: response_start(output, marker, partial(plain_text, tokenizer)) for output in outputs}


@functools.lru_cache(maxsize=1)
def _tokenizer(model: Path, trust_remote_code: bool) -> Any:
    """Load a tokenizer, once for all shards of a stage."""
    from inward.models.tokenizer import load_tokenizer

    return load_tokenizer(model, trust_remote_code=trust_remote_code)
