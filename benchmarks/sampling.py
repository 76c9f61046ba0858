"""Drawing K samples of each prompt: our engine beside `transformers` `generate` and other projects, in one run on one machine.

Run: python -m benchmarks.sampling [--json] [--model PATH] [--prompts 16] [--samples 8] [--tokens 64] [--rounds 1]
     [--threads N] [--engine-python openvino=PYTHON] [--engine-python vllm=PYTHON] [--openvino-model FOLDER]

All engines use the same weights, prompts, number format, temperature, top-k and top-p. Tokens per second count the drawn
tokens up to each end token, and the time includes reading the prompts; making an engine is not counted. They take turns, so
that other load on the machine hits all; each reports its best round, after one that warms it up. `generate` is tried with all
prompts in one left-padded batch, and with a half and a quarter of them at a time; the best counts. OpenVINO GenAI and vLLM run
in a process of their own, with the interpreter that `--engine-python` names, else with this one if they can be imported here;
`absent` names those that cannot. OpenVINO wants `optimum-cli` beside its interpreter, or a model that it has converted.

`ratio_vs_generate` is ours over `generate`; `logps_ratio` ours with every token's raw log-probability noted
(`training.reference = "sampler"`) over ours without. `roofline_share` is the part that we reach of what the machine could do:
its peaks are measured here, and what the work takes at least is counted (`_roofline`). No GPU has run this benchmark yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks._roofline import bytes_per_second, operations_per_second, sampling_floor
from inward.engines.engine import Completion, Decoding, Request
from inward.engines.transformers.engine import TransformersEngine, load_engine
from inward.models.names import local_folder

QUESTION = "Give three tips for staying healthy while working long hours at a desk, and explain each in one sentence. "
OTHERS = {"openvino": "openvino_genai", "vllm": "vllm"}
"""Engines of other projects, and what they are imported as."""

Turn = Callable[[int], float]
"""Draws everything once with a seed and returns tokens per second."""


def main() -> None:
    arguments = _parse()
    folder = local_folder(arguments.model)
    engine = load_engine(folder, rows=arguments.rows, threads=arguments.threads)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.model.dtype).to(engine.model.device).eval()
    peaks = operations_per_second(theirs.dtype, theirs.device), bytes_per_second(theirs.device)
    decoding = Decoding(max_new_tokens=arguments.tokens)
    texts = [QUESTION * (1 + at % 3) + f"This is for person {at}." for at in range(arguments.prompts)]
    requests = [
        Request(id=str(at), tokens=engine.encode([{"role": "user", "content": text}]), k=arguments.samples)
        for at, text in enumerate(texts)
    ]
    batches = sorted({max(1, len(requests) // part) for part in (1, 2, 4)})
    turns: dict[str, Turn] = {
        "inward": lambda seed: _speed(lambda: _ours(engine, requests, decoding, seed)),
        "inward with logps": lambda seed: _speed(lambda: _ours(engine, requests, replace(decoding, logps=True), seed)),
    }
    for batch in batches:
        turns[f"generate {batch * arguments.samples} rows"] = lambda seed, batch=batch: _speed(
            lambda: _generate(theirs, engine.stops, requests, decoding, seed, batch)
        )
    work = _work(arguments, str(folder), engine, requests, decoding)
    processes, absent = _start_others(arguments.engine_python, work)
    turns |= {name: lambda seed, process=process: _elsewhere(process, seed) for name, process in processes.items()}
    best = _take_turns(turns, arguments.rounds)
    for process in processes.values():
        process.communicate()
    drawn = _ours(engine, requests, decoding, 0)
    floor = sampling_floor(theirs, [len(request.tokens) for request in requests], _lengths(requests, drawn))
    generate = max((name for name in best if name.startswith("generate")), key=best.__getitem__)
    seconds = sum(len(one.tokens) for one in drawn) / best["inward"]
    result = {
        "benchmark": "sampling",
        "model": arguments.model,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": engine.model.device.type,
        "shared_prefix": engine.shared,
        "threads": torch.get_num_threads(),
        "prompts": arguments.prompts,
        "samples": arguments.samples,
        "max_new_tokens": arguments.tokens,
        "rows": arguments.rows,
        "tokens_per_second": {name: round(speed, 1) for name, speed in best.items()},
        "absent": absent,
        "best_generate": generate,
        "ratio_vs_generate": round(best["inward"] / best[generate], 2),
        **{f"ratio_vs_{name}": round(best["inward"] / best[name], 2) for name in processes},
        "logps_ratio": round(best["inward with logps"] / best["inward"], 3),
        "peak_gflops": round(peaks[0] / 1e9, 1),
        "memory_gb_per_second": round(peaks[1] / 1e9, 1),
        **floor.shares(seconds, *peaks),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:28} {value}" for key, value in result.items()))


def _take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, float]:
    """Return each engine's best speed. The first round warms up and is not counted."""
    best = dict.fromkeys(turns, 0.0)
    for round_ in range(rounds + 1):
        for name, turn in turns.items():
            speed = turn(round_)
            print(f"round {round_} {name}: {speed:.1f} tokens/s", file=sys.stderr, flush=True)
            if round_:
                best[name] = max(best[name], speed)
    return best


