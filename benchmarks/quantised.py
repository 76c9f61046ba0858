"""What a base in 4 bits changes: log-probabilities over it, and what an adapter trained over it is worth once merged.

Run: python -m benchmarks.quantised [--json] [--plain] [--model smollm2] [--prompts 64] [--epochs 6] [--rate 2e-4] [--rank 16]

The model writes two responses to each of `--prompts` generated tasks (temperature 1, at most 96 tokens); the shorter one is
chosen, a preference that is quickly learned. An adapter is trained over the base in NF4 on one half of the pairs, or with
`--plain` over the base as it is, which shows what rounding the merged weights does by itself. On the other half, over all
tokens of the responses and in the working number format, nats a token:

- `base`: mean absolute difference between the base as it was trained over and as it is stored; `base_nll` and `stored_nll`
  are the mean of -log p of the two;
- `trained`: the same difference between what was trained and what is kept (the adapter merged into the stored base), and
  `trained_sequence` the mean absolute difference of whole responses;
- `drift`: the mean absolute change that training made to what was trained, to hold the others against;
- `reward_correlation`: over responses, between log(trained / its base) and log(merged / stored base): whether what was learned
  over the one is what the other gained. `margin` and `merged_margin`: how much more the chosen response gained than the
  rejected one, in the mean; `accuracy` and `merged_accuracy`: in which share of the pairs it gained more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from inward.config import LoraSettings, TrainingSettings
from inward.engines.engine import Decoding
from inward.engines.transformers.engine import load_engine
from inward.hardware import device
from inward.models.names import local_folder
from inward.prompts.tasks import generate_tasks
from inward.sampling.sample import sample
from inward.thought import BUILT_IN
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.logps import token_logps
from inward.training.reference import load_reference, reference_logps
from inward.training.train import train
from inward.training.weights import load_model, merge_adapter, working_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description="What a base in 4 bits changes.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plain", action="store_true", help="the control: the base is not quantised")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    lora = LoraSettings(rank=arguments.rank, quantise_base=None if arguments.plain else "nf4")
    settings = TrainingSettings(epochs=arguments.epochs, batch_pairs=8, learning_rate=arguments.rate, lora=lora)
    result = measure(local_folder(arguments.model), arguments.prompts, settings)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


def measure(model: Path, prompts: int, settings: TrainingSettings) -> dict[str, Any]:
    pairs = draw_pairs(model, prompts)
    training, held_out = pairs[::2], pairs[1::2]
    dtype = working_dtype("auto")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = reference_logps(load_reference(model, settings, dtype="auto"), training, settings)
        adapter = train(model, training, reference, settings, folder / "trained", seed=0, dtype="auto")[-1]
        quantised = load_model(model, dtype, quantise=settings.quantise)
        low = logps(quantised, held_out)
        low_trained = logps(PeftModel.from_pretrained(quantised, adapter).get_base_model(), held_out)
        plain = logps(load_model(model, dtype), held_out)
        merged = logps(load_model(merge_adapter(model, adapter, folder / "merged"), dtype), held_out)
    gains, merged_gains = _sums(low_trained - low, held_out), _sums(merged - plain, held_out)
    return {
        "benchmark": "quantised base",
        "model": model.name,
        "trained_over": settings.quantise or str(dtype),
        "held_out_pairs": len(held_out),
        "tokens": len(low),
        "base": _mean(low - plain),
        "base_nll": round(-float(low.mean()), 4),
        "stored_nll": round(-float(plain.mean()), 4),
        "trained": _mean(low_trained - merged),
        "trained_sequence": _mean(_sums(low_trained - merged, held_out)),
        "drift": _mean(low_trained - low),
        "reward_correlation": round(float(torch.corrcoef(torch.stack([gains, merged_gains]))[0, 1]), 3),
        "margin": round(float((gains[::2] - gains[1::2]).mean()), 3),
        "merged_margin": round(float((merged_gains[::2] - merged_gains[1::2]).mean()), 3),
        "accuracy": _accuracy(gains),
        "merged_accuracy": _accuracy(merged_gains),
    }


def draw_pairs(model: Path, prompts: int) -> list[Example]:
    """Return a pair for each prompt whose two responses differ in length, the shorter one chosen."""
    decoding = Decoding(temperature=1.0, top_p=0.95, top_k=256, max_new_tokens=96)
    tasks = list(islice(generate_tasks(2026, 1), prompts))
    outputs = sample(tasks, load_engine(model), BUILT_IN["direct"], decoding, k=2, seed=2026)
    found = []
    for first, second in zip(outputs[::2], outputs[1::2], strict=True):
        chosen, rejected = sorted((first.tokens, second.tokens), key=len)
        if len(chosen) < len(rejected):
            found.append(
                Example(
                    pair_id=first.prompt_id,
                    prompt_tokens=first.prompt_tokens,
                    chosen_tokens=chosen,
                    chosen_weights=(1.0,) * len(chosen),
                    rejected_tokens=rejected,
                    rejected_weights=(1.0,) * len(rejected),
                )
            )
    return found


@torch.no_grad()
def logps(model: Any, pairs: Sequence[Example]) -> torch.Tensor:
    """Return the log-probability of every token of the responses, pair by pair: chosen, then rejected."""
    return torch.cat([token_logps(model, collate([pair], device(), "padded")) for pair in pairs]).cpu()


def _sums(values: torch.Tensor, pairs: Sequence[Example]) -> torch.Tensor:
    lengths = [len(tokens) for pair in pairs for tokens in (pair.chosen_tokens, pair.rejected_tokens)]
    return torch.stack([part.sum() for part in values.split(lengths)])


def _mean(values: torch.Tensor) -> float:
    return round(float(values.abs().mean()), 4)


def _accuracy(gains: torch.Tensor) -> float:
    return round(float((gains[::2] > gains[1::2]).float().mean()), 3)


if __name__ == "__main__":
    main()
