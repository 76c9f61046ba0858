"""TRL's DPOTrainer on the pairs of benchmarks/training.py, in a process of its own. Prints one JSON object.

Run by benchmarks/training.py. The pairs come as token ids, in the form that TRL's own collator takes, so that neither side
tokenises. `precision` "autocast" is TRL's way to keep fp32 weights (`bf16=True`), which is what our fp32 masters amount to;
"bf16" loads the weights themselves in bf16, as most scripts on memory-bound machines do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from typing import Any

import torch

from benchmarks._training_work import Work, counted, make_pairs, peak_memory_mib, report
from inward.config import TrainingSettings
from inward.training.batches import epoch_steps


def main() -> None:
    work = Work.from_arguments(argparse.ArgumentParser(description="TRL's side of benchmarks/training.py."))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(work.threads)
    pairs = [pair for step in epoch_steps(make_pairs(work), _order(work), seed=0, epoch=1) for pair in step]
    stamps: list[float] = []
    trainer = _trainer(work, pairs, stamps)
    trainer.train()
    first = work.warmup_steps - 1
    seconds = stamps[-1] - stamps[first]
    print(report(work, counted(work, pairs), seconds, peak_memory_mib()))


def _order(work: Work) -> TrainingSettings:
    """Both sides take the same pairs in the same steps."""
    return TrainingSettings(batch_pairs=work.batch_pairs)


def _trainer(work: Work, pairs: list[Any], stamps: list[float]) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype)
    peft_config = None
    if work.lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=work.lora, lora_alpha=2 * work.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        beta=0.1,
        per_device_train_batch_size=work.trl_batch,
        gradient_accumulation_steps=work.batch_pairs // work.trl_batch,
        num_train_epochs=1,
        max_length=None,
        learning_rate=1e-6,
        bf16=work.precision == "autocast",
        gradient_checkpointing=work.trl_checkpointing,
        padding_free=False,
        optim="adamw_torch_fused",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=text,
        processing_class=AutoTokenizer.from_pretrained(work.model),
        peft_config=peft_config,
        callbacks=[Clock()],
    )
    rows = [
        {"prompt_ids": list(p.prompt_tokens), "chosen_ids": list(p.chosen_tokens), "rejected_ids": list(p.rejected_tokens)}
        for p in pairs
    ]
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


if __name__ == "__main__":
    main()
