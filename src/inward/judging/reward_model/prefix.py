"""Each prompt read once for all its responses: a decoder's keys and values of the prompt, continued by each response.

Dimensions: G prompts, P tokens of the longest prompt, R rows (conversations), S tokens after the prompt in the longest row,
T tokens of the longest row, H heads, D width.

A reward model is a body (`base_model`: tokens to hidden states) under a head. Here the body is called in two steps, first on
the prompts, then on what follows them, with the prompts' keys and values standing before; the hidden states of both are put
together, so that the head sees what it always does: hidden states [R, T, D] of whole conversations. That is why it works for
heads of any kind, such as one that looks into the prompt. Rows of a batch may continue different prompts: the tokens between
a prompt's end and the longest prompt's end are masked, and positions are given, so the sums are those of one pass.

`why_unshared` decides once, when the model is loaded, by its configuration and by a trial, whether it allows this.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inward.judging.reward_model.conversations import Family

if TYPE_CHECKING:
    import torch

NEEDED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"}
"""What a body must take to be called in two steps."""


class Unshareable(Exception):
    """The head asked its body for something that two steps do not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """G prompts as the body read them: the cache's layers with keys and values [G, H, P, ...], and hidden states.

    The first `lengths_G` tokens of each are real.
    """

    layers: list[Any]
    hidden_GPD: torch.Tensor
    lengths_G: list[int]


def read_prompts(body: Any, families: Sequence[Family]) -> Prompts:
    """Read the families' prompts in one pass, padded on the right (causal: padding comes after). Raises `Unshareable`."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    lengths = [family.size for family in families]
    ids_GP = torch.tensor([_filled(family.prefix, max(lengths)) for family in families], device=body.device)
    positions_P = torch.arange(ids_GP.shape[1], device=body.device)[None]
    mask_GP = (positions_P < torch.tensor(lengths, device=body.device)[:, None]).long()
    cache = DynamicCache()
    output = body.forward(
        input_ids=ids_GP,
        attention_mask=mask_GP,
        position_ids=positions_P.expand_as(ids_GP),
        past_key_values=cache,
        use_cache=True,
    )
    if not cache.layers or any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
        raise Unshareable("it does not keep keys and values of all its layers")
    return Prompts(layers=list(cache.layers), hidden_GPD=output.last_hidden_state, lengths_G=lengths)


@contextmanager
def continuing(body: Any, prompts: Prompts, prompt_of_row: Sequence[int], sizes: Sequence[int]) -> Iterator[None]:
    """Let the body read whole rows [R, T] from where their prompts end. `sizes` are the rows' own lengths in tokens.

    Raises `Unshareable` in the body's place where the head asks for more than hidden states.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    usual = body.forward

    def forward(input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        arguments = {name for name, value in others.items() if value is not None and value is not False}
        asked = arguments - {"use_cache", "return_dict"}
        if asked or input_ids is None or attention_mask is None or others.get("return_dict") is False:
            raise Unshareable(f"its head asks its body for {', '.join(sorted(asked)) or 'another form of input or output'}")
        if input_ids.shape != (len(sizes), max(sizes)):
            raise Unshareable("its head gives its body other tokens")
        return BaseModelOutputWithPast(last_hidden_state=_continue(usual, prompts, prompt_of_row, sizes, input_ids))

    body.forward = forward
    try:
        yield
    finally:
        del body.forward  # the class's own is back


def _continue(
    usual: Callable[..., Any], prompts: Prompts, prompt_of_row: Sequence[int], sizes: Sequence[int], ids_RT: torch.Tensor
) -> torch.Tensor:
    """Return the hidden states [R, T, D] of whole rows; zeros stand where a row is padded."""
    import torch
    from transformers import DynamicCache

    device = ids_RT.device
    index_R = torch.tensor(prompt_of_row, device=device)
    starts = [prompts.lengths_G[prompt] for prompt in prompt_of_row]
    starts_R1 = torch.tensor(starts, device=device)[:, None]
    rest_R1 = torch.tensor(sizes, device=device)[:, None] - starts_R1
    reach, width = max(starts), int(rest_R1.max())
    at_S, at_P = torch.arange(width, device=device)[None], torch.arange(reach, device=device)[None]
    places_RS = starts_R1 + torch.minimum(at_S, rest_R1 - 1)  # padding repeats the last token and its position
    cache = DynamicCache()
    for layer in prompts.layers:
        continued = copy.copy(layer)
        continued.keys = layer.keys[:, :, :reach].index_select(0, index_R)
        continued.values = layer.values[:, :, :reach].index_select(0, index_R)
        cache.layers.append(continued)
    read_RSD = usual(
        input_ids=ids_RT.gather(1, places_RS),
        attention_mask=torch.cat([at_P < starts_R1, at_S < rest_R1], dim=1).long(),
        position_ids=places_RS,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    whole_RTD: torch.Tensor = read_RSD.new_zeros(*ids_RT.shape, read_RSD.shape[-1])
    for row, (prompt, start, size) in enumerate(zip(prompt_of_row, starts, sizes, strict=True)):
        whole_RTD[row, :start] = prompts.hidden_GPD[prompt, :start]
        whole_RTD[row, start:size] = read_RSD[row, : size - start]
    return whole_RTD


def why_unshared(body: Any, config: Any, run: Callable[[bool], torch.Tensor], tolerance: float) -> str | None:
    """Return why prompts cannot be read apart, or None.

    `run` makes one and the same trial in one step (False) or in two (True) and returns what the head got: hidden states of
    the trial's real tokens. They may differ by `tolerance` of their own size.
    """
    from inward.engines.transformers.shared_prefix import why_not_full

    if not set(inspect.signature(body.forward).parameters) >= NEEDED or "forward" in vars(body):
        return "its body cannot go on from keys and values"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder"
    if partial := why_not_full(config):
        return partial
    if any(kind in str(getattr(module, "rope_type", "")) for module in body.modules() for kind in ("dynamic", "longrope")):
        return "its positions depend on the length of the whole"
    try:
        expected, continued = run(False), run(True)
    except (Unshareable, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"a trial failed: {error}"
    if continued.shape != expected.shape or not float((continued - expected).norm()) <= tolerance * float(expected.norm()):
        return "a trial gave other hidden states: its attention is not causal"
    return None


def _filled(tokens: list[int], width: int) -> list[int]:
    return tokens + tokens[-1:] * (width - len(tokens))
