"""Our side of benchmarks/training.py, in a process of its own: the reference stage and the training loop themselves."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._training_work import Work, counted, make_pairs, peak_memory_mib, report
from inward.config import LoraSettings, Quantisation, TrainingSettings
from inward.hardware import device, measured_peak, set_up
from inward.training import attention
from inward.training.batches import epoch_steps
from inward.training.flops import work_of
from inward.training.metrics import StepMetrics
from inward.training.reference import load_reference, reference_logps
from inward.training.train import train


def main() -> None:
    work = Work.from_arguments(argparse.ArgumentParser(description="Our side of benchmarks/training.py."))
    set_up(work.threads)
    if not work.varlen:
        attention.accelerated = lambda heads: attention.gathered
    base: Quantisation | None = "nf4" if work.quantise else None
    settings = TrainingSettings(
        epochs=1,
        batch_pairs=work.batch_pairs,
        batch_tokens=work.batch_tokens,
        batching=work.batching,
        learning_rate=1e-6,
        lora=LoraSettings(rank=work.lora, alpha=2.0 * work.lora, quantise_base=base) if work.lora else None,
    )
    made, model = make_pairs(work), Path(work.model)
    dealt = [pair for step in epoch_steps(made, settings, seed=0, epoch=1) for pair in step]
    timed = counted(work, dealt)  # those that training's counted steps will hold
    reference = load_reference(model, settings, dtype="bfloat16")
    stored = reference_logps(reference, dealt[: len(dealt) - len(timed)], settings)
    began = time.perf_counter()
    stored += reference_logps(reference, timed, settings)
    reference_seconds = time.perf_counter() - began
    model_work = work_of(reference.model)
    assert model_work is not None
    flops = model_work.forward(timed)
    del reference
    steps: list[StepMetrics] = []
    train(model, made, stored, settings, Path(tempfile.mkdtemp()), seed=0, dtype="bfloat16", on_step=steps.append)
    trained = sum(step.seconds for step in steps[work.warmup_steps :])
    flops += sum(step.flops or 0.0 for step in steps[work.warmup_steps :])
    memory = peak_memory_mib()
    peak = measured_peak(torch.bfloat16, device(), size=4096 if device().type == "cpu" else None)
    seconds = reference_seconds + trained
    share = reference_seconds / seconds
    print(report(work, timed, seconds, memory, mfu=flops / seconds / peak, peak_gflops=peak / 1e9, reference_share=share))


if __name__ == "__main__":
    main()
