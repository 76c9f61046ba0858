"""A fake engine for tests and dry runs: texts come from a function, everything else keeps the engine's contract.

No model and no heavy package. Tokens are the bytes of the text (0-255); `END` ends a turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from inward.engines.engine import CLOSED, Abilities, Completion, Decoding, Progress, Request, Scaffold
from inward.engines.row import Row, check_lengths, make_rules
from inward.errors import UsageError
from inward.models.identity import content_digest
from inward.records import content_id

END = 256
Script = Callable[[str, int, int], str]
"""(text so far, index, seed) -> how it goes on. The text so far is the prompt as encoded and what the engine wrote."""

WORDS = ("the", "a", "so", "then", "because", "light", "water", "stone", "river", "answer", "first", "second", "never", "and")


def babble(text: str, index: int, seed: int) -> str:
    """The default script: 3 to 40 words that depend on all three arguments, the same on every machine."""
    draw = random.Random(content_id(text, str(index), str(seed)))
    return " ".join(draw.choices(WORDS, k=draw.randint(3, 40)))


class ScriptedEngine:
    """An `Engine` whose model is `script`.

    After each stretch that the engine wrote itself (the scaffold's opening or closing), the script is asked again, with
    all of the text up to there, as a model would be. Temperature, top-p and top-k mean nothing to it.
    """

    def __init__(self, script: Script = babble, *, context: int = 1_000_000) -> None:
        self._script = script
        self._context = context
        self._model = ""
        self._closed = False

    @property
    def context(self) -> int:
        return self._context

    @property
    def abilities(self) -> Abilities:
        return Abilities(logps=False, scaffolds=True, reload=True)

    def load(self, folder: Path, base: Path | None = None) -> None:
        """Take the model of `folder`: from now on the script's seed depends on what the folder holds. `base` is not read.

        Raises UsageError where there is no model folder, as an engine with weights does.
        """
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(f"no model could be loaded from {folder}: it has neither config.json nor adapter_config.json")
        self._model, self._closed = content_digest(folder), False

    def close(self) -> None:
        self._closed = True

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        turns = [f"<{message['role']}>{message['content']}".encode("utf-8", "surrogatepass") for message in messages]
        return tuple(token for turn in turns for token in (*turn, END)) + tuple(b"<assistant>")

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        *,
        seed: int,
        scaffold: Scaffold | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Return every request's `k` completions, ordered by request and index. Raises UsageError for `decoding.logps`."""
        if self._closed:
            raise UsageError(CLOSED)
        if decoding.logps:
            raise UsageError("a scripted engine has no probabilities: leave Decoding.logps out")
        rules = make_rules(decoding, scaffold, stops=frozenset({END}), encode=_encode, decode=_decode)
        check_lengths(requests, rules, self._context)
        if self._model:
            seed = int(content_id(self._model, str(seed)), 16)
        completions = []
        for request in requests:
            for index in request.rows:
                row = Row(request.id, index, rules)
                self._run(row, request, index, seed)
                completions.append(row.completion())
                if progress is not None:
                    progress(1, len(row.tokens) - len(rules.opening))
        return completions

    def _run(self, row: Row, request: Request, index: int, seed: int) -> None:
        upcoming: Iterator[int] | None = None
        while row.finish is None:
            if row.forced:
                row.take(END)
                upcoming = None
                continue
            if upcoming is None:
                upcoming = iter(_encode(self._script(_decode((*request.tokens, *row.tokens)), index, seed)))
            row.take(next(upcoming, END))


def _encode(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))


def _decode(tokens: Sequence[int]) -> str:
    return bytes(token for token in tokens if token != END).decode("utf-8", "replace")
