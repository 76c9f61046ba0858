"""Pairs -> checkpoints: the losses, the batches, the loop."""
