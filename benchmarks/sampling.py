"""Drawing K samples of each prompt: our engine beside `transformers` `generate`, in one run on one machine.

Run: python -m benchmarks.sampling [--json] [--model PATH] [--prompts 16] [--samples 8] [--tokens 64] [--threads N]

Both engines use the same weights, prompts, number format, temperature, top-k and top-p. Tokens per second
count the drawn tokens up to each end token, and the time includes reading the prompts. They take turns, so that other load
on the machine hits both; each reports its best round. `ratio` is ours over `generate`; `logps_ratio` ours with every token's
raw log-probability noted (`training.reference = "sampler"`) over ours without.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import TransformersEngine, load_engine
from inward.models.names import local_folder

QUESTION = "Give three tips for staying healthy while working long hours at a desk, and explain each in one sentence. "


def main() -> None:
    arguments = _parse()
    folder = local_folder(arguments.model)
    engine = load_engine(folder, rows=arguments.rows, threads=arguments.threads)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.model.dtype).to(engine.model.device)
    decoding = Decoding(max_new_tokens=arguments.tokens)
    texts = [QUESTION * (1 + at % 3) + f"This is for person {at}." for at in range(arguments.prompts)]
    requests = [
        Request(id=str(at), tokens=engine.encode([{"role": "user", "content": text}]), k=arguments.samples)
        for at, text in enumerate(texts)
    ]
    noting = replace(decoding, logps=True)
    best = {"inward": 0.0, "noting": 0.0, "generate": 0.0}
    for turn in range(arguments.rounds):
        best["inward"] = max(best["inward"], _speed(lambda turn=turn: _ours(engine, requests, decoding, turn)))
        best["noting"] = max(best["noting"], _speed(lambda turn=turn: _ours(engine, requests, noting, turn)))
        best["generate"] = max(
            best["generate"], _speed(lambda turn=turn: _generate(theirs, engine.stops, requests, decoding, turn))
        )
    result = {
        "benchmark": "sampling",
        "model": arguments.model,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "shared_prefix": engine.shared,
        "threads": torch.get_num_threads(),
        "prompts": arguments.prompts,
        "samples": arguments.samples,
        "max_new_tokens": arguments.tokens,
        "rows": arguments.rows,
        "inward_tokens_per_second": round(best["inward"], 1),
        "generate_tokens_per_second": round(best["generate"], 1),
        "ratio": round(best["inward"] / best["generate"], 2),
        "logps_ratio": round(best["noting"] / best["inward"], 3),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:28} {value}" for key, value in result.items()))


def _speed(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def _ours(engine: TransformersEngine, requests: list[Request], decoding: Decoding, seed: int) -> int:
    return sum(len(one.tokens) for one in engine.generate(requests, decoding, seed=seed))


@torch.inference_mode()
def _generate(model: Any, stops: frozenset[int], requests: list[Request], decoding: Decoding, seed: int) -> int:
    """All prompts in one left-padded batch, as the documentation of `generate` advises. Returns the tokens drawn."""
    longest = max(len(request.tokens) for request in requests)
    padding = [longest - len(request.tokens) for request in requests]
    pad = min(stops)
    ids = torch.tensor([[pad] * gap + list(request.tokens) for gap, request in zip(padding, requests, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in padding])
    torch.manual_seed(seed)
    whole = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        num_return_sequences=requests[0].k,
        max_new_tokens=decoding.max_new_tokens,
        do_sample=True,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        eos_token_id=sorted(stops),
        pad_token_id=pad,
    )
    tokens = 0
    for row in whole[:, longest:].tolist():
        end = next((at + 1 for at, token in enumerate(row) if token in stops), len(row))
        tokens += end
    return tokens


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sampling speed beside transformers' generate.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="largest number of tokens a sample")
    parser.add_argument("--rows", type=int, default=128, help="completions that our engine draws side by side")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
