"""The judge that is a reward model: one number a response."""
