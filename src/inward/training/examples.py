"""What one pair teaches: its prompt's, chosen and rejected token ids as they were sampled, and which of them count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inward.records import Output, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One pair in tokens. A mask is as long as its tokens; False leaves a token out of every sum (it stays as context)."""

    pair_id: str
    prompt_tokens: tuple[int, ...]
    chosen_tokens: tuple[int, ...]
    chosen_mask: tuple[bool, ...]
    rejected_tokens: tuple[int, ...]
    rejected_mask: tuple[bool, ...]

    @property
    def row_tokens(self) -> int:
        """Length in tokens of the longer of its two sequences, prompt included."""
        return len(self.prompt_tokens) + max(len(self.chosen_tokens), len(self.rejected_tokens))

    @property
    def tokens(self) -> int:
        """Tokens of both sequences, the prompt counted in each."""
        return 2 * len(self.prompt_tokens) + len(self.chosen_tokens) + len(self.rejected_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLogps:
    """The reference's log-probabilities (nats) of a pair's two completions, summed over the tokens that count."""

    pair_id: str
    chosen: float
    rejected: float


def build_examples(pairs: Iterable[Pair], outputs: Iterable[Output], *, learn_written: bool = False) -> list[Example]:
    """Return one example a pair, in the order of the pairs, with its outputs found by id.

    Tokens that the engine wrote while scaffolding are masked unless `learn_written`.
    """
    by_id = {output.id: output for output in outputs}
    return [_example(pair, by_id, learn_written) for pair in pairs]


def _example(pair: Pair, outputs: dict[str, Output], learn_written: bool) -> Example:
    assert pair.chosen_id in outputs, f"pair {pair.id}: no output {pair.chosen_id}"
    assert pair.rejected_id in outputs, f"pair {pair.id}: no output {pair.rejected_id}"
    chosen, rejected = outputs[pair.chosen_id], outputs[pair.rejected_id]
    assert chosen.prompt_tokens == rejected.prompt_tokens, f"pair {pair.id}: its outputs answer different prompts"
    assert chosen.prompt_tokens, f"pair {pair.id}: an empty prompt leaves nothing to predict the first token from"
    return Example(
        pair_id=pair.id,
        prompt_tokens=chosen.prompt_tokens,
        chosen_tokens=chosen.tokens,
        chosen_mask=_mask(chosen, learn_written),
        rejected_tokens=rejected.tokens,
        rejected_mask=_mask(rejected, learn_written),
    )


def _mask(output: Output, learn_written: bool) -> tuple[bool, ...]:
    return tuple(learn_written or not written for written in output.written)
