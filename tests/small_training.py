"""Small graphs, and trainers on them without a dataset on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.nn.batch import BlockTensors, block_tensors, node_keys
from distgnn.sampler.full import FullNeighborhood
from distgnn.training.recorder import Recorder
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import MiniBatch

FACTS = {"dataset": "small", "dataset_hash": "hash-of-small"}


def small_graph(seed: int = 0, n_users: int = 40, n_items: int = 25, n_edges: int = 260) -> Topology:
    """A random graph in one partition; its last user and last item have no edge, its first user has every item."""
    rng = np.random.default_rng(seed)
    key = rng.integers(0, n_users - 1, n_edges) * n_items + rng.integers(0, n_items - 1, n_edges)
    key = np.unique(np.concatenate([key, np.arange(n_items - 1)]))
    return Topology.from_edges(key // n_items, key % n_items, n_users, n_items)


def adjacency(graph: Topology) -> np.ndarray:
    """Dense symmetric 0/1 matrix, float64 `[N, N]`."""
    dense = np.zeros((graph.n_nodes, graph.n_nodes))
    for node in range(graph.n_nodes):
        dense[node, graph.row(node)] = 1
    return dense


def edge_index(graph: Topology) -> torch.Tensor:
    """Both directions, int64 `[2, 2 E]`."""
    return torch.from_numpy(np.stack(np.nonzero(adjacency(graph))))


def full_block(graph: Topology) -> BlockTensors:
    """All nodes with all their neighbours, float64."""
    block, sources = FullNeighborhood(graph).block(np.arange(graph.n_nodes))
    node_type, stable, _ = graph.describe(sources)
    return block_tensors([block], node_keys(node_type, stable), torch.device("cpu"), torch.float64)[0]


def small_config(*overrides: str) -> Config:
    """A configuration for `small_graph`: two hops, float64 and plain SGD, unless overridden."""
    defaults = ["run.dtype=float64", "sampler.fanout=3,2", "train.batch_size=32", "model.dim=6", "optim.name=sgd"]
    return load_config(None, [*defaults, *overrides])


def small_trainer(
    config: Config,
    run: Path,
    graph: Topology,
    group: WorkerGroup,
    bounds: np.ndarray | None = None,
    tables: torch.device | None = None,
    features: Mapping[str, np.ndarray] | None = None,
) -> PhaseTrainer:
    """A fit on the graph; `bounds` are the workers' node ranges, `tables` the memory of rows and moments."""
    recorder = Recorder(str(run), tensorboard=False, active=False)
    bounds = np.array([0, graph.n_nodes]) if bounds is None else bounds
    return PhaseTrainer(config, str(run), graph, bounds, "fit", group, recorder, FACTS, tables, features)


def small_features(graph: Topology, users: int = 3, items: int = 5) -> dict[str, np.ndarray]:
    """Features by role of so many values in a row (0: none); a row names its node: no other has any of its values."""
    rng = np.random.default_rng(11)
    sizes = {"user": (graph.n_users, users), "item": (graph.n_items, items)}
    return {role: rng.normal(size=size).astype(np.float32) for role, size in sizes.items() if size[1]}


def batch_of(trainer: PhaseTrainer, step: int) -> MiniBatch:
    """The minibatch of a step."""
    return trainer.sampler.sample(trainer.order.seeds(step), step)
