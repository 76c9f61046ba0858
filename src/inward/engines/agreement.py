"""Whether whoever runs a model elsewhere runs these weights: its log-probabilities of a text against a forward pass here.

A reload that silently keeps the old weights, a server that was started with another model, a cache that outlived a reload: all
of them draw fluent text, and only such a comparison finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from inward.config import Dtype

QUESTION = "Why is the sky blue, and what colour is it at sunset?"
ANSWER = (
    "Sunlight meets the air, which scatters its blue part about five times as much as its red part. Seen from the ground, "
    "blue comes from everywhere. At sunset the way through the air is long: 90% of the blue is lost, and orange is left."
)
TOLERANCE = 0.1
"""Nats by which log-probabilities may differ on average: bf16 against fp32 differs by 0.01 to 0.05, other models by 0.5."""
MOVED = 1e-3
"""Nats from which new weights show in a forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The log-probabilities that one model gives to the reference's tokens after the first: elsewhere and by a pass here."""

    there: tuple[float, ...]
    here: tuple[float, ...]


def reference_tokens(tokenizer: Any, today: date | None) -> tuple[int, ...]:
    """Return the tokens of a short conversation, as the model's chat template writes it, with the beginning of an answer."""
    from inward.models.tokenizer import encode_chat, encode_text

    return (*encode_chat(tokenizer, [{"role": "user", "content": QUESTION}], today=today), *encode_text(tokenizer, ANSWER))


def forward_logps(
    folder: Path | str,
    base: Path | None,
    tokens: Sequence[int],
    *,
    dtype: Dtype,
    trust_remote_code: bool,
    on_processor: bool = False,
) -> tuple[float, ...]:
    """Return log P of each token after the first, by one forward pass of the model of a folder (or of its adapter on `base`).

    The model is loaded for this alone and let go; `on_processor` keeps it off the GPU, in the same number format.
    Raises UsageError where it cannot be loaded.
    """
    import torch

    from inward.engines.transformers.engine import load_model
    from inward.hardware import device, exact_float32, give_back_memory

    target = torch.device("cpu") if on_processor else device()
    model = load_model(folder, base, dtype=dtype, trust_remote_code=trust_remote_code).to(target).eval()
    with torch.inference_mode(), exact_float32():
        logits_TV = model(torch.tensor([list(tokens)], device=target), use_cache=False).logits[0, :-1].float()
        next_T1 = torch.tensor(list(tokens[1:]), device=target)[:, None]
        logps: list[float] = torch.log_softmax(logits_TV, dim=-1).gather(1, next_T1)[:, 0].tolist()
    del model
    give_back_memory()
    return tuple(logps)


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return by how many nats two lists of log-probabilities differ on average."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def disagreement(now: Reading, before: Reading | None = None) -> str | None:
    """Say in what way other weights than those here seem to run elsewhere, or None where nothing speaks for it.

    With the reading of the weights that were there `before`, it is also seen that new weights which differ by less than the
    tolerance have moved anything at all.
    """
    apart = distance(now.there, now.here)
    if not apart <= TOLERANCE:  # nor where one is no number
        return f"its log-probabilities of a short text differ by {apart:.2f} nats on average from those of the model folder"
    if before is not None and now.there == before.there and distance(now.here, before.here) > MOVED:
        return "it gives exactly the log-probabilities that it gave before, so it still has the earlier weights"
    return None
