"""Decoding with the prompt's keys and values held once for all the samples of that prompt.

Dimensions: R rows, P prompts, N rows of the fullest prompt, H key/value heads, G query heads to each of them, W width of a
head, T prompt tokens (padded), S drawn tokens (padded to a block), V vocabulary.

Rows admitted together make a cohort. They share one length, so their drawn keys are a plain block [R, H, S, W] without
masks between rows. A decode step scores a cohort's queries against the prompts (one product [N x G, W] x [W, T] for each
prompt and head, whatever the number of samples) and against their own drawn tokens, and takes one softmax over both: the
same sums as ordinary attention, in another order. Nothing is copied to repeat heads or samples, and the blocks grow by
`BLOCK` tokens, not by one.

It is hooked in as an attention function of `transformers` (`AttentionInterface`), which also notes the prompts' keys and
values as attention sees them, whatever the model's own cache would hold. That fits models whose attention is full and causal;
`trial` finds out which those are, and `padded.PaddedDecoder` serves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from inward.models.architectures import UnsupportedAttention

NAME = "inward_shared_prefix"
BLOCK = 32
PREFILL_TOKENS = 8192
UNSUPPORTED = ("softcap", "s_aux", "sliding_window", "position_bias")


class Cohort:
    """The keys and values of rows that were admitted together, layer by layer."""

    def __init__(
        self, keys: list[torch.Tensor], values: list[torch.Tensor], lengths_P: list[int], prompt_of_row: list[int]
    ) -> None:
        """Take the prompts' keys and values, one [P, H, T, W] a layer, of which `lengths_P` tokens are real."""
        self.prefix_keys, self.prefix_values = keys, values
        self.lengths_P = lengths_P
        self.drawn = 0
        rows = len(prompt_of_row)
        self.keys = [layer.new_zeros(rows, layer.shape[1], 0, layer.shape[3]) for layer in keys]
        self.values = [layer.new_zeros(rows, layer.shape[1], 0, layer.shape[3]) for layer in values]
        self._lay_out_rows(prompt_of_row)

    @property
    def rows(self) -> int:
        return len(self.prompt_of_row)

    @property
    def positions(self) -> list[int]:
        """Where each row's next token stands in its own text."""
        return [self.lengths_P[prompt] + self.drawn for prompt in self.prompt_of_row]

    def reserve(self) -> None:
        """Make room for one more token in every layer. Room is filled with zeros: it is weighed with 0, so not with NaN."""
        if self.drawn < self.keys[0].shape[2]:
            return
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = torch.nn.functional.pad(old, (0, 0, 0, BLOCK))

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows, and the prompts that have none left."""
        prompts = sorted({self.prompt_of_row[row] for row in rows})
        index = torch.tensor(rows, device=self.keys[0].device)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = old.index_select(0, index)
        if len(prompts) < len(self.lengths_P):
            self.lengths_P = [self.lengths_P[prompt] for prompt in prompts]
            longest = max(1, *self.lengths_P)
            index = torch.tensor(prompts, device=index.device)
            for store in (self.prefix_keys, self.prefix_values):
                for layer, old in enumerate(store):
                    store[layer] = old[:, :, :longest].index_select(0, index)
        self._lay_out_rows([prompts.index(self.prompt_of_row[row]) for row in rows])

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Store this token's key and value [R, H, W]; return the attention of `query` [R, H, G, W], as wide as `value`."""
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.drawn] = key
        values[:, :, self.drawn] = value
        own = query @ keys.transpose(-1, -2)
        own[..., self.drawn + 1 :] = -torch.inf
        shared = self._by_prompt(query) @ self.prefix_keys[layer].transpose(-1, -2)
        scores = torch.cat([self._by_row(shared + self._bias), own], dim=-1)
        weights = torch.softmax(scores * scaling, dim=-1)
        padded = self.prefix_keys[layer].shape[2]
        result = weights[..., padded:] @ values
        result += self._by_row(self._by_prompt(weights[..., :padded]) @ self.prefix_values[layer])
        return result

    def _lay_out_rows(self, prompt_of_row: list[int]) -> None:
        """Lay the rows out as P x N slots, so that prompts with fewer rows than others can share one product."""
        self.prompt_of_row = prompt_of_row
        prompts = len(self.lengths_P)
        members: list[list[int]] = [[] for _ in range(prompts)]
        for row, prompt in enumerate(prompt_of_row):
            members[prompt].append(row)
        self._width = max(len(rows) for rows in members)
        slots = [row for rows in members for row in (*rows, *[rows[0]] * (self._width - len(rows)))]
        slot_of_row = [prompt * self._width + members[prompt].index(row) for row, prompt in enumerate(prompt_of_row)]
        prefix = self.prefix_keys[0]
        self._full = slots == slot_of_row
        self._slots = torch.tensor(slots, device=prefix.device)
        self._slot_of_row = torch.tensor(slot_of_row, device=prefix.device)
        lengths = torch.tensor(self.lengths_P, device=prefix.device)
        beyond = torch.arange(prefix.shape[2], device=prefix.device)[None] >= lengths[:, None]
        self._bias = torch.zeros(beyond.shape, dtype=prefix.dtype, device=prefix.device)
        self._bias = self._bias.masked_fill(beyond, -torch.inf)[:, None, None]

    def _by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, H, G, X] -> [P, H, N x G, X]"""
        if not self._full:
            rows = rows.index_select(0, self._slots)
        heads, queries, width = rows.shape[1:]
        return (
            rows.reshape(-1, self._width, heads, queries, width)
            .transpose(1, 2)
            .reshape(-1, heads, self._width * queries, width)
        )

    def _by_row(self, prompts: torch.Tensor) -> torch.Tensor:
        """[P, H, N x G, X] -> [R, H, G, X]"""
        count, heads, _, width = prompts.shape
        slots = prompts.view(count, heads, self._width, -1, width).transpose(1, 2)
        rows = slots.reshape(count * self._width, heads, -1, width)
        return rows if self._full else rows.index_select(0, self._slot_of_row)


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

    def admit(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        """Read all but the last token of each prompt, in batches padded on the right (causal: padding comes after)."""
        lengths = [len(prompt) - 1 for prompt in prompts]
        longest = max(1, *lengths)
        per_batch = max(1, PREFILL_TOKENS // longest)
        keys: list[list[torch.Tensor]] = []
        values: list[list[torch.Tensor]] = []
        for start in range(0, len(prompts), per_batch):
            batch = [list(prompt) for prompt in prompts[start : start + per_batch]]
            ids = torch.tensor([(prompt[:-1] + [prompt[-1]] * longest)[:longest] for prompt in batch])
            states: PromptStates = {}
            self.model(ids.to(self.model.device), use_cache=False, logits_to_keep=1, prompt_states=states)
            if sorted(states) != list(range(len(states))):
                raise UnsupportedAttention(f"{type(self.model).__name__} has layers that do not attend")
            keys.append([states[layer][0] for layer in range(len(states))])
            values.append([states[layer][1] for layer in range(len(states))])
        prompt_of_row = [prompt for prompt, count in enumerate(counts) for _ in range(count)]
        self.cohorts.append(Cohort(_join(keys), _join(values), lengths, prompt_of_row))

    def step(self, tokens_R: Sequence[int]) -> torch.Tensor:
        for cohort in self.cohorts:
            cohort.reserve()
        device = self.model.device
        positions = torch.tensor([position for cohort in self.cohorts for position in cohort.positions], device=device)
        ids = torch.tensor(tokens_R, device=device)
        output = self.model(ids[:, None], position_ids=positions[:, None], use_cache=False, cohorts=self.cohorts)
        for cohort in self.cohorts:
            cohort.drawn += 1
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        remaining, start, cohorts = set(rows), 0, []
        for cohort in self.cohorts:
            kept = [row for row in range(cohort.rows) if start + row in remaining]
            start += cohort.rows
            if kept:
                if len(kept) < cohort.rows:
                    cohort.keep(kept)
                cohorts.append(cohort)
        self.cohorts = cohorts


def _join(batches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(layers).contiguous() for layers in zip(*batches, strict=True)]
