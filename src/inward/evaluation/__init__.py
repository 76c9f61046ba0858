"""Checkpoints to figures with intervals: means over prompts, bootstrap, arms side by side, the choice of a checkpoint."""
