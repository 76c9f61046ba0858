"""Scoring K responses to each prompt with a reward model: each prompt read once for its K beside whole conversations.

Run: python -m benchmarks.reward_model [--json] [--model PATH] [--prompts 32] [--samples 8] [--dtype auto] [--rounds 1]

The model is a language model (by default the embedded one) under a random score head, made for the occasion: speed does not
depend on what a head has learned. Both ways use the same weights, texts, number format and batch size in padded tokens. They
take turns, so that other load on the machine hits both; each reports its best round. `ratio` is prompts read once over whole
conversations; `tokens_ratio` is the share of tokens that this leaves out, the most that it could gain; `difference` is the
largest difference between two scores of one response, in standard deviations of all scores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from inward.config import RewardModelJudge
from inward.judging.judge import Group
from inward.judging.reward_model.judge import RewardModel
from inward.models.names import local_folder
from inward.records import Prompt

WORDS = ("water", "river", "stone", "bridge", "over", "the", "of", "and", "slow", "cold", "morning", "people", "walk", "talk")


def main() -> None:
    arguments = _parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    groups = _groups(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = _with_head(local_folder(arguments.model), Path(name))
        judges = {shared: _judge(folder, arguments, shared) for shared in (True, False)}
        speed, scores = dict.fromkeys(judges, 0.0), {}
        for judge in judges.values():
            judge.judge(groups[:1])  # warm
        for _ in range(arguments.rounds):
            for shared, judge in judges.items():
                began = time.perf_counter()
                rulings = judge.judge(groups)
                found = [ruling.value for group in rulings for ruling in group if ruling.value is not None]
                speed[shared] = max(speed[shared], len(found) / (time.perf_counter() - began))
                scores[shared] = found
        tokens = _tokens(judges[True], groups)
    result = {
        "benchmark": "reward_model",
        "model": arguments.model,
        "dtype": arguments.dtype,
        "why_unshared": judges[True].why_unshared,
        "threads": torch.get_num_threads(),
        "prompts": arguments.prompts,
        "samples": arguments.samples,
        "batch_tokens": arguments.batch_tokens,
        **tokens,
        "scores_per_second": round(speed[True], 2),
        "whole_scores_per_second": round(speed[False], 2),
        "ratio": round(speed[True] / speed[False], 2),
        "difference": max(map(abs, map(float.__sub__, scores[True], scores[False]))) / statistics.pstdev(scores[False]),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:28} {value}" for key, value in result.items()))


def _groups(arguments: argparse.Namespace) -> list[Group]:
    """Return prompts and responses of random lengths around those asked for, from half to one and a half times as long."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=round(words * draw.uniform(0.5, 1.5))))

    return [
        Group(
            prompt=Prompt(id=str(at), text=text(arguments.prompt_words), source="benchmark"),
            responses=tuple(text(arguments.response_words) for _ in range(arguments.samples)),
        )
        for at in range(arguments.prompts)
    ]


def _with_head(source: Path, folder: Path) -> Path:
    """Save a language model as a reward model with a random head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def _judge(folder: Path, arguments: argparse.Namespace, shared: bool) -> RewardModel:
    settings: dict[str, Any] = {"dtype": arguments.dtype, "batch_tokens": arguments.batch_tokens, "share_prompts": shared}
    return RewardModel(RewardModelJudge(kind="reward_model", path=str(folder), **settings))


def _tokens(judge: RewardModel, groups: list[Group]) -> dict[str, float]:
    """Count tokens with every conversation whole, and with what the conversations of a group begin with counted once."""
    whole = once = 0
    for group in groups:
        rows = [judge.conversations.encode(group.prompt.text, response)[0] for response in group.responses]
        low, high = min(rows), max(rows)
        common = next((at for at, token in enumerate(low) if token != high[at]), len(low))
        whole += sum(map(len, rows))
        once += sum(map(len, rows)) - common * (len(rows) - 1)
    return {"tokens": whole, "tokens_read_once": once, "tokens_ratio": round(whole / once, 2)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of a reward model with each prompt read once for its responses.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--response-words", type=int, default=100)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
