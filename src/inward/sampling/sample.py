"""The sampling stage: prompts to outputs (METHOD.md, step 2). Each output is split into thought and response.

A response that `max_new_tokens` cut off breaks the format when outputs are drawn to learn from, unless the recipe allows it: it
is not judged, never chosen, and may be rejected within the share of format errors (`pairing`). The paper does not say what
became of such responses. Where models are measured it stays a response and is judged as it is, because that is what a user
would get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inward.engines.engine import Completion, Decoding, Engine, Progress, Request, Scaffold
from inward.errors import UsageError
from inward.records import Output, Prompt, content_id
from inward.thought import ThoughtFormat, messages, split, without_cut_off


def seed_for(*parts: str | int) -> int:
    """Return a seed below 2^63 that depends on every part, in order."""
    return int(content_id(*(str(part) for part in parts)), 16) >> 1


def make_scaffold(fmt: ThoughtFormat, budget: int) -> Scaffold:
    """Return the scaffold that writes the markers of `fmt` as `thought.join` does, around at most `budget` tokens."""
    if not fmt.thinks:
        raise UsageError(f"thought format {fmt.name!r} has no thought to scaffold; leave thought.scaffold out for it")
    return Scaffold(
        opening=f"{fmt.thought_marker}\n" if fmt.thought_marker else "",
        closing=f"\n\n{fmt.response_marker}\n",
        marker=fmt.response_marker,
        budget=budget,
    )


def sample(
    prompts: Sequence[Prompt],
    engine: Engine,
    fmt: ThoughtFormat,
    decoding: Decoding,
    *,
    k: int,
    seed: int,
    scaffold_budget: int | None = None,
    tries: int = 1,
    allow_cut_off: bool = True,
    progress: Progress | None = None,
) -> list[Output]:
    """Draw `k` outputs of every prompt, ordered by prompt and index.

    An output that breaks the format is drawn again, with a seed of its own, until it does not or has been drawn `tries`
    times (evaluation only: METHOD.md, last line of "One iteration"). `Output.tries` tells how often it was drawn. Unless
    `allow_cut_off`, a response that the length limit cut off is the format error `cut_off_response`.
    """
    scaffold = make_scaffold(fmt, scaffold_budget) if scaffold_budget is not None else None
    encoded = {prompt.id: engine.encode(messages(fmt, prompt.text)) for prompt in prompts}
    to_draw = {prompt.id: list(range(k)) for prompt in prompts}
    outputs: dict[tuple[str, int], Output] = {}
    for attempt in range(1, tries + 1):
        requests = [
            Request(id=prompt_id, tokens=encoded[prompt_id], k=len(indices), indices=tuple(indices))
            for prompt_id, indices in to_draw.items()
            if indices
        ]
        if not requests:
            break
        drawn = engine.generate(
            requests,
            decoding,
            seed=seed if attempt == 1 else seed_for(seed, "again", attempt),
            scaffold=scaffold,
            progress=progress if attempt == 1 else _only_tokens(progress),
        )
        broken: dict[str, list[int]] = {prompt_id: [] for prompt_id in to_draw}
        for completion in drawn:
            index = completion.index
            output = _output(fmt, completion, encoded[completion.request_id], index, allow_cut_off)
            outputs[completion.request_id, index] = replace(output, tries=attempt)
            if output.format_error:
                broken[completion.request_id].append(index)
        to_draw = broken
    return [outputs[prompt.id, index] for prompt in prompts for index in range(k)]


def _only_tokens(progress: Progress | None) -> Progress | None:
    """Count the tokens of outputs that are drawn again, but not the outputs, or more would be done than there are to do."""
    return progress and (lambda _, tokens: progress(0, tokens))


def _output(
    fmt: ThoughtFormat, completion: Completion, prompt_tokens: tuple[int, ...], index: int, allow_cut_off: bool
) -> Output:
    finished = completion.finish == "stop"
    parts = split(fmt, completion.text, finished=finished)
    if not allow_cut_off:
        parts = without_cut_off(parts, finished=finished)
    return Output(
        id=f"{completion.request_id}.{index}",
        prompt_id=completion.request_id,
        index=index,
        prompt_tokens=prompt_tokens,
        tokens=completion.tokens,
        written=completion.written,
        text=completion.text,
        thought=parts.thought,
        response=parts.response,
        format_error=parts.error,
        finish=completion.finish,
        logps=completion.logps,
    )