def _speed(work: Callable[[], list[Completion] | int]) -> float:
    began = time.perf_counter()
    drawn = work()
    seconds = time.perf_counter() - began
    return (drawn if isinstance(drawn, int) else sum(len(one.tokens) for one in drawn)) / seconds


def _ours(engine: TransformersEngine, requests: list[Request], decoding: Decoding, seed: int) -> list[Completion]:
    return engine.generate(requests, decoding, seed=seed)


def _lengths(requests: list[Request], drawn: list[Completion]) -> list[list[int]]:
    return [[len(one.tokens) for one in drawn if one.request_id == request.id] for request in requests]


@torch.inference_mode()
def _generate(model: Any, stops: frozenset[int], requests: list[Request], decoding: Decoding, seed: int, batch: int) -> int:
    """So many prompts at a time, padded on the left as the documentation of `generate` advises. Returns the tokens drawn."""
    torch.manual_seed(seed)
    tokens = 0
    for start in range(0, len(requests), batch):
        some = requests[start : start + batch]
        longest = max(len(request.tokens) for request in some)
        padding = [longest - len(request.tokens) for request in some]
        pad = min(stops)
        ids = torch.tensor([[pad] * gap + list(request.tokens) for gap, request in zip(padding, some, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in padding])
        whole = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            num_return_sequences=some[0].k,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=True,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            eos_token_id=sorted(stops),
            pad_token_id=pad,
        )
        for row in whole[:, longest:].tolist():
            tokens += next((at + 1 for at, token in enumerate(row) if token in stops), len(row))
    return tokens


def _work(
    arguments: argparse.Namespace, folder: str, engine: TransformersEngine, requests: list[Request], decoding: Decoding
) -> dict[str, Any]:
    """Return what engines in other processes are told."""
    return {
        "model": folder,
        "openvino_model": arguments.openvino_model and str(arguments.openvino_model.resolve()),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "prompts": [list(request.tokens) for request in requests],
        "samples": arguments.samples,
        "rows": arguments.rows,
        "tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "stops": sorted(engine.stops),
        "threads": torch.get_num_threads(),
    }


def _start_others(pythons: list[str], work: dict[str, Any]) -> tuple[dict[str, subprocess.Popen[str]], dict[str, str]]:
    """Return the engines that could be started, waiting for their turn, and why not the others."""
    interpreters = dict(python.split("=", 1) for python in pythons)
    processes, absent = {}, {}
    for name, package in OTHERS.items():
        python = interpreters.get(name) or (sys.executable if importlib.util.find_spec(package) else None)
        if python is None:
            absent[name] = f"{package} cannot be imported here; name an interpreter that has it: --engine-python {name}=PYTHON"
            continue
        command = [python, str(Path(__file__).with_name("_sampling_engine.py")), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if _tell(process, json.dumps(work)) is None:
            absent[name] = f"{package} did not start with {python}; what it said is above"
            continue
        processes[name] = process
    return processes, absent


def _elsewhere(process: subprocess.Popen[str], seed: int) -> float:
    answer = _tell(process, str(seed))
    if answer is None:
        raise SystemExit(f"an engine ended with status {process.wait()} while it was measured; what it said is above")
    return float(answer["tokens"] / answer["seconds"])


def _tell(process: subprocess.Popen[str], line: str) -> dict[str, Any] | None:
    """Return what a process answers to a line, or None where it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    return json.loads(answer) if answer else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sampling speed beside transformers' generate and other engines.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="largest number of tokens a sample")
    parser.add_argument("--rows", type=int, default=128, help="completions that engines draw side by side")
    parser.add_argument("--rounds", type=int, default=1, help="rounds that count, after one that does not")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--engine-python", action="append", default=[], metavar="NAME=PYTHON", help="openvino or vllm")
    parser.add_argument("--openvino-model", type=Path, default=None, help="a folder with, or for, the model converted")
    return parser.parse_args()


if __name__ == "__main__":
    main()
