"""Outputs to verdicts to scores. `judge` is the seam; a judge sees prompts and responses as strings, never a thought."""
