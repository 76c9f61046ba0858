"""A tiny reward model whose head is code of its own, in ArmoRM's form: several objectives, weighed by a gate in the prompt.

`variant` is what its code does wrong, or does in a way of its own. Whenever the code is loaded it leaves a file behind.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

Variant = Literal["", "wide", "short", "sums", "mean", "layers", "several bodies", "cast", "broken"]

CODE = """
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput

Path(MARKER).write_text("ran")


@dataclass
class Rated(ModelOutput):
    rewards: Optional[torch.Tensor] = None
    gating_output: Optional[torch.Tensor] = None
    score: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None


class RatedLlama(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression = torch.nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.gate = torch.nn.Linear(config.hidden_size, config.num_objectives)
        self.transform = torch.nn.Parameter(torch.eye(config.num_objectives))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, output_attentions=None):
        variant = self.config.variant
        layers = True if variant == "layers" else None
        output = self.model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            output_attentions=output_attentions, output_hidden_states=layers,
        )
        hidden = output.hidden_states[-1] if layers else output[0]
        if variant == "several bodies":
            hidden = hidden + self.model(input_ids, attention_mask=attention_mask)[0]
        if variant == "cast":
            hidden = hidden.to(torch.bfloat16)
        if variant == "broken":
            raise AssertionError("no such luck")
        batch = torch.arange(len(input_ids))
        ends = torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1  # before the first padding
        at = hidden.mean(1) if variant == "mean" else hidden[batch, ends % input_ids.shape[1]]
        turns = [max(place for place, token in enumerate(row) if token == TURN) for row in input_ids.tolist()]
        rewards = self.regression(at)
        gating = self.gate(hidden[batch, torch.tensor(turns)]).softmax(-1)
        score = (gating * (rewards @ self.transform)).sum(-1)
        if variant == "wide":
            score = rewards
        if variant == "short":
            score = score[:1]
        if variant == "sums":
            score = score.sum()
        return Rated(rewards=rewards, gating_output=gating, score=score, logits=score)
"""


def tiny_rated_model(
    path: Path, marker: Path, *, variant: Variant = "", names: tuple[str, ...] = (), chat_template: str = CHAT_TEMPLATE
) -> Path:
    """Save the model, its code and the byte-level tokenizer under `path`. Its code writes `marker` when it is loaded."""
    import torch
    from transformers import LlamaConfig

    tokenizer: Any = tiny_tokenizer(chat_template=chat_template)
    path.mkdir(parents=True, exist_ok=True)
    turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
    code = path / "modeling_rated.py"
    code.write_text(f"MARKER = {str(marker)!r}\nTURN = {turn}\n{CODE}")
    spec = importlib.util.spec_from_file_location("rated", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_objectives, config.variant = 3, variant
    if names:
        config.id2label = dict(enumerate(names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = module.RatedLlama(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    saved = path / "config.json"
    auto = {"auto_map": {"AutoModelForSequenceClassification": "modeling_rated.RatedLlama"}}
    saved.write_text(json.dumps(json.loads(saved.read_text()) | auto))
    marker.unlink()
    return path
