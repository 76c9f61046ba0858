"""The judge that compares two responses: what it asks a language model, here or elsewhere, and how it reads the answer."""
