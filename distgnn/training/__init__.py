"""Training loop, inference, evaluation and checkpoints on plain torch.distributed."""
