"""Whatever runs a language model: `engine` is the seam; `scripted` is its public fake."""
