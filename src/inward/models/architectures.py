"""How a model is sampled and trained: with prompts read once for all their outputs, with padding, or not at all, and why.

There are two ways to sample (`engines.transformers`: "shared", "padded") and two to train (`training`: "packed", "padded").
The first of each is faster and computes attention itself, which is right where every layer attends to all that stands
before. The second leaves attention to the model. Whether a way is right for a model is decided here, for both alike:

1. by the configuration, where that tells (`why_not_plain`);
2. by an exact trial on a miniature of the model (`models.miniature`), in float32, with short windows and large weights;
3. by a trial on the loaded model in its own number format, where correct ways differ by rounding.

A trial compares a way with the plain forward pass over each text alone. A way that differs, or fails, is not taken. Where no
way is left the model is refused: it would be sampled from a distribution, or trained on probabilities, that are not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from inward.errors import UsageError

if TYPE_CHECKING:
    import torch

Sampling = Literal["shared", "padded", "refused"]
Training = Literal["packed", "padded", "refused"]
EXACT = 0.01
"""Share of its own spread by which a result may differ in a miniature, in float32. Rounding is mostly below a millionth, and
0.002 in the deepest and most chaotic miniature; one token too many or too few in a mask, or a shifted position, exceeds 0.1."""
ROUNDED = 0.15
"""The same in the loaded model's number format. On an ordinary text two correct ways in bf16 stay well below."""


class UnsupportedAttention(Exception):
    """The model asked its attention for something that our own attention functions do not compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """How a model is sampled and trained. `reasons` are sentences that say why a faster way, or any, is not taken."""

    sampling: Sampling
    training: Training
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """A way to compute. `difference(model, exact)` is how far it is from the plain forward pass, as a share of the spread.

    `needs_plain` says whether it replaces the model's attention by plain causal attention. `exact` is whether the model is a
    miniature, which can be tried on any text, or a loaded model, whose numbers are only good on ordinary ones.
    """

    name: str
    needs_plain: bool
    difference: Callable[[Any, bool], float]


def choose_way(model: Any, ways: Sequence[Way], small: Any | None) -> tuple[str | None, list[str]]:
    """Return the name of the first right way (None if there is none), and why those before it are not taken.

    `model` is the loaded model, None to decide by `small`, its miniature, alone; one of the two may be missing.
    """
    reasons: list[str] = []
    for way in ways:
        reason = why_not_plain(small if model is None else model) if way.needs_plain else None
        for tried, exact in ((small, True), (model, False)):
            if reason is None and tried is not None:
                reason = _why_not(way, tried, exact)
        if reason is None:
            return way.name, reasons
        reasons.append(reason)
    return None, reasons


def _why_not(way: Way, model: Any, exact: bool) -> str | None:
    import torch

    try:
        difference = way.difference(model, exact)
    except torch.OutOfMemoryError:
        raise
    except UnsupportedAttention as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (the code of any architecture; whatever it raises, this way does not work)
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"a trial failed with {type(error).__name__}: {first_line}"
    if difference <= (EXACT if exact else ROUNDED):
        return None
    return f"in a trial it differed from the plain forward pass by {difference:.2g} of the spread of its values"


def refusal(model: Any, verb: str, reason: str) -> UsageError:
    """Return the error for a model that cannot be "sampled" or "trained" (`verb`) rightly."""
    return UsageError(
        f"{type(model).__name__} cannot be {verb}: {reason}. Its results would not be those of the model. "
        "Use a model of another architecture, for example a decoder with attention in every layer (Llama, Qwen, Gemma)"
    )


PER_LAYER = "per layer"


def config_value(config: Any, name: str) -> Any:
    """Return a value of a configuration: None where it has none, `PER_LAYER` where its layers have values of their own."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers refuses to read one for all
        return PER_LAYER


def why_not_full(config: Any) -> str | None:
    """Return why not every layer of a model attends to all that stands before, as its (text) configuration has it, or None."""
    kinds = set(config_value(config, "layer_types") or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if config_value(config, "sliding_window") and getattr(config, "use_sliding_window", True):
        return "it attends within a sliding window"
    return None


def why_not_plain(model: Any) -> str | None:
    """Return why a model's attention cannot be replaced by plain causal attention, as far as its configuration tells."""
    config = model.config.get_text_config()
    if partial := why_not_full(config):
        return partial
    if getattr(config, "is_encoder_decoder", False) or not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    return None


def position_limit(config: Any) -> int | None:
    """Return beyond how many tokens a text changes the positions of all texts in its batch, or None where none does.

    Longrope and dynamic rotary positions take their frequencies from the longest text of a batch: beyond this length a
    text's log-probabilities would depend on its company, and a sampled token's on how many tokens came after it.
    """
    config = config.get_text_config()
    ropes = config_value(config, "rope_parameters") or {}
    limits: list[int] = []
    for rope in (ropes, *ropes.values()):
        kind = str(rope.get("rope_type", "")) if isinstance(rope, dict) else ""
        if kind == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far `result` is from `expected`, as a share of the standard deviation of what was expected."""
    distance = float((result.float() - expected.float()).abs().mean()) / max(float(expected.float().std()), 1e-6)
    return distance if distance == distance else float("inf")  # a NaN differs from everything
