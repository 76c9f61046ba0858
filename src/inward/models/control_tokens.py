"""Encoding text as text, whatever it spells out.

A tokenizer makes the end of a turn out of "<|im_end|>" wherever that stands, so that a prompt could end its own turn and
begin a system turn. Only the chat template may write such control tokens; in a prompt or a response they are text.

Control tokens are all special tokens, and those other added tokens that the chat template writes ("</think>" is often
one). Added tokens that stand for ordinary text (runs of blanks, HTML tags) are none.

Text that holds none is encoded as the tokenizer does it. For other text the control tokens of the template are told apart
from those of the messages by rendering the messages with stand-ins, and then `literal` encodes the whole.
"""

from __future__ import annotations

import re
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Literal, ParamSpec, TypeVar

from inward.errors import UsageError
from inward.models.chat_template import Messages, render
from inward.models.literal import Renamed, Stretches

P = ParamSpec("P")
R = TypeVar("R")
Rendered = Callable[[Messages], str]
"""Applies the chat template."""
TRIALS: tuple[Sequence[Literal["system", "user", "assistant"]], ...] = (
    ("user",),
    ("user", "assistant"),
    ("system", "user", "assistant", "user"),
)
"""Turns that are rendered to see which added tokens a template writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Messages with stand-ins for parts of their contents, and the part that each stand-in replaces."""

    messages: list[dict[str, str]]
    parts: list[str]
    spelled: bool
    """True where a part is a control token; false where all parts could only become one beside other text."""


_ONE_AT_A_TIME = threading.RLock()
"""A tokenizer of `transformers` keeps its options in itself from a call to the encoding: two threads would mix them up."""


def one_at_a_time(encode: Callable[P, R]) -> Callable[P, R]:
    """Return a function that encodes with tokenizers and that only one thread is in at a time."""

    @wraps(encode)
    def alone(*arguments: P.args, **options: P.kwargs) -> R:
        with _ONE_AT_A_TIME:
            return encode(*arguments, **options)

    return alone


