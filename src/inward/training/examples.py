"""What one pair teaches: its prompt's, chosen and rejected token ids as they were sampled, and how much each counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inward.records import Output, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One pair in tokens, with a weight for each: a sequence's log-probability is sum_t weight_t * log pi(token_t).

    A weight of 0 leaves a token out of every sum; it stays as context. `gap` is the judge's score of the chosen output minus
    that of the rejected one; None where the rejected one broke the format and so has no score.
    """

    pair_id: str
    prompt_tokens: tuple[int, ...]
    chosen_tokens: tuple[int, ...]
    chosen_weights: tuple[float, ...]
    rejected_tokens: tuple[int, ...]
    rejected_weights: tuple[float, ...]
    gap: float | None = None

    @property
    def row_tokens(self) -> int:
        """Length in tokens of the longer of its two sequences, prompt included."""
        return len(self.prompt_tokens) + max(len(self.chosen_tokens), len(self.rejected_tokens))

    @property
    def tokens(self) -> int:
        """Tokens of both sequences, the prompt counted in each."""
        return 2 * len(self.prompt_tokens) + len(self.chosen_tokens) + len(self.rejected_tokens)

    @property
    def unique_tokens(self) -> int:
        """Tokens of both sequences, their prompt counted once."""
        return self.tokens - len(self.prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLogps:
    """The reference's log-probabilities (nats) of a pair's two completions, each token times its weight."""

    pair_id: str
    chosen: float
    rejected: float


def build_examples(pairs: Iterable[Pair], outputs: Iterable[Output], *, learn_written: bool = False) -> list[Example]:
    """Return one example a pair, in the order of the pairs, with its outputs found by id.

    Tokens that the engine wrote while scaffolding weigh nothing unless `learn_written`.
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
        chosen_weights=_weights(chosen, learn_written),
        rejected_tokens=rejected.tokens,
        rejected_weights=_weights(rejected, learn_written),
        gap=None if pair.rejected_score is None else pair.chosen_score - pair.rejected_score,
    )


def _weights(output: Output, learn_written: bool) -> tuple[float, ...]:
    return tuple(1.0 if learn_written or not written else 0.0 for written in output.written)
