"""Prompt and response as the token ids that a reward model reads, and rows of them cut into batches.

Such code can go wrong without an error. These are the cases and what is done in each.
- The chat template is applied once to [user: prompt, assistant: response] and brings its own special tokens; none is added.
  Without one, or where the recipe asks for a plain pair, the tokenizer gets the two texts as a pair (if it has a separator
  token) or as one text with a blank line between.
- A text that spells out a special token ("<|im_end|>") is encoded as text (`models.control_tokens`): a response can neither
  end its own turn nor forge others. (Turn markers that a template writes as plain text cannot be told from a text's own.)
- A template that drops or alters a text leaves the response unscored.
- A conversation longer than the limit loses the end of its *response*; the template's closing tokens stay, because models
  read their score there. The cut is noted in the ruling; a prompt that leaves no room for a response is unscored.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, TypeVar

from inward.models.control_tokens import control_tokens
from inward.models.tokenizer import chat_text, encode_chat

T = TypeVar("T")

MIN_SHARED_TOKENS = 8
"""A prompt is read apart from its responses where all of them begin with at least so many tokens in common."""
BUSY_TOKENS = 2048
"""So many padded tokens keep a processor busy. A batch that has them takes no row that is longer than its shortest by more than
the share `MAX_PADDING`."""
MAX_PADDING = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation as token ids, cut to the limit; `full` is its length before the cut."""

    group: int
    first: int
    tokens: list[int]
    types: list[int] | None
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Rows that begin with the same `size` tokens and all go on after them, in an order that only their content decides."""

    size: int
    rows: list[Row]

    @property
    def prefix(self) -> list[int]:
        return self.rows[0].tokens[: self.size]


class Conversations:
    """Writes prompt and response as a row for one tokenizer; `limit` is the longest row in tokens."""

    def __init__(self, tokenizer: Any, limit: int, form: Literal["auto", "chat", "pair"], *, today: date | None = None) -> None:
        self._tokenizer = tokenizer
        self.limit = limit
        self._chat = tokenizer.chat_template is not None and form != "pair"
        self._today = today or date.today()

    def row(self, group: int, first: int, prompt: str, response: str) -> Row | str:
        """Return the conversation in tokens, or the reason why it cannot be scored."""
        if self._chat:
            text = chat_text(self._tokenizer, _turns(prompt, response), reply=False, today=self._today)
            if prompt.strip() not in text or response.strip() not in text:
                return "the reward model's chat template alters the text"
        tokens, types = self.encode(prompt, response)
        full = len(tokens)
        if full > self.limit:
            kept = bisect.bisect_right(
                range(len(response)), self.limit, key=lambda size: len(self.encode(prompt, response[:size])[0])
            )
            if kept <= 1:
                return f"the prompt leaves no room for a response in {self.limit} tokens"
            tokens, types = self.encode(prompt, response[: kept - 1])
        return Row(group=group, first=first, tokens=tokens, types=types, full=full)

    def trial(self, group: int, prompt: str, responses: Sequence[str], longest: int) -> list[Row]:
        """Return rows that try a model out, cut to the `longest` that it can take."""
        encoded = [self.encode(prompt, response) for response in responses]
        return [
            Row(group=group, first=index, tokens=tokens[:longest], types=types and types[:longest], full=len(tokens))
            for index, (tokens, types) in enumerate(encoded)
        ]

    def encode(self, prompt: str, response: str) -> tuple[list[int], list[int] | None]:
        """Return token ids, and token types where the tokenizer tells the two texts apart by them."""
        tokenizer = self._tokenizer
        if self._chat:
            return list(encode_chat(tokenizer, _turns(prompt, response), reply=False, today=self._today)), None
        if tokenizer.sep_token_id is None:
            return list(control_tokens(tokenizer).encode_text(f"{prompt}\n\n{response}", add_special_tokens=True)), None
        tokens, types = control_tokens(tokenizer).encode_pair(prompt, response)
        return list(tokens), None if types is None else list(types)


def _turns(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def unused_id(rows: Sequence[Row]) -> int:
    """Return the smallest id that none of the rows holds."""
    used = {token for row in rows for token in row.tokens}
    return next(token for token in range(len(used) + 1) if token not in used)


def by_content(rows: Sequence[Row]) -> list[Row]:
    """Sort by length, then by tokens, so that batches do not depend on the order in which rows came."""
    return sorted(rows, key=lambda row: (len(row.tokens), row.tokens))


def families(rows: Sequence[Row]) -> tuple[list[Family], list[Row]]:
    """Return the groups whose rows have a beginning worth reading once, and all other rows. Families come shortest first."""
    groups: dict[int, list[Row]] = {}
    for row in by_content(rows):
        groups.setdefault(row.group, []).append(row)
    shared, others = [], []
    for members in groups.values():
        size = min(_in_common([row.tokens for row in members]), len(members[0].tokens) - 1)
        if len(members) > 1 and size >= MIN_SHARED_TOKENS:
            shared.append(Family(size=size, rows=members))
        else:
            others += members
    return sorted(shared, key=lambda family: (family.size, family.prefix)), by_content(others)


def _in_common(texts: Sequence[list[int]]) -> int:
    """Return how many tokens all texts begin with: as many as the first and the last of them in order."""
    low, high = min(texts), max(texts)
    return next((index for index, token in enumerate(low) if token != high[index]), len(low))


def batches(items: Sequence[T], budget: int, width: Callable[[T], tuple[int, int]], *, even: bool = False) -> Iterator[list[T]]:
    """Cut items into batches whose padded size, items x (widest first part + widest second part), is within the budget.

    Items come sorted by their second part. An item over the budget is a batch of its own. With `even` all items of a batch are
    as wide as each other, so that nothing is padded.
    """
    batch: list[T] = []
    first = second = shortest = 0
    for item in items:
        own = width(item)
        wider = max(first, own[0]), max(second, own[1])
        full = sum(wider) * (len(batch) + 1) > budget
        wasteful = second * len(batch) >= BUSY_TOKENS and own[1] > (1 + MAX_PADDING) * shortest
        if batch and (full or wasteful or (even and own != (first, second))):
            yield batch
            batch, wider = [], own
        shortest = shortest if batch else own[1]
        batch.append(item)
        first, second = wider
    if batch:
        yield batch
