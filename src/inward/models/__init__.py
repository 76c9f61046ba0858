"""What a model is: its name and folder, GGUF files, the embedded seed, its identity, tokenizer and chat template."""
