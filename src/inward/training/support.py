"""How a model is trained: packed, padded or not at all, by a trial of both; and for a run, how it is sampled as well.

A trial is a micro-batch of a few pairs, as training makes them. In a miniature of the model its log-probabilities and all
gradients are compared with those that autograd takes from the model's own logits of one text after the other; in the loaded
model the hidden states, because the rest follows from them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from inward.config import Batching
from inward.engines.transformers.trial import choose_decoder, with_attention
from inward.errors import UsageError
from inward.models.architectures import Support, Way, choose_way, difference, position_limit, refusal
from inward.models.miniature import miniature
from inward.training import attention as pack
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.logps import body_of, check_head, completion_states, token_logps, why_not_our_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
LENGTHS = ((17, 9, 13), (6, 15, 4), (11, 3, 19))
"""Tokens of the trial's prompts, chosen and rejected outputs: more than a miniature's windows, and none like another."""
LOADED_PAIRS = 2
"""How many of them a loaded model is tried with, which is slower than a miniature."""
REJECTED_WEIGHT = -0.7
"""What a rejected output's log-probability counts in the trial's loss, a chosen one's counting 1."""


def choose_batching(model: PreTrainedModel, batching: Batching) -> Batching:
    """Return `batching` and give the model the attention that it takes, or return "padded" where only that is right.

    The reason for "padded" is logged. Raises `UsageError` where the model cannot be trained rightly at all.
    """
    check_head(model)
    name, reasons = choose_layout(model, small=miniature(model.config), padded_only=batching == "padded")
    if name is None:
        raise refusal(model, "trained", reasons[-1])
    if name == "packed":
        model.set_attn_implementation(pack.NAME)
        return batching
    if batching != "padded":
        log.warning("training %s with padding: %s", type(model).__name__, reasons[0])
    return "padded"


