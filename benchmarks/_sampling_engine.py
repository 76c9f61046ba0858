"""One engine of another project, in a process of its own for benchmarks/sampling.py. It imports nothing of this project.

    python benchmarks/_sampling_engine.py openvino|vllm

The first line on standard input is the work as a JSON object; every further line is a seed, answered with one line of JSON:
how many tokens were drawn, and in how many seconds. What the engine itself prints goes to standard error.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Draw = Callable[[int], list[list[int]]]


def openvino(work: dict[str, Any], folder: str) -> Draw:
    """Convert the model, unless that was done before, and return what draws with OpenVINO GenAI (continuous batching).

    Weights are stored in 16 bits and never quantised. The processor decides the rest, as users get it: it computes in bf16
    where it can, and stores keys and values in 8 bits.
    """
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    converted = work["openvino_model"] or folder
    if not (Path(converted) / "openvino_model.xml").is_file():
        convert = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", work["model"]]
        options = ["--task", "text-generation-with-past", "--weight-format", "fp16", converted]
        subprocess.run([*convert, *options], check=True, stdout=sys.stderr)
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = work["rows"]
    scheduler.cache_size = 2  # GB
    engine = genai.ContinuousBatchingPipeline(converted, scheduler, "CPU", {"INFERENCE_NUM_THREADS": work["threads"]})
    prompts = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in work["prompts"]]

    def draw(seed: int) -> list[list[int]]:
        settings = genai.GenerationConfig()
        settings.do_sample, settings.rng_seed, settings.num_return_sequences = True, seed, work["samples"]
        settings.temperature, settings.top_k, settings.top_p = work["temperature"], work["top_k"], work["top_p"]
        settings.max_new_tokens, settings.stop_token_ids = work["tokens"], set(work["stops"])
        settings.eos_token_id = min(work["stops"])
        results = engine.generate(prompts, [settings] * len(prompts))
        return [list(tokens) for result in results for tokens in result.m_generation_ids]

    return draw


def vllm(work: dict[str, Any], folder: str) -> Draw:
    """Return what draws with vLLM: prompts in tokens, no text made, each prompt read once for its samples."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{work['threads'] - 1}")
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    longest = max(map(len, work["prompts"])) + work["tokens"]
    blocks = {"block_size": 32} if current_platform.is_cpu() else {}  # with its usual 128 short prompts would not be shared
    engine = LLM(work["model"], dtype=work["dtype"], max_model_len=longest + 1, max_num_seqs=work["rows"], **blocks)
    settings = SamplingParams(
        n=work["samples"],
        temperature=work["temperature"],
        top_k=work["top_k"],
        top_p=work["top_p"],
        max_tokens=work["tokens"],
        stop_token_ids=work["stops"],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in work["prompts"]]

    def draw(seed: int) -> list[list[int]]:
        results = engine.generate(prompts, settings, use_tqdm=False)
        return [list(output.token_ids) for result in results for output in result.outputs]

    return draw


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        draw = {"openvino": openvino, "vllm": vllm}[sys.argv[1]](work, folder)
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            drawn = draw(int(line))
            seconds = time.perf_counter() - began
            print(json.dumps({"tokens": sum(map(len, drawn)), "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":  # vLLM starts processes that import this file anew
    main()
