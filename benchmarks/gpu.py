"""All that is to be measured on one GPU, in about ten minutes: sampling, training, and memory after each turn.

Run: python -m benchmarks.gpu [--json] [--model PATH | --size 0.5b] [--tokens 256] [--pairs 32]

Without `--model` a model of random weights is made on the spot: what is measured hardly depends on them. Each measurement runs
in a process of its own, so that none finds memory that another has left. One that fails stands in the result with what it said.

- `sampling`: `benchmarks.sampling`, tokens a second of our engine, of `generate`, and of whatever else it knows and finds.
- `training`, `training_padded_rows`: `benchmarks.training` without TRL, with variable-length kernels for packs and without.
  `peak_memory_mib` is to be held against `benchmarks.memory_table`.
- `kernels`: why variable-length kernels are not taken for this model's heads (null: they are), by the trial of training.
- `turns`: MiB of tensors, and of the device as the system sees it, at work and after a sampler, a judge that is the same model,
  and a training took turns in one process.

Not yet run on a GPU. `--size tiny` is a rehearsal for processors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from inward.models.names import local_folder

SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "0.5b": {"hidden_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 8},
    "1.5b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 8},
}
VOCABULARY = 49152


def main() -> None:
    arguments = _parse()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Path(arguments.model))))
        return
    with tempfile.TemporaryDirectory(prefix="inward-gpu-") as folder:
        model = local_folder(arguments.model) if arguments.model else random_model(Path(folder) / "model", arguments.size)
        result = measure(model, tokens=arguments.tokens, pairs=arguments.pairs)
    result["model"] = arguments.model or f"random weights, {arguments.size}"
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


def measure(model: Path, *, tokens: int, pairs: int) -> dict[str, Any]:
    """Return what each measurement found, and its seconds."""
    training = ["benchmarks.training", "--json", "--ours-only", "--model", str(model), "--pairs", str(pairs), "--steps", "2"]
    sampling = ["benchmarks.sampling", "--json", "--model", str(model), "--tokens", str(tokens), "--rounds", "2"]
    commands = {
        "sampling": sampling,
        "training": training,
        "training_padded_rows": [*training, "--padded-rows"],
        "kernels": ["benchmarks.gpu", "--part", "kernels", "--model", str(model)],
        "turns": ["benchmarks.gpu", "--part", "turns", "--model", str(model)],
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found: dict[str, Any] = {"benchmark": "gpu", "device": gpu or "no GPU: a rehearsal", "torch": torch.__version__}
    return found | {name: _run(command) for name, command in commands.items()}


def _run(command: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    seconds = {"wall_s": round(time.perf_counter() - began, 1)}
    if ended.returncode:
        return {"failed": ended.stderr[-2000:], "command": " ".join(command)} | seconds
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found | seconds


def kernels(model: Path) -> dict[str, Any]:
    """Say for the model's attention why variable-length kernels are not taken."""
    from transformers import AutoConfig

    from inward.hardware import device, resolve_dtype
    from inward.training.attention import TRIAL, blocked, gathered
    from inward.training.varlen import Heads, varlen, why_not

    config, target = AutoConfig.from_pretrained(model).get_text_config(), device()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = Heads(
        device=target,
        dtype=resolve_dtype("auto", target),
        query=config.num_attention_heads,
        key=config.num_key_value_heads,
        width=width,
        value_width=width,
        scaling=width**-0.5,
    )
    return {"why_not": why_not(varlen, gathered, blocked, TRIAL, heads), "dtype": str(heads.dtype), "width": width}


def turns(model: Path) -> dict[str, Any]:
    """Let a sampler, a judge and a trainer take turns in this process; return MiB at work and after each, by its name."""
    from datetime import date

    from inward.config import LoraSettings, PairwiseJudge, TrainingSettings
    from inward.engines.engine import Decoding, Request
    from inward.engines.load import load_engine
    from inward.hardware import give_back_memory
    from inward.judging.judge import Group
    from inward.judging.make import make_judge
    from inward.records import Prompt
    from inward.training.examples import Example
    from inward.training.reference import load_reference, reference_logps
    from inward.training.train import train

    found: dict[str, Any] = {"before": memory()}
    texts = [f"Name a river of Europe, and say where it rises. This is for person {at}." for at in range(8)]

    def sample() -> None:
        engine = load_engine(model, rows=64)
        requests = [Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=4) for text in texts]
        engine.generate(requests, Decoding(max_new_tokens=64), seed=0)
        found["sampler"] = memory()
        engine.close()

    def judge() -> None:
        settings = PairwiseJudge(kind="pairwise", path=str(model), verdict="probability", cache=False)
        judge = make_judge(settings, today=date.today())
        responses = ("The Rhine, in the Alps.", "The Seine.", "No.")
        groups = [Group(prompt=Prompt(id=text, text=text, source="benchmark"), responses=responses) for text in texts]
        judge.judge(groups)
        found["judge"] = memory()

    def learn(name: str, settings: TrainingSettings) -> None:
        examples = [
            Example(
                pair_id=str(at),
                prompt_tokens=(5,) * 100,
                chosen_tokens=(7 + at,) * 200,
                chosen_weights=(1.0,) * 200,
                rejected_tokens=(9 + at,) * 150,
                rejected_weights=(1.0,) * 150,
            )
            for at in range(4)
        ]
        stored = reference_logps(load_reference(model, settings, dtype="auto"), examples, settings)

        def note(_: Any) -> None:
            found[name] = memory()

        with tempfile.TemporaryDirectory(prefix="inward-gpu-") as out:
            train(model, examples, stored, settings, Path(out), seed=0, dtype="auto", on_step=note)

    def lora() -> None:
        learn("trainer_lora", TrainingSettings(epochs=1, lora=LoraSettings(rank=16)))

    def full() -> None:
        learn("trainer", TrainingSettings(epochs=1))

    for name, turn in {"sampler": sample, "judge": judge, "trainer_lora": lora, "trainer": full}.items():
        turn()
        give_back_memory()
        found[f"after_{name}"] = memory()
    return found


def memory() -> dict[str, int]:
    """Return MiB of tensors, of what PyTorch keeps for them, and of all that is in use on the GPU; nothing without one."""
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    held = {"tensors": torch.cuda.memory_allocated(), "kept": torch.cuda.memory_reserved(), "device": total - free}
    return {name: round(size / 2**20) for name, size in held.items()}


PARTS = {"kernels": kernels, "turns": turns}


def random_model(folder: Path, size: str) -> Path:
    """Save a Llama of random bf16 weights, with a tokenizer that makes a token of each byte and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_tokens([f"<{number}>" for number in range(VOCABULARY - len(tokenizer))])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        intermediate_size=4 * SIZES[size]["hidden_size"],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        **SIZES[size],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="All that is to be measured on one GPU.")
    parser.add_argument("--json", action="store_true", help="print one JSON object in one line")
    parser.add_argument("--model", help="a model folder, a Hub name or the embedded model")
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b", help="the size of a model of random weights")
    parser.add_argument("--tokens", type=int, default=256, help="largest number of tokens a sample")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a step of training")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
