"""Which training fits which GPU: what `inward.training.memory` reckons for each, as a Markdown table.

Run: python -m benchmarks.memory_table [--json] [--tokens 4096] [--keep-activations]

Nothing is loaded or measured: the shapes are those of Llama 3.2 1B and 3B and of Llama 3.1 8B, made without weights. Memory is
what one process holds at its peak, in GiB, with bf16 working weights. A GPU is said to hold it where `HEADROOM` of the GPU is
left for what is not reckoned: the CUDA context, libraries' workspaces, and what the allocator cannot use.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from inward.config import LoraSettings, TrainingSettings
from inward.training.memory import GIB, training_needs

HEADROOM = 0.06
GPU_GIB = {"80 GB": 79.6, "141 GB": 140.4}
"""What an H100 and an H200 report."""
LAYER = {"intermediate_size": 8192, "num_key_value_heads": 8, "vocab_size": 128256}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": LAYER | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "tie_word_embeddings": True},
    "3B": LAYER | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "tie_word_embeddings": True},
    "8B": LAYER
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"tie_word_embeddings": False},
}
FULL = TrainingSettings(gradient_checkpointing=True)
TRAININGS: dict[str, tuple[TrainingSettings, int]] = {
    "full, adamw": (FULL, 1),
    "full, adamw_8bit": (FULL.model_copy(update={"optimiser": "adamw_8bit"}), 1),
    "full, adamw, sharded over 2": (FULL, 2),
    "full, adamw, sharded over 4": (FULL, 4),
    "full, adamw, sharded over 8": (FULL, 8),
    "LoRA of rank 16": (FULL.model_copy(update={"lora": LoraSettings()}), 1),
    "LoRA of rank 16 over nf4": (FULL.model_copy(update={"lora": LoraSettings(quantise_base="nf4")}), 1),
    "LoRA of rank 16, sharded over 2": (FULL.model_copy(update={"lora": LoraSettings()}), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Which training fits which GPU.")
    parser.add_argument("--json", action="store_true", help="print one JSON object: GiB by training and model")
    parser.add_argument("--tokens", type=int, default=4096, help="training.batch_tokens")
    parser.add_argument("--keep-activations", action="store_true", help="without training.gradient_checkpointing")
    arguments = parser.parse_args()
    result = reckon(arguments.tokens, recompute=not arguments.keep_activations)
    print(json.dumps(result) if arguments.json else markdown(result))


def reckon(tokens: int, *, recompute: bool = True) -> dict[str, dict[str, float]]:
    """Return the GiB that one process holds, by training and model."""
    models = {name: _sized(shape) for name, shape in SHAPES.items()}
    table: dict[str, dict[str, float]] = {}
    for training, (settings, parts) in TRAININGS.items():
        settings = settings.model_copy(update={"gradient_checkpointing": recompute})
        table[training] = {}
        for name, (config, parameters) in models.items():
            needs = training_needs(config, parameters, settings, torch.bfloat16, tokens, on=torch.device("cuda"), parts=parts)
            table[training][name] = round(needs.total / GIB, 1)
    return table


def smallest_gpu(gib: float) -> str:
    return next((name for name, size in GPU_GIB.items() if gib <= (1 - HEADROOM) * size), "neither")


def markdown(table: dict[str, dict[str, float]]) -> str:
    lines = [f"| training | {' | '.join(SHAPES)} |", f"|---|{'---|' * len(SHAPES)}"]
    for training, row in table.items():
        cells = " | ".join(f"{gib} GiB: {smallest_gpu(gib)}" for gib in row.values())
        lines.append(f"| {training} | {cells} |")
    return "\n".join(lines)


def _sized(shape: dict[str, Any]) -> tuple[Any, int]:
    """Return the configuration of a shape and the parameters of its model."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return config, sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
