"""Thought Preference Optimization: turn any instruction-tuned model into one that thinks before it answers."""
