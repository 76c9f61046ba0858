"""Sampling by vLLM, the engine for GPUs: `engine` is the `Engine`, `start` vLLM itself, `draw` what is asked of it."""