def check_architecture(model_path: Path, *, trust_remote_code: bool = False, sampled_here: bool = True) -> Support | None:
    """Return how a model folder is sampled and trained, by its configuration alone; None where that cannot tell.

    Raises `UsageError` where it cannot be trained, or, if it is `sampled_here` by our own engine, not sampled. It takes about a
    second and reads no weights. What it returns is confirmed by a trial on the weights when they are loaded.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    small = miniature(config)
    if small is None:
        return None
    support = support_of(small, miniature(config))
    for way, what, verb in ((support.sampling, "sampling", "sampled"), (support.training, "training", "trained")):
        if way == "refused" and (sampled_here or what == "training"):
            reasons = [reason.partition(": ")[2] for reason in support.reasons if reason.startswith(what)]
            raise refusal(small, verb, reasons[-1])
    return support


def support_of(small: Any, again: Any) -> Support:
    """Return how a model is sampled and trained, by two miniatures of it (tensors made for one are of no use to the other)."""
    sampling, sampling_reasons = choose_decoder(None, None, small=small)
    headless = why_not_our_head(again)
    training, training_reasons = (None, [headless]) if headless else choose_layout(None, small=again)
    reasons = [f"sampling: {reason}" for reason in sampling_reasons] + [f"training: {reason}" for reason in training_reasons]
    if sampling is None:  # the reason that decides stands last
        reasons = reasons[len(sampling_reasons) :] + reasons[: len(sampling_reasons)]
    return Support(sampling=sampling or "refused", training=training or "refused", reasons=tuple(reasons))


def choose_layout(
    model: Any | None, *, small: Any | None, padded_only: bool = False
) -> tuple[Literal["packed", "padded"] | None, list[str]]:
    """Return how micro-batches are laid out for a model (None: in no way), and why not without padding."""
    from transformers import AttentionInterface

    AttentionInterface.register(pack.NAME, pack.attention)
    either: Any = small if model is None else model
    vocabulary = either.get_input_embeddings().num_embeddings

    def packed(tried: Any, exact: bool) -> float:
        with with_attention(tried, pack.NAME):
            got = _pass(tried, "shared", exact, vocabulary)
        return _distance(got, _plain_pass(tried, exact, vocabulary))

    def padded(tried: Any, exact: bool) -> float:
        return _distance(_pass(tried, "padded", exact, vocabulary), _plain_pass(tried, exact, vocabulary))

    ways = [Way("packed", True, packed), Way("padded", False, padded)]
    name, reasons = choose_way(model, ways[1:] if padded_only else ways, small)
    assert name in ("packed", "padded", None)
    return name, reasons  # type: ignore[return-value]


def check_positions(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """Raise `UsageError` for a sequence whose length would change the log-probabilities of others in its micro-batch."""
    limit = position_limit(model.config)
    longest = max((example.row_tokens for example in examples), default=0)
    if limit is not None and longest > limit:
        raise UsageError(
            f"a pair has {longest} tokens, and {type(model).__name__} with its rotary positions can be trained on at most "
            f"{limit}: beyond, a sequence's log-probabilities depend on what it is batched with. Lower prompts.max_tokens or "
            "sampling.max_new_tokens"
        )


def trial_examples(vocabulary: int, count: int = len(LENGTHS)) -> list[Example]:
    """Return `count` pairs of random tokens and of many lengths."""
    generator = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, min(vocabulary, 200)) for _ in range(count))

    return [
        Example(
            pair_id=str(index),
            prompt_tokens=tokens(prompt),
            chosen_tokens=tokens(chosen),
            chosen_weights=(1.0,) * chosen,
            rejected_tokens=tokens(rejected),
            rejected_weights=(1.0,) * rejected,
        )
        for index, (prompt, chosen, rejected) in enumerate(LENGTHS[:count])
    ]


def _pass(model: Any, batching: Batching, exact: bool, vocabulary: int) -> dict[str, Tensor]:
    """Return what a way computes: log-probabilities and gradients of a miniature, hidden states of a loaded model."""
    batch = collate(trial_examples(vocabulary, len(LENGTHS) if exact else LOADED_PAIRS), model.device, batching)
    if not exact:
        with torch.no_grad():
            return {"states": completion_states(model, batch)}
    logps_N = token_logps(model, batch)
    chosen_N = batch.sequence_N < len(LENGTHS)
    return {"logps": logps_N.detach()} | _gradients(model, (logps_N * torch.where(chosen_N, 1.0, REJECTED_WEIGHT)).sum())


def _plain_pass(model: Any, exact: bool, vocabulary: int) -> dict[str, Tensor]:
    """Return the same from forward passes over one sequence after the other."""
    examples = trial_examples(vocabulary, len(LENGTHS) if exact else LOADED_PAIRS)
    outputs = [(e.prompt_tokens, e.chosen_tokens) for e in examples] + [(e.prompt_tokens, e.rejected_tokens) for e in examples]
    parts: list[Tensor] = []
    for prompt, output in outputs:
        ids = torch.tensor([prompt + output], device=model.device)
        predicting = slice(len(prompt) - 1, len(prompt) + len(output) - 1)
        if exact:
            logps_TV = model(input_ids=ids, use_cache=False).logits[0, predicting].float().log_softmax(-1)
            parts.append(logps_TV.gather(1, torch.tensor(output)[:, None])[:, 0])
        else:
            with torch.no_grad():
                parts.append(body_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, predicting])
    if not exact:
        return {"states": torch.cat(parts)}
    weights = [1.0] * len(examples) + [REJECTED_WEIGHT] * len(examples)
    loss = torch.stack([weight * part.sum() for weight, part in zip(weights, parts, strict=True)]).sum()
    return {"logps": torch.cat(parts).detach()} | _gradients(model, loss)


def _gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _distance(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor. Gradients are measured against the largest one: some are all but zero."""
    if set(got) != set(expected):
        return float("inf")
    first = next(iter(expected))
    values = [difference(got[first], expected[first])]
    gradients = [name for name in expected if name != first]
    if gradients:
        scale = max(float(expected[name].norm()) for name in gradients)
        values += [float((got[name] - expected[name]).norm()) / scale for name in gradients]
    return max(values)
