"""Decoding through the cache that `transformers` itself gives a model: slower, and for nearly every architecture.

Prompts are padded on the left to one length, read once, and their cache rows repeated for every sample. All rows have one
length from then on, so new prompts wait until the batch is empty. A cache holds keys and values, the states of recurrent
layers, or both; a recurrent layer's state is left alone by padding, because padding is masked when prompts are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from inward.models.architectures import UnsupportedAttention


class PaddedDecoder:
    """A `decode.Decoder` for models with sliding windows, soft caps, sinks, recurrent layers and the like.

    Raises `UnsupportedAttention` for a model that keeps what it has read in some other way than a cache.
    """

    refillable = False
    idle_share = 1 / 8

    def __init__(self, model: Any) -> None:
        parameters = set(inspect.signature(model.forward).parameters)
        if not parameters & {"past_key_values", "cache_params"}:
            raise UnsupportedAttention("it does not keep what it has read in a cache that this version knows")
        self._model = model
        self._recurrent = "past_key_values" not in parameters  # every layer is recurrent: there is nothing to mask in a step
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.long)

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        from transformers import DynamicCache

        device = self._model.device
        longest = max(len(prompt) - 1 for prompt in prompts)
        padding = [longest - len(prompt) + 1 for prompt in prompts]
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device, dtype=torch.long)
        self._cache = DynamicCache(config=self._model.config)
        repeats = torch.tensor(counts, device=device)
        rows = torch.arange(len(prompts), device=device).repeat_interleave(repeats)
        if longest:
            ids = torch.tensor(
                [[prompt[0]] * pad + list(prompt[:-1]) for pad, prompt in zip(padding, prompts, strict=True)], device=device
            )
            self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1)
            self._cache.reorder_cache(rows)
        self._mask = mask[rows]

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        ids = tokens_R[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        output = self._forward(ids, self._mask, self._mask.sum(1, keepdim=True) - 1)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        index = torch.tensor(rows, device=self._mask.device, dtype=torch.long)
        self._mask = self._mask[index]
        self._cache.reorder_cache(index)
        return list(rows)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **more: Any) -> Any:
        if self._recurrent:
            reading = {"attention_mask": mask} if ids.shape == mask.shape else {}
            return self._model(ids, cache_params=self._cache, use_cache=True, **reading, **more)
        return self._model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True, **more
        )
