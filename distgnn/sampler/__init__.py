"""Seed order, neighbour sampling and negatives: global step number in, MiniBatch out, on any thread."""

from distgnn.sampler.neighbor import NeighborSampler
from distgnn.sampler.pyg import to_pyg_adjacencies
from distgnn.sampler.seeds import SeedOrder
from distgnn.sampler.store import LocalStore, PartitionedStore, TopologyStore, store_of

__all__ = [
    "LocalStore",
    "NeighborSampler",
    "PartitionedStore",
    "SeedOrder",
    "TopologyStore",
    "store_of",
    "to_pyg_adjacencies",
]
