"""The invariance matrix: a run's batches, gradients and losses do not depend on who computes it."""
