"""Sampled pre-activations and linear propagation are unbiased; the same check finds a biased draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distgnn.graph import Topology
from distgnn.nn.batch import block_tensors, node_keys
from distgnn.nn.encoders import GCN, GraphSAGE, LightGCN
from distgnn.sampler import NeighborSampler
from distgnn.types import Block
from tests.unit.graphs import random_edges

N_USERS, N_ITEMS, DIM = 25, 15, 2


def full_layer(encoder: GCN | GraphSAGE, adjacency: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Dense pre-activation of all nodes."""
    degree = adjacency.sum(1)
    if isinstance(encoder, GCN):
        root = 1 / np.sqrt(degree + 1)
        summed = root[:, None] * ((adjacency + np.eye(len(x))) @ (root[:, None] * x))
        weight, bias = (p.detach().numpy() for p in encoder.linear[0].parameters())
        return summed @ weight.T + bias
    mean = adjacency @ x / np.maximum(degree, 1)[:, None]
    weight, bias = (p.detach().numpy() for p in encoder.own[0].parameters())
    return x @ weight.T + bias + mean @ encoder.neighbor[0].weight.detach().numpy().T


def full_lightgcn(adjacency: np.ndarray, x: np.ndarray) -> np.ndarray:
    degree = np.maximum(adjacency.sum(1), 1)
    step = adjacency / np.sqrt(degree[:, None] * degree[None, :])
    return (x + step @ x + step @ step @ x + step @ step @ step @ x) / 4


def prefer_the_first(block: Block, graph: Topology, nodes: np.ndarray, rng: np.random.Generator) -> None:
    """Plant: half of the drawn edges are replaced by the row's first neighbour, where that is in the block."""
    local = {int(n): k for k, n in enumerate(nodes[: block.n_src])}
    for i in range(block.n_dst):
        row = graph.row(int(nodes[i]))
        for e in range(block.indptr[i], block.indptr[i + 1]):
            if rng.random() < 0.5 and int(row[0]) in local:
                block.indices[e] = local[int(row[0])]


def z_scores(name: str, steps: int, *, biased: bool = False) -> np.ndarray:
    """(mean over the steps - full) / standard error, of entries that vary."""
    user, item = random_edges(6, N_USERS, N_ITEMS, 220)
    graph = Topology.from_edges(user, item, N_USERS, N_ITEMS)
    n = graph.n_nodes
    adjacency = np.zeros((n, n))
    for node in range(n):
        adjacency[node, graph.row(node)] = 1
    x = np.random.default_rng(7).normal(size=(n, DIM))
    torch.manual_seed(1)
    encoder = {"gcn": GCN(DIM, 1, 0.0), "graphsage": GraphSAGE(DIM, 1, 0.0), "lightgcn": LightGCN(DIM, 3)}[
        name
    ].double()
    full = full_lightgcn(adjacency, x) if isinstance(encoder, LightGCN) else full_layer(encoder, adjacency, x)
    sampler = NeighborSampler(graph, (3, 2, 3)[: encoder.n_layers], 8)
    rng = np.random.default_rng(9)
    drawn = np.empty((steps, n, DIM))
    for t in range(steps):
        batch = sampler.sample(np.arange(n), t)
        if biased:
            for block in batch.blocks:
                prefer_the_first(block, graph, batch.nodes, rng)
        keys = node_keys(batch.node_type, batch.stable_id)
        blocks = block_tensors(batch.blocks, keys, torch.device("cpu"), torch.float64)
        rows = torch.from_numpy(x[batch.nodes])
        with torch.no_grad():
            if isinstance(encoder, LightGCN):
                out = encoder(blocks, rows, 0)
            else:
                out = encoder.pre_activation(0, blocks[0], rows)
        drawn[t] = out.numpy()[batch.seed_index]
    error = drawn.std(0) / np.sqrt(steps)
    fixed = error < 1e-12  # rows drawn whole: no variance, and then no difference either
    np.testing.assert_allclose(drawn.mean(0)[fixed], full[fixed], atol=1e-9)
    assert (~fixed).mean() > 0.5
    return ((drawn.mean(0) - full)[~fixed]) / error[~fixed]


@pytest.mark.parametrize("name", ["gcn", "graphsage", "lightgcn"])
def test_the_mean_of_samples_is_the_full_result(name: str) -> None:
    z = z_scores(name, 1500)
    assert np.abs(z).max() < 5
    assert 0.5 < (z**2).mean() < 1.6


@pytest.mark.parametrize("name", ["gcn", "graphsage"])
def test_a_biased_draw_is_found(name: str) -> None:
    assert np.abs(z_scores(name, 200, biased=True)).max() > 10