class ControlTokens:
    """The control tokens of one tokenizer, and the encoding of text that may spell them out; `control_tokens` makes one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = weakref.proxy(tokenizer)  # whoever calls holds it; nothing here keeps it in memory
        self.ids = _find(tokenizer)
        by_length = sorted(self.ids, key=len, reverse=True)  # the longest one wins, as in the tokenizer
        self._pattern = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
        self._longest = max(map(len, by_length), default=0)
        self._beginnings = {marker[:size] for marker in by_length for size in range(1, len(marker))}
        self._ends = {marker[size:] for marker in by_length for size in range(1, len(marker))}
        self._stand_in = str(10**39 + secrets.randbelow(10**39))  # digits: templates may trim, upper-case or quote a content

    @one_at_a_time
    def spells(self, text: str) -> bool:
        """Say whether the tokenizer would make a control token out of `text`, as it stands or once it is normalised."""
        if self._pattern.search(text):
            return True
        if not self._alters_text:
            return False
        unknown = self._tokenizer.unk_token_id  # what an unknown character becomes, which forges nothing
        tokens = set(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        return not tokens.isdisjoint(token for token in self.ids.values() if token != unknown)

    @one_at_a_time
    def encode_chat(self, messages: Messages, rendered: Rendered) -> tuple[int, ...]:
        """Return the tokens of a conversation, of which only the template writes control tokens."""
        text = self._render(messages, rendered)
        if isinstance(text, list):
            return self._literal.encode_pieces(text)
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @one_at_a_time
    def chat_text(self, messages: Messages, rendered: Rendered) -> str:
        """Return the text of a conversation as `encode_chat` encodes it."""
        return "".join(self._render(messages, rendered))

    @one_at_a_time
    def encode_text(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Return the tokens of a text that has no template; `add_special_tokens` adds those that frame every input."""
        if self.spells(text):
            return self._literal.encode(text, add_special_tokens=add_special_tokens)[0]
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids)

    @one_at_a_time
    def encode_pair(self, first: str, second: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Return the tokens of two texts as the tokenizer joins them, and their types where it tells the texts apart."""
        encoded = self._tokenizer(first, second, verbose=False)
        tokens, types = tuple(encoded["input_ids"]), encoded.get("token_type_ids")
        if self.spells(first) or self.spells(second):
            tokens, literal_types = self._literal.encode(first, second, add_special_tokens=True)
            types = literal_types if types is not None else None
        return tokens, None if types is None else tuple(types)

    def _render(self, messages: Messages, rendered: Rendered) -> str | list[str]:
        """Return the text of a conversation: whole where the tokenizer itself finds the right control tokens, else in pieces.

        The pieces at even places are text, those at odd places the template's control tokens.
        """
        text = rendered(messages)
        masked = self._mask(messages)
        if not masked.parts and not masked.spelled:
            return text
        template = rendered(masked.messages)
        if not masked.spelled and self._pattern.findall(template) == self._pattern.findall(text):
            return text
        return self._cut(template, masked.parts)

    def _mask(self, messages: Messages) -> Masked:
        """Put stand-ins for what is a control token, or could be completed to one by the text before or after it."""
        parts: list[str] = []
        masked = []
        for message in messages:
            content, end, pieces = message["content"], 0, []
            for start, stop in self._spans(content):
                pieces += [content[end:start], f"{self._stand_in}{len(parts):09d}"]
                parts.append(content[start:stop])
                end = stop
            masked.append({**message, "content": "".join([*pieces, content[end:]])})
        return Masked(messages=masked, parts=parts, spelled=any(self.spells(message["content"]) for message in messages))

    def _spans(self, content: str) -> list[tuple[int, int]]:
        """Return where stand-ins are put: control tokens, and ends of the trimmed content that may be parts of one."""
        spans = [match.span() for match in self._pattern.finditer(content)]
        first, last = len(content) - len(content.lstrip()), len(content.rstrip())
        body = content[first:last]
        sizes = range(min(self._longest, len(body)), 0, -1)
        spans += [(first, first + size) for size in sizes if body[:size] in self._ends][:1]
        spans += [(last - size, last) for size in sizes if body[-size:] in self._beginnings][:1]
        if 0 < len(body) < self._longest and any(body in marker for marker in self.ids):
            spans.append((first, last))
        return _merged(spans)

    def _cut(self, template: str, parts: Sequence[str]) -> list[str]:
        """Cut a rendered text at all control tokens it spells out, and put the parts for the stand-ins between them."""
        stand_ins = re.compile(self._stand_in + r"(\d{9})")
        pieces, end = [], 0
        for match in self._pattern.finditer(template):
            pieces += [template[end : match.start()], match[0]]
            end = match.end()
        pieces.append(template[end:])
        pieces[::2] = [stand_ins.sub(lambda match: parts[int(match[1])], piece) for piece in pieces[::2]]
        return pieces

    @cached_property
    def _literal(self) -> Renamed | Stretches:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return Stretches(self._tokenizer, self.ids) if backend is None else Renamed(backend, self.ids)

    @cached_property
    def _alters_text(self) -> bool:
        """True where text that spells out no control token may still be encoded as one."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is None or backend.normalizer is not None or type(backend.model).__name__ == "Unigram"


_of_tokenizer: weakref.WeakKeyDictionary[Any, tuple[object, ControlTokens]] = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of a tokenizer, which are looked for once for each chat template it has."""
    template, tokens = _of_tokenizer.get(tokenizer, (None, None))
    if tokens is None or template != tokenizer.chat_template:
        tokens = ControlTokens(tokenizer)
        _of_tokenizer[tokenizer] = (tokenizer.chat_template, tokens)
    return tokens


def _find(tokenizer: Any) -> dict[str, int]:
    """Return the control tokens, as they are written, and their ids."""
    template = _written_by_template(tokenizer)
    listed = getattr(tokenizer, "chat_control_tokens", None) or ()  # a setting of newer tokenizers
    special = set(tokenizer.all_special_ids)
    return {
        str(entry): index
        for index, entry in tokenizer.added_tokens_decoder.items()
        if str(entry).strip()
        and (entry.special or index in special or str(entry) in listed or (_is_marker(str(entry)) and str(entry) in template))
    }


def _is_marker(text: str) -> bool:
    """Say whether a token is a name between signs, such as `<think>` or `[INST]`, and no word, blank or line break."""
    return any(map(str.isalnum, text)) and not (text[0].isalnum() or text[-1].isalnum())


def _written_by_template(tokenizer: Any) -> str:
    """Return all text that the chat template is seen to write: its source, and what it makes of some short turns."""
    if tokenizer.chat_template is None:
        return ""
    texts = [tokenizer.get_chat_template()]
    for roles in TRIALS:
        with suppress(UsageError):  # many a template refuses a system turn
            texts.append(render(tokenizer, [{"role": role, "content": "word"} for role in roles], reply=roles[-1] == "user"))
    return "\0".join(texts)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
