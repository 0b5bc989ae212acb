"""Seed order, neighbour sampling and negatives: global step number in, MiniBatch out, on any thread."""

from distgnn.sampler.neighbor import NeighborSampler
from distgnn.sampler.pyg import to_pyg_adjacencies
from distgnn.sampler.seeds import SeedOrder

__all__ = ["NeighborSampler", "SeedOrder", "to_pyg_adjacencies"]
