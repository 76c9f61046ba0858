"""A DPO step: ours beside TRL's DPOTrainer, in one run, on the same model, pairs, precision and optimiser.

Run: python -m benchmarks.training [--json] [--lora RANK] [--rounds 1] [--steps 2] [--pairs 16] [--model PATH]
                                   [--prompt 125] [--completion 235] [--ours-only [--quantise-base]] [--sweep]
                                   [--padded-rows]

Both sides start from the same weights and train on the same token ids: log-normal output lengths, prompts of nearly one
length, as in the runs of docs/log.md. Both hold fp32 weights and fp32 AdamW moments and compute in bf16: TRL by autocast
(`bf16=True`, its default), we by bf16 copies of fp32 masters. TRL runs at its default of checkpointed activations and without
(`trl`, `trl_no_checkpointing`), with 4 pairs at a time; `ratio` is taken against the faster of the two. The reference is
counted on both sides, for one epoch: TRL's runs beside the policy, ours before the first step. With more epochs ours is
divided among them and TRL's is not, unless its `precompute_ref_log_probs` is set.

`tokens_per_s` counts prompt and output of both sequences of a pair, without padding, for both sides. `mfu` holds the work that
the mathematics needs (`inward.training.flops`: prompts once) against `peak_gflops`, the best of a large bf16 matrix product
measured in the same process. Each side runs in a process of its own, in turn; the first step warms up and is not counted.
`--sweep` prints instead how our speed goes with length, batch and pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks._training_work import Work
from inward.models.names import local_folder


def main() -> None:
    arguments = _parse()
    work = Work(
        model=str(local_folder(arguments.model)),
        steps=arguments.steps + 1,
        batch_pairs=arguments.pairs,
        prompt=arguments.prompt,
        completion=arguments.completion,
        lora=arguments.lora,
        quantise=arguments.quantise_base,
        threads=arguments.threads,
        batch_tokens=arguments.batch_tokens,
        varlen=not arguments.padded_rows,
    )
    result = _sweep(work) if arguments.sweep else _compare(work, arguments.rounds, arguments.ours_only)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:28} {value}" for key, value in result.items()))


def _compare(work: Work, rounds: int, ours_only: bool) -> dict[str, Any]:
    sides = {"inward": ("benchmarks._inward_dpo", work)}
    if not ours_only:
        sides["trl"] = ("benchmarks._trl_dpo", work)
        sides["trl_no_checkpointing"] = ("benchmarks._trl_dpo", dataclasses.replace(work, trl_checkpointing=False))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (module, its) in sides.items():
            runs[name].append(run(module, its))
    ours = runs.pop("inward")
    speed = statistics.median(one["tokens_per_s"] for one in ours)
    result = {
        "benchmark": "training",
        "model": work.model.rsplit("/", 1)[-1],
        "training": f"lora rank {work.lora}{', base in nf4' if work.quantise else ''}" if work.lora else "full",
        "pairs": work.batch_pairs * (work.steps - work.warmup_steps),
        "tokens": ours[0]["tokens"],
        "rounds": rounds,
        "tokens_per_s": round(speed, 1),
        "tokens_per_s_range": _range(ours),
        "mfu": round(statistics.median(one["mfu"] for one in ours), 3),
        "peak_gflops": round(max(one["peak_gflops"] for one in ours)),
        "reference_share": round(statistics.median(one["reference_share"] for one in ours), 3),
        "peak_memory_mib": round(max(one["peak_mib"] for one in ours)),
    }
    if runs:
        fastest = max(runs.values(), key=lambda found: statistics.median(one["tokens_per_s"] for one in found))
        theirs = statistics.median(one["tokens_per_s"] for one in fastest)
        result |= {
            "trl_tokens_per_s": round(theirs, 1),
            "ratio": round(speed / theirs, 2),
            "ratios": [round(a["tokens_per_s"] / b["tokens_per_s"], 2) for a, b in zip(ours, fastest, strict=True)],
            "trl_peak_memory_mib": round(max(one["peak_mib"] for one in fastest)),
        }
        for name, found in runs.items():
            result[name] = {
                "tokens_per_s": _range(found),
                "peak_memory_mib": round(max(one["peak_mib"] for one in found)),
            }
    return result


def _sweep(work: Work) -> dict[str, Any]:
    """Return our tokens a second against the length of an output, the tokens computed at once, and the pairs of a step."""
    pairs = dataclasses.replace(work, steps=2, batch_pairs=4)
    return {
        "benchmark": "training sweep",
        "model": work.model.rsplit("/", 1)[-1],
        "completion": {n: _speed(pairs, completion=n) for n in (64, 256, 768)},
        "batch_tokens": {n: _speed(pairs, batch_tokens=n) for n in (1024, 4096)},
        "batch_pairs": {n: _speed(pairs, batch_pairs=n) for n in (2, 8)},
        "batching": {name: _speed(pairs, batching=name) for name in ("shared", "packed", "padded")},
    }


def _speed(work: Work, **changes: Any) -> dict[str, float]:
    found = run("benchmarks._inward_dpo", dataclasses.replace(work, **changes))
    return {"tokens_per_s": round(found["tokens_per_s"], 1), "mfu": round(found["mfu"], 3), "mib": round(found["peak_mib"])}


def run(module: str, work: Work) -> dict[str, Any]:
    """Return what a side reports of its measurement."""
    ended = subprocess.run([sys.executable, "-m", module, work.to_json()], capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{module} failed:\n{ended.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _range(found: list[dict[str, Any]]) -> list[float]:
    speeds = sorted(round(one["tokens_per_s"], 1) for one in found)
    return [speeds[0], speeds[-1]]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A DPO step: ours beside TRL's DPOTrainer.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--lora", type=int, default=0, help="rank of the adapter; 0 trains all weights")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs, in turn")
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps that are counted")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a step")
    parser.add_argument("--prompt", type=int, default=125, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=235, help="tokens of an output, on average")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="our training.batch_tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours-only", action="store_true", help="leave TRL out")
    parser.add_argument("--quantise-base", action="store_true", help="with --lora: its base in 4 bits")
    parser.add_argument("--padded-rows", action="store_true", help="on a GPU: without variable-length kernels")
    parser.add_argument("--sweep", action="store_true", help="how our speed goes with length, batch and pairs")
    arguments = parser.parse_args()
    if arguments.quantise_base and not (arguments.lora and arguments.ours_only):
        parser.error("--quantise-base needs --lora, and --ours-only: TRL is not set up for it here")
    return arguments


if __name__ == "__main__":
    main()
