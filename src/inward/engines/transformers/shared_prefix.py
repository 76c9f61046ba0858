"""Decoding with the prompt's keys and values held once for all the samples of that prompt.

Dimensions: R rows, P prompts, H key/value heads, G query heads to each of them, W width of a head, T prompt tokens (padded),
V vocabulary.

Rows admitted together make a `Cohort`, which holds their keys and values and computes their attention. It is hooked in as an
attention function of `transformers` (`AttentionInterface`), which also notes the prompts' keys and values as attention sees
them, whatever the model's own cache would hold. That fits models whose attention is full and causal; `trial` finds out which
those are, and `padded.PaddedDecoder` serves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from inward.engines.transformers.cohort import Cohort
from inward.models.architectures import UnsupportedAttention

NAME = "inward_shared_prefix"
PREFILL_TOKENS = 8192
"""Tokens, padding included, that prompts read together may have."""
PREFILL_ENOUGH = 256
"""Tokens from which on a product is as fast as it gets: from there on, batches are cut to save padding."""
UNSUPPORTED = ("softcap", "s_aux", "sliding_window", "position_bias")


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cohorts: Sequence[Cohort] | None = None,
    prompt_states: PromptStates | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend one token [R, H x G, 1, W] to its cohort's store; without `cohorts` plain causal attention.

    Keys and values of prompts are noted in `prompt_states`.
    """
    if attention_mask is not None or any(kwargs.get(name) is not None for name in UNSUPPORTED):
        raise UnsupportedAttention(f"{type(module).__name__} needs a mask, a window, a cap or sinks")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if prompt_states is not None:
        if layer in prompt_states:
            raise UnsupportedAttention(f"{type(module).__name__} attends twice in a layer")
        prompt_states[layer] = (key, value)
    if cohorts is None:
        plain = AttentionInterface()["sdpa"]
        result: tuple[torch.Tensor, None] = plain(module, query, key, value, None, scaling=scaling, dropout=dropout, **kwargs)
        return result
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    factor = width**-0.5 if scaling is None else scaling
    start, parts = 0, []
    for cohort in cohorts:
        part = slice(start, start + cohort.rows)
        parts.append(cohort.attend(layer, grouped[part], key[part, :, 0], value[part, :, 0], factor))
        start += cohort.rows
    return torch.cat(parts).view(rows, 1, heads, -1), None


AttentionInterface.register(NAME, attention)
PromptStates = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [P, H, T, W] of prompts by layer."""


@dataclass(slots=True)
class SharedPrefixDecoder:
    """A `decode.Decoder` over cohorts. `model` runs with the attention function of this module."""

    model: Any
    cohorts: list[Cohort]
    refillable: bool = True
    idle_share: float = 1 / 32

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        """Read all but the last token of each prompt, in batches padded on the right (causal: padding comes after)."""
        lengths = [len(prompt) - 1 for prompt in prompts]
        keys: list[list[torch.Tensor]] = []
        values: list[list[torch.Tensor]] = []
        for start, end in cut_into_batches(lengths):
            longest = max(1, *lengths[start:end])
            ids = torch.tensor([(list(prompt[:-1]) + [prompt[-1]] * longest)[:longest] for prompt in prompts[start:end]])
            states: PromptStates = {}
            self.model(ids.to(self.model.device), use_cache=False, logits_to_keep=1, prompt_states=states)
            if sorted(states) != list(range(len(states))):
                raise UnsupportedAttention(f"{type(self.model).__name__} has layers that do not attend")
            keys.append([states[layer][0] for layer in range(len(states))])
            values.append([states[layer][1] for layer in range(len(states))])
        prompt_of_row = [prompt for prompt, count in enumerate(counts) for _ in range(count)]
        self.cohorts.append(Cohort(_join(keys), _join(values), lengths, prompt_of_row))

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        for cohort in self.cohorts:
            cohort.reserve()
        positions_R = torch.cat([cohort.positions_R for cohort in self.cohorts])
        output = self.model(tokens_R[:, None], position_ids=positions_R[:, None], use_cache=False, cohorts=self.cohorts)
        for cohort in self.cohorts:
            cohort.drawn += 1
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        remaining, start, cohorts, order = set(rows), 0, [], []
        for cohort in self.cohorts:
            kept, count = [row for row in range(cohort.rows) if start + row in remaining], cohort.rows
            if kept:
                order += [start + row for row in (cohort.keep(kept) if len(kept) < count else kept)]
                cohorts.append(cohort)
            start += count
        self.cohorts = cohorts
        return order


def cut_into_batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return from where to where prompts are read together: few tokens of padding, and not so few prompts that it is slow."""
    cuts, longest = [0], 0
    for index, length in enumerate(lengths):
        tokens = longest * (index - cuts[-1])
        padded = max(longest, length) * (index - cuts[-1] + 1)
        if tokens and (padded > PREFILL_TOKENS or (tokens >= PREFILL_ENOUGH and 8 * abs(longest - length) > longest)):
            cuts.append(index)
            longest = 0
        longest = max(longest, length, 1)
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))


def _join(batches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Join the batches' [P, H, T, W], layer by layer, padded with zeros to one T."""
    longest = max(batch[0].shape[2] for batch in batches)
    return [
        torch.cat([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[2])) for part in layers]).contiguous()
        for layers in zip(*batches, strict=True)
    ]
