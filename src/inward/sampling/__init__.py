"""Prompts to outputs. `engine` is the seam, `sample` the stage, `transformers_engine` and `scripted` what stands behind it."""
