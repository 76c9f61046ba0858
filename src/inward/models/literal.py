"""Two ways to have a tokenizer encode the names of its control tokens as text.

`Renamed` is a copy of the tokenizer in which every control token goes by a random name that no text holds. Only what is
written by that name is the control token, and everything else is as it was: the normaliser, the merges across the border
between a template and a message, the blanks that a control token swallows.

`Stretches` serves tokenizers that are not of the library `tokenizers`, of which no such copy can be made. It encodes the
stretches between control tokens one by one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from inward.errors import UsageError


class Renamed:
    """A copy of a tokenizer (of the library `tokenizers`) whose control tokens have other names; `ids` are theirs."""

    def __init__(self, backend: Any, ids: Mapping[str, int]) -> None:
        from tokenizers import Tokenizer

        secret = secrets.token_hex(20)
        self._names = {marker: f"{secret}x{number:06d}x" for number, marker in enumerate(ids)}
        settings = json.loads(backend.to_str())
        settings |= {"truncation": None, "padding": None}
        for entry in settings["added_tokens"]:
            if entry["content"] in self._names:
                entry |= {"content": self._names[entry["content"]], "normalized": False, "single_word": False}
        _rename_in_model(settings["model"], self._names)
        self._tokenizer = Tokenizer.from_str(json.dumps(settings))
        for marker, index in ids.items():
            assert self._tokenizer.token_to_id(self._names[marker]) == index, f"{marker} lost its id in a copy of the tokenizer"

    def encode_pieces(self, pieces: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens of text (every piece at an even place) between control tokens (at the odd places)."""
        names = [self._names[piece] if index % 2 else piece for index, piece in enumerate(pieces)]
        return self.encode("".join(names), add_special_tokens=False)[0]

    def encode(
        self, text: str, second: str | None = None, *, add_special_tokens: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of a text or of a pair of texts, and which of the two each is of."""
        encoded = self._tokenizer.encode(text, second, add_special_tokens=add_special_tokens)
        return tuple(encoded.ids), tuple(encoded.type_ids)


class Stretches:
    """Any other tokenizer, asked to look for no special tokens in text. Raises `UsageError` where it still finds one."""

    def __init__(self, tokenizer: Any, ids: Mapping[str, int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def encode_pieces(self, pieces: Sequence[str]) -> tuple[int, ...]:
        """Return the tokens of text (every piece at an even place) between control tokens (at the odd places)."""
        tokens: tuple[int, ...] = ()
        for index, piece in enumerate(pieces):
            tokens += (self._ids[piece],) if index % 2 else self.encode(piece, add_special_tokens=False)[0] if piece else ()
        return tokens

    def encode(
        self, text: str, second: str | None = None, *, add_special_tokens: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of a text or of a pair of texts, and which of the two each is of."""
        for part in (text, second or ""):
            self._require_text(part, self._tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids)
        options = {"add_special_tokens": add_special_tokens, "split_special_tokens": True, "return_token_type_ids": True}
        encoded = self._tokenizer(text, second, **options)
        return tuple(encoded["input_ids"]), tuple(encoded["token_type_ids"])

    def _require_text(self, text: str, tokens: Sequence[int]) -> None:
        forged = [marker for marker, index in self._ids.items() if index in tokens and index != self._tokenizer.unk_token_id]
        if forged:
            raise UsageError(
                f"a text spells out {forged[0]}, which the tokenizer {type(self._tokenizer).__name__} cannot encode as text: "
                f"{text[:80]!r}. Take this text out of the prompts, or use a model whose tokenizer is a tokenizer.json"
            )


def _rename_in_model(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename the entries of the vocabulary that are control tokens, so that no text can be cut into them either."""
    if isinstance(model["vocab"], list):  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    renamed = names.keys() & model["vocab"].keys()
    if not renamed:
        return
    model["vocab"] = {names.get(token, token): index for token, index in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        parts = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [merge for merge in parts if renamed.isdisjoint((*merge, "".join(merge)))]
