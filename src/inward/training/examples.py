"""What one pair teaches: its prompt's, chosen and rejected token ids as they were sampled, and how much each counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inward.config import TrainingSettings
from inward.errors import TrainingError
from inward.records import Output, Pair
from inward.sampling.lengths import Decode, tokens_until


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


def build_examples(
    pairs: Iterable[Pair],
    outputs: Iterable[Output],
    settings: TrainingSettings,
    response_starts: Mapping[str, int] | None = None,
) -> list[Example]:
    """Return one example a pair, in the order of the pairs, with its outputs found by id.

    Tokens weigh what the settings give to the part they stand in. `response_starts` says, by output id, how many tokens stand
    before the response; it is needed only where the two weights differ (`needs_parts`). Tokens that the engine wrote while
    scaffolding weigh nothing unless `learn_written`.
    """
    assert response_starts is not None or not needs_parts(settings), "the weights differ: where does the response start?"
    by_id = {output.id: output for output in outputs}
    return [_example(pair, by_id, settings, response_starts or {}) for pair in pairs]


def needs_parts(settings: TrainingSettings) -> bool:
    return settings.thought_weight != settings.response_weight


def response_start(output: Output, marker: str, decode: Decode) -> int:
    """Return how many tokens stand before an output's response: up to the one that completes the response marker.

    The marker is thought, and so is a token that holds the marker's end and the response's first characters. Without the
    marker all is thought; without a marker in the format (`marker` is empty), nothing is. `decode` must be what made
    `output.text`; the tokens are never made again from text. Raises TrainingError where it is not.
    """
    if not marker:
        return 0
    if decode(output.tokens) != output.text:
        raise TrainingError(
            f"output {output.id}: its tokens do not give its text with the model's tokenizer, so thought and response cannot "
            "be told apart in them: set training.thought_weight and training.response_weight to the same value"
        )
    return tokens_until(output.tokens, lambda count: marker in decode(output.tokens[:count]))


def _example(pair: Pair, outputs: dict[str, Output], settings: TrainingSettings, starts: Mapping[str, int]) -> Example:
    assert pair.chosen_id in outputs, f"pair {pair.id}: no output {pair.chosen_id}"
    assert pair.rejected_id in outputs, f"pair {pair.id}: no output {pair.rejected_id}"
    chosen, rejected = outputs[pair.chosen_id], outputs[pair.rejected_id]
    assert chosen.prompt_tokens == rejected.prompt_tokens, f"pair {pair.id}: its outputs answer different prompts"
    assert chosen.prompt_tokens, f"pair {pair.id}: an empty prompt leaves nothing to predict the first token from"
    return Example(
        pair_id=pair.id,
        prompt_tokens=chosen.prompt_tokens,
        chosen_tokens=chosen.tokens,
        chosen_weights=_weights(chosen, settings, starts),
        rejected_tokens=rejected.tokens,
        rejected_weights=_weights(rejected, settings, starts),
        gap=None if pair.rejected_score is None else pair.chosen_score - pair.rejected_score,
    )


def _weights(output: Output, settings: TrainingSettings, starts: Mapping[str, int]) -> tuple[float, ...]:
    start = starts[output.id] if needs_parts(settings) else 0
    return tuple(
        0.0
        if written and not settings.learn_written
        else settings.thought_weight
        if index < start
        else settings.response_weight
        for index, written in enumerate(output.written)
    )
