"""The keys and values of rows that decode together: those of their prompts, held once, and those of what each has drawn.

Dimensions: R rows, P prompts, N rows of the fullest prompt, H key/value heads, G query heads to each of them, W width of a
head, T prompt tokens (padded), S tokens of a block.

Rows admitted together make a cohort. They share one length, so their drawn keys are plain blocks [R, H, S, W] without masks
between rows. A decode step scores a cohort's queries against the prompts (one product [N x G, W] x [W, T] for each prompt and
head, whatever the number of samples) and against their own drawn tokens, and takes one softmax over all: the same sums as
ordinary attention, in another order. Nothing is copied to repeat heads or samples.

Nor is what has been drawn copied as it grows: the last block grows by `GROWTH` tokens up to `BLOCK`, then a new one begins, and
full ones stay where they are. (Many small blocks would need no copies at all and cost more: a product takes a while to begin.)
When rows are forgotten, the last rows move into their places, and nothing else does; once half of the places are empty, the
blocks are copied to give the memory back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

GROWTH = 32
BLOCK = 256


class Block:
    """Keys and values of up to `BLOCK` drawn tokens, one [places, H, S, W] a layer; rows stand in the first places."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        self.keys, self.values = keys, values

    @property
    def size(self) -> int:
        return self.keys[0].shape[2]

    def grow(self) -> None:
        """Make room for `GROWTH` tokens more, of zeros: they are weighed with 0, so they must not be NaN."""
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = torch.nn.functional.pad(old, (0, 0, 0, GROWTH))

    def move(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Copy rows to other places."""
        for store in (self.keys, self.values):
            for layer in store:
                layer.index_copy_(0, places, layer.index_select(0, rows))

    def select(self, rows: torch.Tensor) -> None:
        """Copy rows to blocks of their own and give back the memory of the others."""
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                store[layer] = old.index_select(0, rows)


class Cohort:
    """The keys and values of rows that were admitted together, layer by layer."""

    def __init__(
        self, keys: list[torch.Tensor], values: list[torch.Tensor], lengths_P: list[int], prompt_of_row: list[int]
    ) -> None:
        """Take the prompts' keys and values, one [P, H, T, W] a layer, of which `lengths_P` tokens are real."""
        self.prefix_keys, self.prefix_values = keys, values
        self.lengths_P = lengths_P
        self.drawn = 0
        self._places = len(prompt_of_row)
        self._blocks: list[Block] = []
        self._begun = 0  # tokens drawn before the last block
        self._lay_out_rows(prompt_of_row)

    @property
    def rows(self) -> int:
        return len(self.prompt_of_row)

    @property
    def positions_R(self) -> torch.Tensor:
        """Where each row's next token stands in its own text."""
        return self._lengths_R + self.drawn

    def reserve(self) -> None:
        """Make room for one more token in every layer."""
        last = self._blocks[-1] if self._blocks else None
        if last is not None and self.drawn < self._begun + last.size:
            return
        if last is None or last.size >= BLOCK:
            empty = [[self._empty(layer) for layer in store] for store in (self.prefix_keys, self.prefix_values)]
            self._begun = self.drawn
            last = Block(*empty)
            self._blocks.append(last)
        last.grow()

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Forget all other rows, and the prompts that have none left. Return these in the order in which they now stand."""
        order, moved, gaps = _fill_gaps(rows)
        device = self.prefix_keys[0].device
        if 2 * len(rows) <= self._places:
            for block in self._blocks:
                block.select(torch.tensor(order, device=device))
            self._places = len(rows)
        elif moved:
            for block in self._blocks:
                block.move(torch.tensor(moved, device=device), torch.tensor(gaps, device=device))
        prompts = sorted({self.prompt_of_row[row] for row in rows})
        if len(prompts) < len(self.lengths_P):
            self.lengths_P = [self.lengths_P[prompt] for prompt in prompts]
            longest = max(1, *self.lengths_P)
            index = torch.tensor(prompts, device=device)
            for store in (self.prefix_keys, self.prefix_values):
                for layer, old in enumerate(store):
                    store[layer] = old[:, :, :longest].index_select(0, index)
        self._lay_out_rows([prompts.index(self.prompt_of_row[row]) for row in order])
        return order

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Store this token's key and value [R, H, W]; return the attention of `query` [R, H, G, W], as wide as `value`."""
        rows, at = self.rows, self.drawn - self._begun
        self._blocks[-1].keys[layer][:rows, :, at] = key
        self._blocks[-1].values[layer][:rows, :, at] = value
        own = [query @ block.keys[layer][:rows].transpose(-1, -2) for block in self._blocks]
        own[-1][..., at + 1 :] = -torch.inf
        shared = self._by_prompt(query) @ self.prefix_keys[layer].transpose(-1, -2)
        scores = torch.cat([self._by_row(shared + self._bias), *own], dim=-1)
        weights = torch.softmax(scores * scaling, dim=-1)
        widths = [self.prefix_keys[layer].shape[2], *(block.size for block in self._blocks)]
        of_prompt, *of_blocks = torch.split(weights, widths, dim=-1)
        result = self._by_row(self._by_prompt(of_prompt) @ self.prefix_values[layer])
        for block, part in zip(self._blocks, of_blocks, strict=True):
            result = result + part @ block.values[layer][:rows]
        return result

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self._places, like.shape[1], 0, like.shape[3])

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
        self._full = slots == list(range(len(prompt_of_row)))
        self._slots = torch.tensor(slots, device=prefix.device)
        self._slot_of_row = torch.tensor(slot_of_row, device=prefix.device)
        lengths = torch.tensor(self.lengths_P, device=prefix.device)
        self._lengths_R = lengths[prompt_of_row]
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


def _fill_gaps(rows: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return rows in an order in which most stay in place, and which of them move into which gaps."""
    stay = set(rows)
    gaps = [place for place in range(len(rows)) if place not in stay]
    moved = [row for row in rows if row >= len(rows)]
    order = list(range(len(rows)))
    for gap, row in zip(gaps, moved, strict=True):
        order[gap] = row
    return order, moved, gaps
