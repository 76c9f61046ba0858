"""What is asked of vLLM: the stretches of every row, as many rows at a time as it decodes side by side.

Each row is a request of its own, with a seed of its own, so that a completion depends on its index and on nothing else (with
`n` completions a request, vLLM would give the i-th the seed of the first one plus i). The prompt is read once for all rows all
the same: they follow each other and share its blocks of keys. A row with a scaffold is asked for again behind what the engine
wrote (`phases`); log-probabilities of what it wrote are read in one pass more, because vLLM gives those of a prompt on demand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inward.engines.engine import Completion, Decoding, Progress, Request
from inward.engines.phases import last_written, note_written, stretch_seed, take_stretch
from inward.engines.row import Row, Rules
from inward.errors import InwardError, UsageError


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A row with its request, and, where they are asked for, the log-probabilities of its opening."""

    request: Request
    row: Row
    opening: tuple[float, ...] = field(default=())

    @property
    def text(self) -> list[int]:
        return [*self.request.tokens, *self.row.tokens]


def draw(
    core: Any,
    requests: Sequence[Request],
    rules: Rules,
    decoding: Decoding,
    *,
    rows: int,
    seed: int,
    progress: Progress | None,
) -> list[Completion]:
    """Draw every completion of every request by a `vllm.LLMEngine`, `rows` at a time, and return them in order."""
    every = [_Asked(request=request, row=Row(request.id, index, rules)) for request in requests for index in request.rows]
    waiting, active = deque(enumerate(every)), dict[str, _Asked]()

    def ask(name: str, asked: _Asked) -> None:
        active[name] = asked
        if asked.row.finish is None:
            _ask_stretch(core, name, asked, rules, decoding, seed)
        else:
            _ask_logps(core, name, asked.text[: len(asked.request.tokens) + last_written(asked.row)])

    try:
        while waiting or active:
            while waiting and len(active) < rows:
                number, asked = waiting.popleft()
                ask(str(number), asked)
            for output in _step(core):
                asked = active.pop(output.request_id)
                before = len(asked.row.tokens)
                _take(asked, output, decoding)
                finished = asked.row.finish is not None
                if not finished or (decoding.logps and before < len(asked.row.tokens) and last_written(asked.row)):
                    ask(output.request_id, asked)
                if progress is not None and len(asked.row.tokens) > before:
                    progress(int(finished), len(asked.row.tokens) - before)
    finally:
        if active:
            core.abort_request(list(active))
    return [asked.row.completion(asked.opening if decoding.logps else None) for asked in every]


def prompt_logps(core: Any, tokens: Sequence[int]) -> tuple[float, ...]:
    """Return the log-probability of each token of a text after the first."""
    _ask_logps(core, "text", tokens)
    outputs: list[Any] = []
    while not outputs:
        outputs = _step(core)
    return _logps_of_prompt(outputs[0])


def _take(asked: _Asked, output: Any, decoding: Decoding) -> None:
    if asked.row.finish is not None:
        written = _logps_of_prompt(output)[len(asked.request.tokens) - 1 :]
        asked.opening = note_written(asked.row, written)
        return
    drawn = output.outputs[0]
    logps = _logps(drawn.logprobs, drawn.token_ids) if decoding.logps else None
    take_stretch(asked.row, drawn.token_ids, logps)


def _step(core: Any) -> list[Any]:
    """Let vLLM go on for a step and return what has come to an end. Raises InwardError where it fails."""
    try:
        return [output for output in core.step() if output.finished]
    except RuntimeError as error:  # memory that ran out on a GPU, a worker that died
        raise InwardError(f"vLLM failed while it drew: {error}. What is finished is kept: run it again to go on") from error


def _ask_stretch(core: Any, name: str, asked: _Asked, rules: Rules, decoding: Decoding, seed: int) -> None:
    from vllm import SamplingParams, TokensPrompt
    from vllm.exceptions import VLLMError
    from vllm.sampling_params import RequestOutputKind

    try:
        sampling = SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            max_tokens=asked.row.room,
            seed=stretch_seed(seed, asked.row),
            stop_token_ids=sorted(rules.stops),
            ignore_eos=True,  # ours are in the list
            logprobs=0 if decoding.logps else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except (VLLMError, ValueError) as error:
        raise UsageError(f"vLLM cannot draw as the recipe's temperature, top_p and top_k say: {error}") from error
    core.add_request(name, TokensPrompt(prompt_token_ids=asked.text), sampling)


def _ask_logps(core: Any, name: str, tokens: Sequence[int]) -> None:
    """Ask for the log-probabilities of a text's tokens, each given what stands before it."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    core.add_request(name, TokensPrompt(prompt_token_ids=list(tokens)), sampling)


def _logps_of_prompt(output: Any) -> tuple[float, ...]:
    return _logps(output.prompt_logprobs[1:], output.prompt_token_ids[1:])


def _logps(steps: Sequence[Any], tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(step[token].logprob for step, token in zip(steps, tokens, strict=True))
