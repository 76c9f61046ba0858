"""The arithmetic that a training step needs, to hold its time against what the hardware can do.

Only what the mathematics asks for counts: each prompt once, no padding, no logits of tokens that do not count, nothing that
is computed again to save memory. A product of a token with an [out, in] matrix is 2 * out * in operations; its backward pass
costs as much for the gradient of the token and, where the matrix is learned, as much again for that of the matrix.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inward.models.size import attention_shape, whole_number
from inward.training.examples import Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of one forward pass: for a token in the body, for a token whose logits are needed, for a token-key pair.

    `learned` is the share of the matrices that get a gradient: 1 in full training, nearly 0 under an adapter.
    """

    body: float
    head: float
    attention: float
    learned: float

    def forward(self, examples: Sequence[Example]) -> float:
        """Return the operations of a forward pass over pairs."""
        counted = sum(weight > 0 for e in examples for weight in (*e.chosen_weights, *e.rejected_weights))
        seen = sum(_seen(e) for e in examples)
        return self.body * sum(e.unique_tokens for e in examples) + self.head * counted + self.attention * seen

    def step(self, examples: Sequence[Example]) -> float:
        """Return the operations of a forward and a backward pass over pairs."""
        return self.forward(examples) * (2 + self.learned)


def work_of(model: PreTrainedModel) -> Work | None:
    """Return what a model's passes cost, from its linear layers; with LoRA injected, the adapter's layers included.

    None where its configuration does not tell the shape of its attention (heads of several widths, no attention at all).
    """
    import torch

    head = model.get_output_embeddings()
    body = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    matrices = [*body, head]
    config = model.config.get_text_config()
    heads, width = attention_shape(config)
    layers = whole_number(config, "num_hidden_layers")
    if not (heads and width and layers):
        log.warning("flops and mfu of %s are not known: its heads are not all of one width", type(model).__name__)
        return None
    return Work(
        body=2.0 * sum(map(_numbers, body)),
        head=2.0 * _numbers(head),
        attention=4.0 * layers * heads * width,
        learned=sum(_numbers(m) for m in matrices if m.weight.requires_grad) / sum(map(_numbers, matrices)),
    )


def _numbers(module: torch.nn.Module) -> int:
    """Return the numbers in a layer's matrix; a quantised weight holds two of them in a byte, so its own count is another."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.in_features * module.out_features
    assert isinstance(module.weight, torch.Tensor)
    return module.weight.numel()


def _seen(example: Example) -> int:
    """Return how many token-key pairs attention weighs: each token with itself and all before it, the prompt's once."""
    prompt, outputs = len(example.prompt_tokens), (len(example.chosen_tokens), len(example.rejected_tokens))
    return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in outputs)
